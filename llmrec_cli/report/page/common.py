"""What several sections share: looks, words for policies, and sheets as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from llmrec_cli.report.comparison import Comparison, Kind, Policy, Standing
from llmrec_cli.report.figures.canvas import DASHES, SERIES, Look
from llmrec_cli.report.figures.curves import swatch
from llmrec_cli.report.page.document import Cell, Key, Table, Tone
from llmrec_cli.report.page.words import typeset
from llmrec_cli.report.tables.sheets import NONE, Sheet

HISTORY: Final[Mapping[Policy, str]] = {
    "keep": "history kept",
    "remove": "history removed",
    "pairs": "two candidates",
}
LEVEL = 0.05  # of a difference that counts, after Holm's correction
LOOKS: Final[Mapping[Kind, Look]] = {
    "language model": Look(SERIES[0], DASHES[0], "o"),
    "conventional": Look(SERIES[1], DASHES[0], "s"),
    "external": Look(SERIES[2], DASHES[0], "^"),
}


def comparable(comparison: Comparison) -> list[Standing]:
    """The entries whose figures may be set against each other."""
    return [standing for standing in comparison.standings if standing.why_not is None]


def headline_first(comparison: Comparison) -> Iterator[Policy]:
    """The policies, the headline's first."""
    yield comparison.headline
    yield from (policy for policy in comparison.policies if policy != comparison.headline)


def table_of(
    sheet: Sheet,
    label: str,
    best: Mapping[int, int] | None = None,
    *,
    folded: bool = False,
    caption: str | None = None,
) -> Table:
    """A sheet of the comparison as a table of the page.

    Args:
        best: by column, the row whose cell stands out.
    """
    best = best or {}

    def tone(row: int, column: int, parts: Sequence[str]) -> Tone:
        if best.get(column) == row:
            return "best"
        return "quiet" if parts in ((NONE,), ("baseline",), ("yes",)) else ""

    def cell(row: int, column: int, parts: tuple[str, ...]) -> Cell:
        is_text = column == 0 or column in sheet.prose
        set_parts = parts if is_text else tuple(map(typeset, parts))
        return Cell(set_parts, tone(row, column, parts))

    rows = tuple(
        tuple(cell(at, column, parts) for column, parts in enumerate(row))
        for at, row in enumerate(sheet.rows)
    )
    told = sheet.caption if caption is None else caption
    return Table(label, sheet.headings, rows, told, sheet.prose, folded)


def kinds_legend(comparison: Comparison, key: str) -> tuple[Key, ...]:
    """What the marks of the kinds of entries look like."""
    present = {standing.kind for standing in comparison.standings}
    if len(present) < 2:
        return ()
    return tuple(
        Key(swatch(f"{key}-key{place}", look, line=False), kind)
        for place, (kind, look) in enumerate(LOOKS.items())
        if kind in present
    )
