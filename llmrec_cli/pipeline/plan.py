"""Checks that could stop a training stage, made before any stage is trained.

    recipe -> one ``Plan`` per language-model run -> ``check_plan`` on prepared data and trie

``llmrec run`` and ``validate --rows`` check every plan first, so that a wrong temperature or k
does not come to light after hours of other stages.  ``train_stage`` checks its own plan again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmrec_cli.config.names import RunKind
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import UNTRAINED, ItemTasks, TrainSection
from llmrec_cli.errors import RecipeError, UserError
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Method
from llmrec_cli.methods.lml import LmlOptions
from llmrec_cli.models.language_model import check_depth
from llmrec_cli.pipeline import loading
from llmrec_cli.pipeline.provenance import require_all_inputs
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.pipeline.setup import CatalogueContext, base_config, open_context, require_rows
from llmrec_cli.runs.record import check_finished
from llmrec_cli.runs.run import Run, experiment_of
from llmrec_cli.tasks.base import load_operations
from llmrec_cli.utils.progress import Progress


@dataclass(frozen=True)
class StagePlan:
    """One language-model run of a recipe."""

    run: Run
    method: Method
    name: str  # of the method
    options: Any
    section: TrainSection
    item_tasks: ItemTasks | None = None


def plan_run(recipe: Recipe, run: Run) -> StagePlan:
    """The plan of a language model's run."""
    if run.kind is RunKind.SFT:
        sft = recipe.sft
        return StagePlan(run, find_method("lml"), "lml", LmlOptions(), sft.train, sft.item_tasks)
    table, method = recipe.align[run.table], recipe.align[run.table].method
    return StagePlan(run, find_method(method), method, table.options, table.train, table.item_tasks)


def make_stage(context: CatalogueContext, plan: StagePlan) -> TrainingStage:
    """The stage of a plan, unchecked."""
    return TrainingStage(context, plan.method, plan.options, plan.section, plan.item_tasks)


def check_runs(recipe: Recipe, progress: Progress) -> None:
    """Check every run of a recipe that is not finished, and what it is to be evaluated on.

    Where there is one, finished runs must stand on what lies there now.

    Args:
        progress: told what ``open_context`` has to say.

    Raises:
        UserError: the first thing that would stop a run; the message names its table.
        ArtefactError: as ``find_unfinished``, or a finished run was made from something else.
    """
    runs = find_unfinished(recipe)
    if not runs:
        return
    context = open_context(recipe, progress)
    finished = [run for run in experiment_of(recipe).runs if run not in runs]
    require_all_inputs(recipe, context.codec.tokenizer, finished)
    check_plans(recipe, context, runs)
    other = context
    if recipe.eval.data is not None:
        other = open_context(recipe, progress, evaluation=True)
    load_operations(recipe.task).check_evaluation(other)


def find_unfinished(recipe: Recipe) -> list[Run]:
    """The runs of a recipe that are not finished.

    Raises:
        ArtefactError: one is finished, but was made with other settings.
    """
    return [run for run in experiment_of(recipe).runs if not check_finished(recipe, run)]


def check_plans(recipe: Recipe, context: CatalogueContext, runs: Sequence[Run]) -> None:
    """Check runs on an open context.

    Raises:
        UserError: as ``check_runs``.
    """
    check_rows = load_operations(recipe.task).check_rows
    for run in runs:
        try:
            if run.is_untouched or run.is_guided:
                continue  # nothing is trained
            if run.is_language_model:
                check_rows(check_plan(context, plan_run(recipe, run)), run.kind is RunKind.ALIGN)
            elif recipe.baseline[run.table].model not in UNTRAINED:
                require_rows(context.prepared)
        except UserError as error:
            if str(error).startswith(run.heading):
                raise
            raise type(error)(f"{run.heading} {error}") from error


def check_plan(context: CatalogueContext, plan: StagePlan) -> TrainingStage:
    """Check one run.

    Returns:
        Its stage.

    Raises:
        RecipeError: options that cannot work on this catalogue, or a parent that cannot serve.
        DataError: too few rows, or too few possible negatives.
        ArtefactError: the backbone has too few layers.
    """
    recipe = context.recipe
    plan.method.init_state(plan.options, context.trie)
    stage = make_stage(context, plan)
    if stage.needs.reference and plan.run.parent is None:
        raise RecipeError(
            f'{plan.run.heading} parent = "base": {plan.name} is measured against '
            'the model it starts from; set parent = "sft" and run first: llmrec sft RECIPE'
        )
    if stage.needs.hidden_states:
        check_depth(base_config(recipe).get_text_config(), stage.needs.hidden_states)
    if stage.needs.item_scores is not None:
        loading.require_sequential(recipe, stage.needs.item_scores.model)
    require_rows(context.prepared)
    return stage
