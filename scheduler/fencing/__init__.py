"""Power fencing: what switches hosts off, and what is made of the answers."""
