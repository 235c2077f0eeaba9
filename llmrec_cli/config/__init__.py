"""Recipes: every key has a type and a description. No torch."""
