"""What the host has, read from sysfs: text in, facts out. Never raises for what a machine is like, never guesses."""
