"""What is committed, as one replica sees it, and the news of it."""
