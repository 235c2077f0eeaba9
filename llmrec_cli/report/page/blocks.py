"""The structure of the page: numbered sections of blocks.

Text is text: the templates escape it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from llmrec_cli.evaluation.comparison import Comparison, Kind, Standing
from llmrec_cli.report.figures import MARKERS, SERIES, Look, Picture
from llmrec_cli.report.formatting import NONE
from llmrec_cli.report.tables import Sheet
from llmrec_cli.tasks.base import SeenPolicy

LOOKS: Final[Mapping[Kind, Look]] = {
    "language model": Look(SERIES[0], marker=MARKERS[0]),
    "conventional": Look(SERIES[1], marker=MARKERS[1]),
    "external": Look(SERIES[2], marker=MARKERS[2]),
}
_QUIET: Final = ((NONE,), ("baseline",), ("yes",))


class PageBlock(NamedTuple):
    """A part of a section, by the name of the template's macro that shows it."""

    macro: Literal["prose", "table", "panels", "verdicts", "users"]
    value: Any


@dataclass(frozen=True, slots=True)
class PageSection:
    """A numbered section; without blocks it is left out."""

    key: str  # its anchor
    title: str
    blocks: tuple[PageBlock, ...]


@dataclass(frozen=True, slots=True)
class PageTable:
    """A sheet on the page, under its title.

    Attributes:
        folded: shown only when asked for.
        best: by column, the row whose cell stands out.
    """

    sheet: Sheet
    folded: bool = False
    best: Mapping[int, int] = field(default_factory=dict)

    def choose_tone(self, row: int, column: int) -> str:
        """The class of a cell."""
        if self.best.get(column) == row:
            return "best"
        return "quiet" if self.sheet.rows[row][column] in _QUIET else ""


@dataclass(frozen=True, slots=True)
class Panels:
    """Pictures side by side, with the data behind them as a folded table."""

    pictures: tuple[Picture, ...]
    caption: str
    data: PageTable
    legend: tuple[tuple[Picture, str], ...] = ()  # a swatch, and what it stands for
    size: Literal["half", "pair", "third", "small"] = "half"  # of a picture


def build_data(
    label: str, headings: Sequence[str], rows: Iterable[Sequence[str]], prose: Sequence[int] = ()
) -> PageTable:
    """A folded table of one text per cell: the data behind pictures."""
    cells = tuple(tuple((text,) for text in row) for row in rows)
    return PageTable(Sheet(label, tuple(headings), cells, "", frozenset(prose)), folded=True)


def select_comparable(comparison: Comparison) -> list[Standing]:
    """The entries whose figures may be set against each other."""
    return [standing for standing in comparison.standings if standing.why_not is None]


def order_policies(comparison: Comparison) -> Iterator[SeenPolicy]:
    """The policies, the headline's first."""
    yield comparison.headline
    yield from (policy for policy in comparison.policies if policy != comparison.headline)
