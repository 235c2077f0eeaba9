"""One file per command of the pipeline, and what they share."""
