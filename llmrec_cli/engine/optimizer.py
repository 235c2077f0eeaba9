"""The optimizer and its learning rate, as `[train]` describes them."""

from __future__ import annotations

import math

import torch

from llmrec_cli.recipe.train import TrainSection


def make_optimizer(policy: torch.nn.Module, section: TrainSection) -> torch.optim.AdamW:
    """AdamW over what is trained; weight decay on matrices only."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=section.betas)


def learning_rate(section: TrainSection, step: int, steps: int) -> float:
    """Rate of update ``step`` (0-based) of ``steps``: warm-up, then the schedule down to 0."""
    warmup = section.warmup * steps if section.warmup < 1 else section.warmup
    if step < warmup:
        return section.learning_rate * (step + 1) / math.ceil(warmup)
    if section.schedule == "constant":
        return section.learning_rate
    done = (step - warmup) / max(steps - warmup, 1)
    left = 1 - done if section.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return section.learning_rate * left
