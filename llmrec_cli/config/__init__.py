"""A recipe: every key typed and documented, parsed once.  No torch."""
