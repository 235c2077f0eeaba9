"""Files that an exported model brings along: ``rank.py``, copied as it is, and the model card."""
