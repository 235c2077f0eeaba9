"""``llmrec align --method NAME``: an alignment, from SFT's result, another's, or the base."""

from __future__ import annotations

from pathlib import Path

from llmrec_cli.errors import RecipeError
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.stage.train import train_stage

_PARENTS = {"sft": "sft", "base": None}


def align(recipe: Recipe, name: str, *, resume: bool, progress: Progress) -> Path:
    """Run ``[align.NAME]``; returns the run's folder ``out/name/align-NAME``.

    Raises:
        RecipeError: the recipe has no such section.
    """
    if name not in recipe.align:
        known = ", ".join(recipe.align) or "none"
        raise RecipeError(
            f"[align.{name}]: not in the recipe (it has {known}); add the table to run it"
        )
    section = recipe.align[name]
    return train_stage(
        recipe,
        f"align-{name}",
        method=section.method,
        options=section.options,
        section=section.train,
        parent=_PARENTS.get(section.parent, f"align-{section.parent}"),
        resume=resume,
        progress=progress,
    )
