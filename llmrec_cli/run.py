"""``llmrec run``: every stage in order; what is finished is kept, what stopped goes on."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from llmrec_cli import run_folder
from llmrec_cli.align import align
from llmrec_cli.baseline import baseline
from llmrec_cli.compare import Compared
from llmrec_cli.comparing.outputs import write_output
from llmrec_cli.engine.group import is_first_rank
from llmrec_cli.engine.trackers import require
from llmrec_cli.errors import MachineError
from llmrec_cli.evaluate import POP, evaluate
from llmrec_cli.prepare import prepare
from llmrec_cli.progress import Progress, Silent
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.sft import sft
from llmrec_cli.stage.check import check_runs

REPORTS = ("report.html", "comparison.json")


def run(recipe: Recipe, *, progress: Progress) -> Compared:
    """Prepare, train, fine-tune, align and evaluate; compare on the test split.

    What would stop a later stage is found before the first one is trained.

    The comparison is also written into the experiment's folder (``REPORTS``), where it is not there
    or older than an evaluation.
    """
    require(recipe.track)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(recipe.folder / ".prepare.lock"):  # processes of a group start together
        prepare(recipe, Path, progress=progress.say)
    check_runs(recipe, Silent())
    for name in recipe.runs():
        kind, _, table = name.partition("-")
        resume = recipe.run_folder(name).exists()
        if kind == "sft":
            sft(recipe, resume=resume, progress=progress)
        elif kind == "align":
            align(recipe, table, resume=resume, progress=progress)
        elif name != POP:  # which eval fits
            baseline(recipe, table, resume=resume, progress=progress)
    fresh = [name for name in recipe.runs() if not _evaluated(recipe, name)]
    compared = evaluate(recipe, fresh, split="test", again=False, progress=progress)
    for name in REPORTS if is_first_rank() else ():
        _report(recipe.folder / name, compared, progress)
    return compared


def reports(recipe: Recipe) -> list[Path]:
    """The reports that lie in the experiment's folder."""
    return [file for name in REPORTS if (file := recipe.folder / name).is_file()]


def _report(file: Path, compared: Compared, progress: Progress) -> None:
    """Write one report; what it is about is done, so that a full disk does not end the command."""
    try:
        if _outdated(file, compared):
            write_output(file, compared)
    except MachineError as error:
        progress.say(f"no report: {error}")


def _outdated(file: Path, compared: Compared) -> bool:
    runs = [run for entry in compared.entries for run in entry.evaluations]
    reports = [run.folder / run_folder.REPORT_FILE for run in runs if run.folder is not None]
    newest = max((report.stat().st_mtime_ns for report in reports), default=0)
    return not file.exists() or file.stat().st_mtime_ns < newest


def _evaluated(recipe: Recipe, name: str) -> bool:
    return (recipe.run_folder(name) / run_folder.REPORT_FILE).is_file()
