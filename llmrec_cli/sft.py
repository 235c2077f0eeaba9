"""``llmrec sft``: supervised fine-tuning on the next item (LML over the whole vocabulary)."""

from __future__ import annotations

from pathlib import Path

from llmrec_cli.progress import Progress
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.runs.run import sft_run
from llmrec_cli.stage.train import train_stage


def sft(recipe: Recipe, *, resume: bool, progress: Progress) -> Path:
    """Fine-tune the backbone; returns the run's folder ``out/name/sft``."""
    return train_stage(recipe, sft_run(recipe), resume=resume, progress=progress)
