"""The one home of store access, shared by both daemons."""
