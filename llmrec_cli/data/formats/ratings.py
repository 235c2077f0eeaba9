"""Amazon's ratings-only CSV files.  Each generation orders its columns in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.amazon import (
    FIELDS_2023,
    GENERATIONS,
    INTERACTIONS_FILE,
    Generation,
    bad_lines,
    read_items,
)
from llmrec_cli.data.formats.base import Locate, Notes, Sink, Source, write_interactions
from llmrec_cli.data.formats.checks import Fields, Interactions
from llmrec_cli.data.formats.delimited import Cells, Kinds, read_cells, read_header
from llmrec_cli.data.formats.parsing import BadLines, make_fault, show_text

FIELDS: Final = Fields(user="user_id", item="item_id", rating="rating", timestamp="timestamp")
HEADER_2023: Final = ["user_id", "parent_asin", "rating", "timestamp"]


@dataclass(frozen=True)
class _Layout:
    """How a generation lays out its files."""

    fields: Fields
    metadata: Generation
    order: tuple[str, ...] | None = None  # of the columns, where there is no header


_LAYOUTS: Final = {
    "ratings2014": _Layout(
        FIELDS, GENERATIONS["2014"], ("user_id", "item_id", "rating", "timestamp")
    ),
    "ratings2018": _Layout(
        FIELDS, GENERATIONS["2018"], ("item_id", "user_id", "rating", "timestamp")
    ),
    "ratings2023": _Layout(FIELDS_2023, GENERATIONS["2023"]),
}
_ASIN: Final = re.compile(r"[0-9A-Z]{10}")  # user ids are longer


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read ratings files and, for titles, metadata files of the same generation.

    Raises:
        DataError: anything wrong in a file, a header of another format, or swapped columns.
    """
    layout = _LAYOUTS[section.format]
    files: Notes = {}
    bad = bad_lines(section)
    with Sink(scratch / INTERACTIONS_FILE) as sink:
        for name in section.reviews:
            path = locate(name)
            ratings = _read_ratings(path, section.format, layout, bad)
            files[name] = write_interactions(path, ratings, layout.fields, sink, bad=bad)
    items, notes = read_items(section, locate, layout.metadata, bad)
    return Source(sink.path, items, notes={"reviews": files, "metadata": notes, **bad.notes()})


def _read_ratings(path: Path, form: str, layout: _Layout, bad: BadLines) -> Iterator[Interactions]:
    fields, order = layout.fields, layout.order
    _require_header(path, form, order, read_header(path))
    ids = (fields.user, fields.item)
    kinds = Kinds(numbers=(fields.rating,), times=(fields.timestamp,), ids=ids)
    for index, cells in enumerate(read_cells(path, order, kinds=kinds, bad=bad)):
        if index == 0 and order:
            _require_order(path, cells, form, order)
        yield Interactions(
            users=cells.columns[fields.user],
            items=cells.columns[fields.item],
            ratings=cells.numbers[fields.rating],
            timestamps=cells.numbers[fields.timestamp],
            line_of=cells.line_of,
            clock=cells.clock,
        )


def _require_header(path: Path, form: str, order: tuple[str, ...] | None, found: list[str]) -> None:
    named = found[:4] == HEADER_2023
    if order is None and found != HEADER_2023:
        hint = '; this is format "split2023"' if named else ""
        wanted = ",".join(HEADER_2023)
        raise make_fault(
            path, 1, f"expected the header {wanted}, found {show_text(','.join(found))}{hint}"
        )
    if order is not None and named:
        raise make_fault(path, 1, f'a header as in format "ratings2023"; {form} files have none')


def _require_order(path: Path, cells: Cells, form: str, order: tuple[str, ...]) -> None:
    """Items are ten characters long and users longer: see whether it is the other way round."""
    items, users = cells.strings("item_id"), cells.strings("user_id")
    if _share_of_asins(users) > 0.5 > _share_of_asins(items):
        ordered = [name for name, layout in _LAYOUTS.items() if layout.order is not None]
        other = next(name for name in ordered if name != form)
        problem = f"users look like items and items like users; {form} files are {','.join(order)}"
        raise make_fault(path, cells.line_of(0), f'{problem}: is this "{other}"?')


def _share_of_asins(ids: list[str]) -> float:
    return sum(_ASIN.fullmatch(value) is not None for value in ids) / max(len(ids), 1)
