"""The commands: each loads a recipe, calls one function of a story, and shows what it returns.

Stories are imported inside their commands: ``llmrec --help`` needs neither torch nor pandas.
"""
