"""How a language model searches the catalogue."""
