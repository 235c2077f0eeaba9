"""Writing a comparison to files; the ending of a name chooses the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from llmrec_cli.compare import Compared
from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.files import write_atomically
from llmrec_cli.report.comparison import Comparison
from llmrec_cli.report.tables.documents import to_latex, to_markdown
from llmrec_cli.report.tables.figures import to_csv, to_json


def _to_json_text(comparison: Comparison) -> str:
    return json.dumps(to_json(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


TEXTS: dict[str, Callable[[Comparison], str]] = {
    ".md": to_markdown,
    ".csv": to_csv,
    ".tex": to_latex,
    ".json": _to_json_text,
}
PAGE = ".html"
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
        from llmrec_cli.comparing.gather_page import gather_page
        from llmrec_cli.report.page import write_page
    except ModuleNotFoundError as error:
        raise MachineError(
            f"{path}: package {error.name} is not installed: pip install {error.name}"
        ) from None
    write_page(path, gather_page(compared.comparison, compared.entries))
