"""The page as HTML: one file, nothing from outside, no script."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmrec_cli.files import write_atomically
from llmrec_cli.report.page.board import lead
from llmrec_cli.report.page.document import Block
from llmrec_cli.report.page.material import Page
from llmrec_cli.report.page.sections import sections_of
from llmrec_cli.report.page.words import name_of, shown

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may do with the page: nothing but show it, whatever its titles try."""


def write_page(path: Path, page: Page) -> None:
    """Write the page as one HTML file, whole or not at all; a file of that name is replaced.

    Raises:
        MachineError: the disk or its permissions refuse.
    """
    write_atomically(path, render_page(page).encode())


def render_page(page: Page) -> str:
    """The page as HTML; equal pages are equal bytes.

    Whatever comes from the data or the user is text: escaped, one line, of a sensible length.
    """
    comparison = page.comparison
    values = {
        "policy": POLICY,
        "style": Markup(_style()),  # noqa: S704 - a file of this package
        "title": ", ".join(map(name_of, page.experiments)) or "comparison",
        "comparison": comparison,
        "facts": [(fact.term, shown(fact.words, 400)) for fact in page.facts],
        "notes": [shown(note, 400) for note in comparison.notes],
        "lead": lead(comparison),
        "sections": sections_of(page),
        "render": _render,
        "maker": page.maker,
    }
    return _environment().get_template("page.html.j2").render(values)


def _render(block: Block, key: str) -> Markup:
    """One block by the macro that bears the name of its kind."""
    blocks = _environment().get_template("blocks.html.j2").module
    made: Markup = getattr(blocks, block.kind)(block, key)
    return made


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("llmrec_cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _style() -> str:
    return files("llmrec_cli.report").joinpath("templates/page.css").read_text(encoding="utf-8")
