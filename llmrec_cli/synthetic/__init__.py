"""An invented shop with known rules: the raw files of ``llmrec sample`` and their oracle."""
