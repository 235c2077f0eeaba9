"""``llmrec align --method NAME``: an alignment, from SFT's result, another's, or the base."""

from __future__ import annotations

from pathlib import Path

from llmrec_cli.progress import Progress
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.runs.run import align_run
from llmrec_cli.stage.train import train_stage


def align(recipe: Recipe, name: str, *, resume: bool, progress: Progress) -> Path:
    """Run ``[align.NAME]``; returns the run's folder ``out/name/align-NAME``.

    Raises:
        RecipeError: the recipe has no such section.
    """
    return train_stage(recipe, align_run(recipe, name), resume=resume, progress=progress)
