"""Writing a comparison to files. The file's suffix chooses the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.evaluation.comparison import Comparison
from llmrec_cli.pipeline.compare import Compared
from llmrec_cli.report.tables import (
    comparison_to_csv,
    comparison_to_json,
    comparison_to_latex,
    comparison_to_markdown,
)
from llmrec_cli.runs.run import run_at
from llmrec_cli.training.launch import is_first_rank
from llmrec_cli.utils.files import COMPARISON_FILE, PAGE_FILE, write_atomically
from llmrec_cli.utils.progress import Progress


def _dump_json(comparison: Comparison) -> str:
    return (
        json.dumps(comparison_to_json(comparison), indent=2, ensure_ascii=False, allow_nan=False)
        + "\n"
    )


TEXTS: dict[str, Callable[[Comparison], str]] = {
    ".md": comparison_to_markdown,
    ".csv": comparison_to_csv,
    ".tex": comparison_to_latex,
    ".json": _dump_json,
}
PAGE = ".html"
REPORTS = (PAGE_FILE, COMPARISON_FILE)
ENDINGS = (*TEXTS, PAGE)


def check_outputs(paths: list[Path]) -> None:
    """Refuse a name whose format is unknown, or a folder that is not there, before any work.

    Raises:
        RecipeError: names the file and what was expected.
    """
    for path in paths:
        if path.suffix.lower() not in ENDINGS:
            raise RecipeError(f"--out {path}: expected a name that ends in {', '.join(ENDINGS)}")
        if not path.parent.is_dir():
            raise RecipeError(f"--out {path}: no such folder {path.parent}")


def write_output(path: Path, compared: Compared) -> None:
    """Write one file, whole or not at all; a file of that name is replaced.

    Raises:
        MachineError: the disk or its permissions refuse, or a package for the page is missing.
    """
    if path.suffix.lower() == PAGE:
        _write_page(path, compared)
        return
    text = TEXTS[path.suffix.lower()](compared.comparison)
    write_atomically(path, text.encode())


def _write_page(path: Path, compared: Compared) -> None:
    try:  # plots and templates: for pages only
        from llmrec_cli.report.page import write_page
        from llmrec_cli.report.page.gather import gather_page
    except ModuleNotFoundError as error:
        raise MachineError(
            f"{path}: package {error.name} is not installed: pip install {error.name}"
        ) from None
    write_page(path, gather_page(compared.comparison, compared.entries))


def find_reports(recipe: Recipe) -> list[Path]:
    """The reports that lie in the experiment's folder."""
    return [file for name in REPORTS if (file := recipe.folder / name).is_file()]


def write_reports(recipe: Recipe, compared: Compared, progress: Progress) -> None:
    """Write the comparison into the experiment's folder (``REPORTS``), by the first process.

    A report that is newer than every evaluation stays as it is.
    """
    for name in REPORTS if is_first_rank() else ():
        _write_report(recipe.folder / name, compared, progress)


def _write_report(file: Path, compared: Compared, progress: Progress) -> None:
    """Write one report.  The evaluation is done, so a full disk does not end the command."""
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
