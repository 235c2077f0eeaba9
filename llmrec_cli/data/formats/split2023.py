"""The official split files of Amazon 2023 (``last_out`` and ``timestamp``, with history)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.amazon import FIELDS_2023, generation_of, read_items
from llmrec_cli.data.formats.base import ROW_SCHEMA, Locate, Notes, Source, note_missing_words
from llmrec_cli.data.formats.checks import (
    Clock,
    Interactions,
    check_interactions,
    count_missing_words,
)
from llmrec_cli.data.formats.delimited import Cells, Kinds, read_cells, read_header
from llmrec_cli.data.formats.parsing import make_fault, show_text
from llmrec_cli.data.schema import HISTORY, RATING, SPLITS, TARGET, TIMESTAMP, USER_ID
from llmrec_cli.errors import RecipeError

HEADER: Final = ["user_id", "parent_asin", "rating", "timestamp", "history"]
KINDS: Final = Kinds(
    numbers=("rating",), times=("timestamp",), ids=("user_id", "parent_asin", "history")
)


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read the three parts; a history is item ids joined by spaces, empty for a first purchase.

    Raises:
        DataError: anything wrong in a file.
        RecipeError: a split without files.
    """
    del scratch  # these sources fit in memory
    rows, notes = read_splits(section, locate, read_split_file, SPLITS)
    items, metadata = read_items(section, locate, generation_of(section))
    return Source(None, items, rows, {"splits": notes, "metadata": metadata})


def read_splits(
    section: DataSection,
    locate: Locate,
    read_one: Callable[[Path], tuple[pl.DataFrame, str]],
    needed: tuple[str, ...],
) -> tuple[dict[str, pl.DataFrame], Notes]:
    """Read every file of every split, in the order given.

    Args:
        section: names the files.
        locate: finds them.
        read_one: a file's rows and timestamp unit.
        needed: splits that must have files.

    Raises:
        RecipeError: a needed split without files.
    """
    rows: dict[str, pl.DataFrame] = {}
    notes: Notes = {}
    for split in needed:  # before anything is read
        if not getattr(section.splits, split):
            problem = f'format "{section.format}" needs {", ".join(needed)}'
            raise RecipeError(f"[data.splits] {split} is empty: {problem}")
    for split in SPLITS:
        names: tuple[str, ...] = getattr(section.splits, split)
        parts = [(name, *read_one(locate(name))) for name in names]
        if parts:
            rows[split] = pl.concat([frame for _, frame, _ in parts])
        notes[split] = {
            name: {"rows": frame.height, "timestamp": unit} | _note_ids(frame)
            for name, frame, unit in parts
        }
    return rows, notes


def _note_ids(rows: pl.DataFrame) -> Notes:
    """Ids of users and items that tables write for no value."""
    columns = {
        "user id": rows[USER_ID],
        "item id": pl.concat([rows[TARGET], rows[HISTORY].explode().drop_nulls()]),
    }
    arrays = {
        key: ids.to_arrow(compat_level=pl.CompatLevel.oldest()) for key, ids in columns.items()
    }
    return note_missing_words({key: count_missing_words(ids) for key, ids in arrays.items()})


def read_split_file(path: Path) -> tuple[pl.DataFrame, str]:
    """Rows of one split file (``ROW_SCHEMA``), and the unit that its timestamps came in."""
    found = read_header(path)
    if found != HEADER:
        hint = '; this is format "ratings2023"' if found == HEADER[:4] else ""
        problem = (
            f"expected the header {','.join(HEADER)}, found {show_text(','.join(found))}{hint}"
        )
        raise make_fault(path, 1, problem)
    clock, frames = None, []
    for cells in read_cells(path, kinds=KINDS):
        clock, frame = _parse_rows(path, cells, clock)
        frames.append(frame)
    if not sum(frame.height for frame in frames):
        raise make_fault(path, 1, "the file has a header and no rows")
    return pl.concat(frames), clock.name if clock else ""


def _parse_rows(path: Path, cells: Cells, clock: Clock | None) -> tuple[Clock | None, pl.DataFrame]:
    batch = Interactions(
        users=cells.columns["user_id"],
        items=cells.columns["parent_asin"],
        ratings=cells.numbers["rating"],
        timestamps=cells.numbers["timestamp"],
        line_of=cells.line_of,
        clock=cells.clock,
    )
    checked = check_interactions(path, batch, FIELDS_2023, clock)
    columns = {
        USER_ID: cells.strings("user_id"),
        HISTORY: [cell.split() for cell in cells.strings("history")],
        TARGET: cells.strings("parent_asin"),
        TIMESTAMP: checked.millisecond_N,
        RATING: checked.rating_N,
    }
    return checked.clock, pl.DataFrame(columns, schema=ROW_SCHEMA)
