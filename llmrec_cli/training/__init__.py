"""Training: dataset, sampler, collator, data loader, and one training loop."""
