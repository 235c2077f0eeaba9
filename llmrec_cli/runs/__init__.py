"""Runs and experiments as values: names, folders, files, locks, provenance, listings."""
