"""``llmrec run``: every stage in order; what is finished is kept, what stopped goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmrec_cli.align import align
from llmrec_cli.baseline import baseline
from llmrec_cli.compare import Compared
from llmrec_cli.comparing.outputs import write_output
from llmrec_cli.engine.group import is_first_rank
from llmrec_cli.engine.trackers import require
from llmrec_cli.errors import MachineError
from llmrec_cli.evaluate import evaluate
from llmrec_cli.files import COMPARISON_FILE, PAGE_FILE
from llmrec_cli.prepare import prepare
from llmrec_cli.progress import Progress, Silent
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.runs.run import Run, RunKind, experiment_of, run_at
from llmrec_cli.sft import sft
from llmrec_cli.stage.check import check_runs

REPORTS = (PAGE_FILE, COMPARISON_FILE)


def run(recipe: Recipe, *, progress: Progress) -> Compared:
    """Prepare, train, fine-tune, align and evaluate; compare on the test split.

    What would stop a later stage is found before the first one is trained.

    The comparison is also written into the experiment's folder (``REPORTS``), where it is not there
    or older than an evaluation.
    """
    require(recipe.track)
    prepare(recipe, Path, progress=progress.say)
    check_runs(recipe, Silent())
    experiment = experiment_of(recipe)
    for one in experiment.runs:
        if not one.is_pop:  # which eval fits
            _TRAIN[one.kind](recipe, one, progress)
    names = experiment.names
    compared = evaluate(recipe, names, split="test", again=False, keep=True, progress=progress)
    for name in REPORTS if is_first_rank() else ():
        _write_report(recipe.folder / name, compared, progress)
    return compared


_TRAIN: dict[RunKind, Callable[[Recipe, Run, Progress], object]] = {
    RunKind.SFT: lambda recipe, _, say: sft(recipe, resume=True, progress=say),
    RunKind.ALIGN: lambda recipe, one, say: align(recipe, one.table, resume=True, progress=say),
    RunKind.BASELINE: lambda recipe, one, say: baseline(
        recipe, one.table, resume=True, progress=say
    ),
}


def find_reports(recipe: Recipe) -> list[Path]:
    """The reports that lie in the experiment's folder."""
    return [file for name in REPORTS if (file := recipe.folder / name).is_file()]


def _write_report(file: Path, compared: Compared, progress: Progress) -> None:
    """Write one report; what it is about is done, so that a full disk does not end the command."""
    try:
        if _is_outdated(file, compared):
            write_output(file, compared)
    except MachineError as error:
        progress.say(f"no report: {error}")


def _is_outdated(file: Path, compared: Compared) -> bool:
    runs = [run for entry in compared.entries for run in entry.evaluations]
    reports = [run_at(run.folder).report_file("test") for run in runs if run.folder is not None]
    newest = max((report.stat().st_mtime_ns for report in reports), default=0)
    return not file.exists() or file.stat().st_mtime_ns < newest
