"""``llmrec run``: every stage in order. Finished stages are kept, interrupted ones resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmrec_cli.config.names import RunKind
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import RecipeError
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.compare import Compared
from llmrec_cli.pipeline.evaluate import check_kept, evaluate_runs
from llmrec_cli.pipeline.plan import check_runs
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.tokenize import tokenize
from llmrec_cli.pipeline.train import align, sft
from llmrec_cli.pipeline.zero_shot import record_base
from llmrec_cli.runs.run import Run, baseline_run, experiment_of
from llmrec_cli.runs.tracking import require_trackers
from llmrec_cli.utils.progress import Progress, Silent


def run(recipe: Recipe, *, progress: Progress) -> Compared:
    """Prepare, make semantic IDs, train, fine-tune, align and evaluate; compare on the test split.

    What would stop a later stage is found before the first one is trained, but for the baseline
    that semantic IDs are made from.

    ``report.outputs.write_reports`` writes the comparison into the experiment's folder.
    """
    require_trackers(recipe.track)
    prepare_data(recipe, Path, progress=progress.say)
    make_tokens(recipe, progress)
    check_runs(recipe, Silent())
    experiment = experiment_of(recipe)
    check_kept(recipe, experiment.runs, "test")
    for one in experiment.runs:
        if not one.is_made_by_eval:
            train_run(recipe, one, resume=True, progress=progress)
    names = experiment.names
    return evaluate_runs(recipe, names, split="test", again=False, keep=True, progress=progress)


def make_tokens(recipe: Recipe, progress: Progress) -> None:
    """The semantic IDs of a recipe that makes some, and the baseline that they are made from."""
    tokens = recipe.id_tokens
    if tokens is None:
        return
    if tokens.source.baseline:
        train_run(recipe, baseline_run(recipe, tokens.baseline), resume=True, progress=progress)
    made = tokenize(recipe, progress=progress)
    progress.say(f"{made.folder}: {'reused' if made.reused else 'written'}")
    for note in [] if made.reused else made.report["notes"]:
        progress.say(note)


def train_run(recipe: Recipe, run: Run, *, resume: bool, progress: Progress) -> Path:
    """Train one run of a recipe, whatever its kind; returns its folder.

    Raises:
        UserError: as the command of its kind.
    """
    if run.is_guided:
        raise RecipeError(
            f"{run}: nothing of it is trained; it is made by llmrec eval RECIPE --run {run}"
        )
    return _TRAIN[run.kind](recipe, run.table, resume, progress)


_TRAIN: dict[RunKind, Callable[[Recipe, str, bool, Progress], Path]] = {
    RunKind.BASE: lambda recipe, _, resume, say: record_base(recipe, resume=resume, progress=say),
    RunKind.SFT: lambda recipe, _, resume, say: sft(recipe, resume=resume, progress=say),
    RunKind.ALIGN: lambda recipe, table, resume, say: align(
        recipe, table, resume=resume, progress=say
    ),
    RunKind.BASELINE: lambda recipe, table, resume, say: baseline(
        recipe, table, resume=resume, progress=say
    ),
}
