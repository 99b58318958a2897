"""Small models, explored exhaustively: what a protocol allows in any order of events, not only in likely ones."""
