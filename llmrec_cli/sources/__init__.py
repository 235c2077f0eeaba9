"""Where raw files come from: official downloads, and synthetic ones."""
