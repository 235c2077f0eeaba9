"""Recipes: what an experiment is, typed, documented and read from one TOML file."""
