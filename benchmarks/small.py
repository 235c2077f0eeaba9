"""A small experiment on the synthetic sample: seconds from raw files to lists."""

from __future__ import annotations

from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "data/sample/amazon2018"
RECIPE = f"""
[data]
format = "amazon2018"
reviews = "{SAMPLE}/Synthetic_Toys.json.gz"
metadata = "{SAMPLE}/meta_Synthetic_Toys.json.gz"
history = 5
[model]
scratch = {{ hidden = 16, layers = 2, heads = 2, feed_forward = 16, vocabulary = 400 }}
[train]
rows = "sequence"
max_steps = 2
batch = 16
validate_rows = 10
learning_rate = 3e-3
[baseline.itemknn]
[align.msl]
parent = "sft"
[eval]
rows = 60
resamples = 100
"""
