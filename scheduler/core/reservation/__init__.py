"""The room that the site keeps for restarts: which hosts die together, and whether their jobs could start elsewhere."""
