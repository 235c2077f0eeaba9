"""Files that are copied into an export. llmrec does not import them."""
