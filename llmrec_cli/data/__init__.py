"""Raw files to the prepared folder.  No torch."""
