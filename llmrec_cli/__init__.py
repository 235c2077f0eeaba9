"""llmrec: turn a language model into a recommender, from one recipe file."""

__version__ = "0.1.0"
