"""What the stages sft, align, baseline and eval are made of."""
