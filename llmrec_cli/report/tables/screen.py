"""Tables for a terminal, and as plain aligned lines for logs and pipes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from llmrec_cli.report.comparison import Comparison
from llmrec_cli.report.tables.sheets import Sheet, tabulate_comparison
from llmrec_cli.report.text import plain

_NAME_CELLS = 12  # what names fold to where there is no room for them
_PROSE_CELLS = 14  # a column of sentences is at least as wide as this


def to_tables(comparison: Comparison, *, full: bool = True) -> list[RenderableType]:
    """A comparison for a terminal; names are shown, never interpreted."""
    found: list[RenderableType] = []
    for sheet in tabulate_comparison(comparison, full=full):
        found += [FittedTable(sheet), Text()]
    notes = [Text(note) for note in _note_lines(comparison)]
    return [*found, *notes] if notes else found[:-1]


def to_lines(comparison: Comparison, *, full: bool = True) -> list[str]:
    """A comparison as plain lines, a blank one after each table."""
    blocks = [[*sheet_lines(sheet), ""] for sheet in tabulate_comparison(comparison, full=full)]
    lines = [line for block in blocks for line in block]
    notes = _note_lines(comparison)
    return lines + notes if notes else lines[:-1]


def _note_lines(comparison: Comparison) -> list[str]:
    return [f"note: {plain(note)}" for note in comparison.notes]


@dataclass(frozen=True)
class FittedTable:
    """A table that asks for the terminal's width when it is shown."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sheet = self.sheet
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place, width in enumerate(column_widths(sheet, options.max_width)):
            left = place == 0 or place in sheet.prose
            table.add_column(
                Text(sheet.headings[place]),
                justify="left" if left else "right",
                width=width,
                overflow="fold",
            )
        for row in sheet.rows:
            table.add_row(*(Text("\n".join(cell)) for cell in row))
        yield Text(sheet.title, style="bold")
        yield table
        yield Text(sheet.caption, style="italic")


def column_widths(sheet: Sheet, room: int) -> list[int]:
    """Cells of each column so that a table fits into ``room`` cells, if that can be.

    A number may go to its own line, but never loses digits.  What gives way first is sentences,
    then intervals go to lines of their own, then names fold.
    """
    columns = list(zip(((heading,) for heading in sheet.headings), *sheet.rows, strict=True))
    widths = [max(map(cell_len, chain(*column))) for column in columns]
    least = [max(map(cell_len, " ".join(chain(*column)).split())) for column in columns]
    free = {0: min(widths[0], _NAME_CELLS)}
    free |= {place: min(widths[place], _PROSE_CELLS) for place in sheet.prose}
    figures = [place for place in range(len(columns)) if place not in free]
    natural, spare = list(widths), room - len(columns) * 2 - 1  # padding and edges
    for places in (sorted(sheet.prose), figures, [0]):
        if sum(widths) > spare:
            for place in places:
                widths[place] = free.get(place, least[place])
    for place in (*sorted(sheet.prose), 0):  # what is left over goes back
        widths[place] += max(0, min(natural[place] - widths[place], spare - sum(widths)))
    return widths


def sheet_lines(sheet: Sheet) -> list[str]:
    """A table as aligned lines: title, headings, rows, caption."""
    grid = [list(sheet.headings), *([" ".join(cell) for cell in row] for row in sheet.rows)]
    widths = [max(map(cell_len, column)) for column in zip(*grid, strict=True)]
    rows = ["  ".join(_pad_cell(c, w) for c, w in zip(row, widths, strict=True)) for row in grid]
    return [sheet.title, *(row.rstrip() for row in rows), sheet.caption]


def _pad_cell(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))
