"""What ``llmrec sweep`` is made of: the plan, the study that chooses points, and trials."""
