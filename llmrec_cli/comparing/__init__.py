"""Evaluated runs and other tools' lists, read back as the entries of a comparison."""
