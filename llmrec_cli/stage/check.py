"""What stops a training stage, asked before any stage is trained.

    recipe -> one ``Plan`` per language-model run -> ``check_plan`` on prepared data and trie

``llmrec run`` and ``validate --rows`` check every plan first, so that a wrong temperature or k
does not come to light after hours of other stages.  ``train_stage`` checks its own plan again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmrec_cli import run_folder
from llmrec_cli.errors import RecipeError, UserError
from llmrec_cli.methods import find
from llmrec_cli.methods.contract import Method
from llmrec_cli.methods.lml import LmlOptions
from llmrec_cli.models.policy import check_depth
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.baseline import UNTRAINED
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.stage import scorer
from llmrec_cli.stage.base import base_config
from llmrec_cli.stage.needs import Stage
from llmrec_cli.stage.workbench import Workbench, open_workbench, require_rows
from llmrec_cli.tasks.operations import load_operations

_PARENTS = {"sft": "sft", "base": None}


@dataclass(frozen=True)
class Plan:
    """One language-model run of a recipe."""

    run: str  # its name, which is its folder's
    method: Method
    name: str  # of the method
    options: Any
    section: TrainSection
    parent: str | None  # the run whose result is the start; None: the base


def plan_run(recipe: Recipe, run: str) -> Plan:
    """The plan of ``sft`` or ``align-NAME``.

    Raises:
        RecipeError: the recipe has no such table.
    """
    if run == "sft":
        return Plan(run, find("lml"), "lml", LmlOptions(), recipe.sft.train, None)
    name = run.removeprefix("align-")
    if name not in recipe.align:
        known = ", ".join(recipe.align) or "none"
        raise RecipeError(
            f"[align.{name}]: not in the recipe (it has {known}); add the table to run it"
        )
    table = recipe.align[name]
    parent = _PARENTS.get(table.parent, f"align-{table.parent}")
    return Plan(run, find(table.method), table.method, table.options, table.train, parent)


def check_runs(recipe: Recipe, progress: Progress) -> None:
    """Check every run of a recipe that is not finished, and what it is to be evaluated on.

    Args:
        progress: told what ``open_workbench`` has to say.

    Raises:
        UserError: the first thing that would stop a run; the message names its table.
    """
    runs = unfinished_runs(recipe)
    if not runs:
        return
    bench = open_workbench(recipe, progress)
    check_plans(recipe, bench, runs)
    other = bench
    if recipe.eval.data is not None:
        other = open_workbench(recipe, progress, evaluation=True)
    load_operations(recipe.task).check_evaluation(other)


def unfinished_runs(recipe: Recipe) -> list[str]:
    """The runs of a recipe that are not finished.

    Raises:
        ArtefactError: one is finished, but was made with other settings.
    """
    found = []
    for run in recipe.runs():
        if not run_folder.is_done(recipe.run_folder(run)):
            found.append(run)
        elif run_folder.has_settings(recipe, run):
            run_folder.require_same_settings(recipe, run)
    return found


def check_plans(recipe: Recipe, bench: Workbench, runs: Sequence[str]) -> None:
    """Check runs on an open workbench.

    Raises:
        UserError: as ``check_runs``.
    """
    check_rows = load_operations(recipe.task).check_rows
    for run in runs:
        kind, _, name = run.partition("-")
        try:
            if kind != "baseline":
                check_rows(check_plan(bench, plan_run(recipe, run)), run != "sft")
            elif recipe.baseline[name].model not in UNTRAINED:
                require_rows(bench.prepared)
        except UserError as error:
            table = f"[{run.replace('-', '.', 1)}]"
            if str(error).startswith(table):
                raise
            raise type(error)(f"{table} {error}") from error


def check_plan(bench: Workbench, plan: Plan) -> Stage:
    """Check one run.

    Returns:
        Its stage.

    Raises:
        RecipeError: options that cannot work on this catalogue, or a parent that cannot serve.
        DataError: too few rows, or too few possible negatives.
        ArtefactError: the backbone has too few layers.
    """
    recipe = bench.recipe
    plan.method.init_state(plan.options, bench.trie)
    stage = Stage(bench, plan.method, plan.options, plan.section)
    if stage.needs.reference and plan.parent is None:
        raise RecipeError(
            f'[{plan.run.replace("-", ".", 1)}] parent = "base": {plan.name} is measured against '
            'the model it starts from; set parent = "sft" and run first: llmrec sft RECIPE'
        )
    if stage.needs.hidden_states:
        check_depth(base_config(recipe).get_text_config(), stage.needs.hidden_states)
    if stage.needs.item_scores is not None:
        scorer.require_sequential(recipe, stage.needs.item_scores.model)
    require_rows(bench.prepared)
    return stage
