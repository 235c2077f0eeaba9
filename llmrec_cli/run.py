"""``llmrec run``: every stage in order; what is finished is kept, what stopped goes on."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from llmrec_cli import run_folder
from llmrec_cli.align import align
from llmrec_cli.baseline import baseline
from llmrec_cli.evaluate import POP, evaluate
from llmrec_cli.prepare import prepare
from llmrec_cli.progress import Progress
from llmrec_cli.recipe import Recipe
from llmrec_cli.report.leaderboard import Leaderboard
from llmrec_cli.sft import sft


def run(recipe: Recipe, *, progress: Progress) -> Leaderboard:
    """Prepare, train, fine-tune, align and evaluate; returns the test split's leaderboard."""
    recipe.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(recipe.folder / ".prepare.lock"):  # processes of a group start together
        prepare(recipe, Path, progress=progress.say)
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
    return evaluate(recipe, fresh, split="test", again=False, progress=progress)


def _evaluated(recipe: Recipe, name: str) -> bool:
    return (recipe.run_folder(name) / run_folder.REPORT_FILE).is_file()
