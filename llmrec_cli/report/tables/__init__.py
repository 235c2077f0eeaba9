"""A comparison as tables: what they hold (``sheets.py``), and each format that shows them."""
