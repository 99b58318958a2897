"""The central scheduler."""
