"""``llmrec sweep``: the plan, the study that chooses points, trials of them, and the search."""
