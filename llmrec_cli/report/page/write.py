"""The page as HTML: one file, nothing from outside, no script."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmrec_cli.report.formatting import cut_name, cut_text, format_count, set_minus
from llmrec_cli.report.page.blocks import PageBlock, PageSection
from llmrec_cli.report.page.comparison import (
    build_beam_error,
    build_costs,
    build_groups,
    build_intervals,
    build_leaderboard,
    build_lists,
    describe_comparison,
)
from llmrec_cli.report.page.curves import build_logged, build_training
from llmrec_cli.report.page.data import Page
from llmrec_cli.report.page.semantic_ids import build_semantic_ids
from llmrec_cli.utils.files import write_atomically

POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
"""What a browser may do with the page: only show it, whatever a title contains."""
_USERS_TEXT: Final = (
    "These are the users whose id has the smallest SHA-256: nobody chose them for their lists, and "
    "the same data show the same users. Histories run from old to new; of entries with several "
    "seeds the first one's lists are shown. A grey title stands in the history already."
)


def write_page(path: Path, page: Page) -> None:
    """Write the page as one HTML file, whole or not at all; a file of that name is replaced.

    Raises:
        MachineError: the disk or its permissions refuse.
    """
    write_atomically(path, render_page(page).encode())


def render_page(page: Page) -> str:
    """The page as HTML; equal pages are equal bytes.

    Everything from the data or the user is text: escaped, on one line, cut to a sensible length.
    """
    values = {
        "policy": POLICY,
        "style": Markup(_read_style()),  # noqa: S704 - a file of this package
        "page": page,
        "lead": describe_comparison(page.comparison),
        "sections": [section for section in _build_sections(page) if section.blocks],
    }
    return _load_templates().get_template("page.html.j2").render(values)


def _build_sections(page: Page) -> Iterator[PageSection]:
    """The sections in order; those without blocks have nothing to show."""
    yield build_leaderboard(page.comparison)
    yield build_intervals(page.comparison)
    yield build_costs(page.comparison)
    yield from build_groups(page)
    yield build_lists(page)
    yield build_beam_error(page)
    yield build_training(page)
    yield from build_logged(page.logs)
    yield build_semantic_ids(page.ids)
    audits = [audited for audited in page.audits if audited.verdicts]
    found = tuple(PageBlock("verdicts", (audited, len(page.audits) > 1)) for audited in audits)
    yield PageSection("audit", "Audit of the data", found)
    users = (PageBlock("prose", _USERS_TEXT), PageBlock("users", page.users)) if page.users else ()
    yield PageSection("users", f"{format_count(len(page.users), 'user')}, side by side", users)


@cache
def _load_templates() -> Environment:
    made = Environment(
        loader=PackageLoader("llmrec_cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"text": cut_text, "name": cut_name, "minus": set_minus, "times": format_count}
    return made


def _read_style() -> str:
    return files("llmrec_cli.report").joinpath("templates/page.css").read_text(encoding="utf-8")
