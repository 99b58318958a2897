"""Judges whether this host can hand out its units safely, and says how to mend what is wrong."""
