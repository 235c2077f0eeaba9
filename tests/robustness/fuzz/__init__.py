"""Every parser of llmrec under pseudo-random input: ``make fuzz``."""
