"""Ranking rows and scoring the lists."""
