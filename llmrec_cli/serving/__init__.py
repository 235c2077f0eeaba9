"""Finished runs put to use: opened, asked for lists, exported."""
