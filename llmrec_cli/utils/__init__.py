"""Helpers for all packages: files, locks, text, progress."""
