"""Training: a dataset, the order of its rows, collated batches made ahead, and one loop."""
