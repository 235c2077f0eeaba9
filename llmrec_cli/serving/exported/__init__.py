"""Files that an exported model brings along; nothing here is imported by llmrec."""
