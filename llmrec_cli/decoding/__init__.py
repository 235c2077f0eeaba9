"""Decoding: the search of a language model for the best catalogue entries."""
