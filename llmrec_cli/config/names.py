"""What the runs of a recipe are called.

A run is called by its kind, and by its table where a recipe has several of that kind: ``sft``,
``align-msl``, ``baseline-itemknn``.  ``runs.run`` makes runs of these names, and those of guided
runs.
"""

from __future__ import annotations

from enum import StrEnum

from llmrec_cli.config.recipe import Recipe


class RunKind(StrEnum):
    """How a run is made: by the command of that name, from the recipe's table of that name.

    ``BASE`` is the pretrained backbone as it is: no table, nothing trained, made by ``eval``.
    ``GUIDED`` is a language model's run with the guide of ``[eval.decode]``: made by ``eval`` too.
    """

    BASE = "base"
    SFT = "sft"
    ALIGN = "align"
    BASELINE = "baseline"
    GUIDED = "guided"


def name_run(kind: RunKind, table: str = "") -> str:
    """The name of a run, which is its folder's."""
    if kind is RunKind.GUIDED:
        return table
    return f"{kind}-{table}" if table else kind.value


def list_run_names(recipe: Recipe) -> list[str]:
    """The runs of a recipe, in order, those with a guide left out."""
    bases = [] if explain_no_base(recipe) else [name_run(RunKind.BASE)]
    baselines = [name_run(RunKind.BASELINE, table) for table in recipe.baseline]
    aligns = [name_run(RunKind.ALIGN, table) for table in recipe.in_order()]
    return [*bases, *baselines, name_run(RunKind.SFT), *aligns]


def explain_no_base(recipe: Recipe) -> str | None:
    """Why nothing can rank before training; None: the pretrained backbone does."""
    if recipe.model.backbone == "scratch":
        return 'model.backbone = "scratch" has random weights before training'
    if not recipe.model.is_pretrained:
        return 'model.weights = "random" are random before training'
    if recipe.data.form.items_are_tokens:
        return f'the tokens of data.format = "{recipe.data.format}" are new to the backbone'
    if recipe.id_tokens is not None:
        return f'the tokens of tokens.kind = "{recipe.id_tokens.kind}" are new to the backbone'
    return None
