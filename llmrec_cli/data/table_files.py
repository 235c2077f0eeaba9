"""The parquet files of a prepared folder: written with a fixed layout, checked when read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_cli.data.schema import (
    BRAND,
    CHOSEN_FIRST,
    COUNT,
    DISLIKED,
    HISTORY,
    HISTORY_COLUMNS,
    HISTORY_RATING,
    HISTORY_TIMESTAMP,
    ITEM,
    ITEM_FIELDS,
    ITEM_ID,
    NEGATIVES,
    RATING,
    ROW,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER,
    USER_ID,
)
from llmrec_cli.errors import ArtefactError

# Parquet files of a prepared folder: schemas, and a deterministic writer.


ROW_GROUP: Final = 1 << 18  # rows; at most these many are held back by a writer

ITEMS_SCHEMA: Final = pa.schema(
    {
        ITEM: pa.int32(),
        ITEM_ID: pa.string(),
        TITLE: pa.string(),
        BRAND: pa.string(),
        TOKENS: pa.list_(pa.string()),
        COUNT: pa.int32(),
    }
)
FIELDS_SCHEMA: Final = pa.schema(  # written after ITEMS_SCHEMA where ``data.fields`` asks for them
    {name: pa.string() for name in ITEM_FIELDS if name != BRAND}
)
ROWS_SCHEMA: Final = pa.schema(
    {
        ROW: pa.int32(),
        USER: pa.int32(),
        USER_ID: pa.string(),
        HISTORY: pa.list_(pa.int32()),
        TARGET: pa.int32(),
        TIMESTAMP: pa.int64(),
        RATING: pa.float64(),
    }
)
OPTIONAL_SCHEMA: Final = pa.schema(  # written after ROWS_SCHEMA where the rows have them
    {
        NEGATIVES: pa.list_(pa.int32()),
        CHOSEN_FIRST: pa.list_(pa.bool_()),
        DISLIKED: pa.list_(pa.int32()),
        HISTORY_RATING: pa.list_(pa.float64()),
        HISTORY_TIMESTAMP: pa.list_(pa.int64()),
    }
)


def items_schema(columns: Iterable[str]) -> pa.Schema:
    """The schema of a catalogue with ``columns``."""
    present = set(columns)
    return pa.schema([*ITEMS_SCHEMA, *(f for f in FIELDS_SCHEMA if f.name in present)])


def rows_schema(columns: Iterable[str]) -> pa.Schema:
    """The schema of a split file whose rows have ``columns``."""
    present = set(columns)
    return pa.schema([*ROWS_SCHEMA, *(f for f in OPTIONAL_SCHEMA if f.name in present)])


class TableFile:
    """Context manager around a parquet file that takes rows in portions of any size.

    Row groups, pages and encodings depend on the rows and their order alone, not on the portions or
    their origin.  Up to ``ROW_GROUP`` rows are in memory.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Open ``path`` for writing; a column ROW of the schema is numbered here, from 0."""
        self.path = path
        self.rows = 0
        self._schema = schema
        self._pending: list[pa.Table] = []
        self._files = ExitStack()

    def __enter__(self) -> TableFile:
        """Create the file."""
        self._out = self._files.enter_context(self.path.open("wb"))
        self._writer = self._files.enter_context(
            pq.ParquetWriter(
                self._out,
                self._schema,
                version="2.6",
                compression="zstd",
                compression_level=3,
                data_page_version="1.0",
            )
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file and bring it to the disk; after an error, only close it."""
        with self._files:
            if kind is None:
                if self._pending:
                    self._write(pa.concat_tables(self._pending))
                self._writer.close()
                self._out.flush()
                os.fsync(self._out.fileno())

    def append(self, rows: pl.DataFrame) -> None:
        """Add rows with the columns of the schema, ROW apart."""
        numbers = pl.int_range(self.rows, self.rows + len(rows), dtype=pl.Int32, eager=True)
        numbered = rows.with_columns(numbers.alias(ROW)) if ROW in self._schema.names else rows
        table = numbered.select(self._schema.names).to_arrow().cast(self._schema)
        self.rows += len(rows)
        self._pending.append(table)
        if sum(map(len, self._pending)) >= ROW_GROUP:
            whole = pa.concat_tables(self._pending)
            full = len(whole) - len(whole) % ROW_GROUP
            self._write(whole[:full])
            self._pending = [whole[full:]]

    def _write(self, rows: pa.Table) -> None:
        """In one piece per row group: where a piece ends, the writer may begin a page."""
        for first in range(0, len(rows), ROW_GROUP):
            group = rows[first : first + ROW_GROUP].combine_chunks()
            self._writer.write_table(group, row_group_size=ROW_GROUP)


# Checks of a prepared folder when it is read: types of columns, ranges of indices.
#
# The manifest protects files that llmrec wrote, but not a folder that was edited by hand.


_NEEDED: Final = (ROW, USER_ID, HISTORY, TARGET)  # in every row
_INDICES: Final = (TARGET, HISTORY, NEGATIVES, DISLIKED)  # columns that name items of the catalogue
_BESIDE: Final = tuple(HISTORY_COLUMNS.values())  # columns with a value for each item of HISTORY


def check_items(file: Path, items: pa.Table) -> None:
    """Refuse a table that is not a catalogue.

    Args:
        file: named in the message.
        items: the content of items.parquet.

    Raises:
        ArtefactError: columns of another kind; no items; indices that are not 0, 1, ... in order;
            an id that is missing or occurs twice; an item without a title and without tokens;
            items with tokens beside items without.
    """
    _check_columns(file, items.schema, items_schema(items.column_names))
    item_I = items[ITEM].to_numpy()
    if len(item_I) == 0:
        raise _make_error(file, "no items")
    if items[ITEM].null_count or not np.array_equal(item_I, np.arange(len(item_I))):
        raise _make_error(file, f"its column {ITEM} is not 0, 1, ... in order")
    ids = items[ITEM_ID]
    if ids.null_count or len(ids.unique()) != len(ids):
        raise _make_error(file, f"its column {ITEM_ID} has an id twice, or none")
    untitled, tokenless = items[TITLE].is_null().to_numpy(), items[TOKENS].is_null().to_numpy()
    if (untitled & tokenless).any():
        at = int(np.argmax(untitled & tokenless))
        raise _make_error(file, f"item {at} has neither a title nor tokens")
    if tokenless.any() and not tokenless.all():
        raise _make_error(file, f"item {int(np.argmax(tokenless))} has no tokens, and others have")


def check_table_rows(file: Path, items: int) -> None:
    """Refuse a split file that does not fit this catalogue; one row group is in memory at a time.

    Args:
        items: size of the catalogue.

    Raises:
        ArtefactError: no parquet file; columns of another kind; rows not numbered 0, 1, ...; a row
            without a user, history or target; an item outside of the catalogue; ratings or times
            that are not those of the history's items.
    """
    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            _check_columns(file, opened.schema_arrow.remove_metadata(), rows_schema(names))
            read = [name for name in names if name in (*_NEEDED, *_INDICES, *_BESIDE)]
            first = 0
            for number in range(opened.num_row_groups):
                group = opened.read_row_group(number, columns=read)
                _check_group(file, group, first, items)
                first += len(group)
    except MemoryError:  # Arrow has a kind of its own
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ArtefactError(f"{file}: no readable parquet file ({reason})") from None


def _check_group(file: Path, rows: pa.Table, first: int, items: int) -> None:
    """Rows from number ``first`` on."""
    for name in _NEEDED:
        if rows[name].null_count:
            raise _make_error(file, f"its column {name} has rows without a value")
    if not np.array_equal(rows[ROW].to_numpy(), np.arange(first, first + len(rows))):
        raise _make_error(file, f"its column {ROW} is not 0, 1, ... in order")
    for name in (name for name in _INDICES if name in rows.column_names):
        column = rows[name]
        named = pc.list_flatten(column) if pa.types.is_list(column.type) else column
        low, high = pc.min_max(named).as_py().values()
        if named.null_count or (low is not None and (low < 0 or high >= items)):
            found = "null" if named.null_count else low if low < 0 else high
            raise _make_error(file, f"its column {name} has {found}, expected 0..{items - 1}")
    for name in (name for name in _BESIDE if name in rows.column_names):
        lists = rows[name]
        if lists.null_count or not pc.list_value_length(lists).equals(
            pc.list_value_length(rows[HISTORY])
        ):
            raise _make_error(file, f"its column {name} has not one value for each item of history")
        if name == HISTORY_TIMESTAMP and pc.list_flatten(lists).null_count:
            raise _make_error(file, f"its column {name} has items without a time")


def _check_columns(file: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if found.names != expected.names:
        names = ", ".join(found.names)
        raise _make_error(file, f"its columns are {names}, expected {', '.join(expected.names)}")
    for name in expected.names:
        if found.field(name).type != expected.field(name).type:
            kinds = f"{found.field(name).type}, expected {expected.field(name).type}"
            raise _make_error(file, f"its column {name} is {kinds}")


def _make_error(file: Path, problem: str) -> ArtefactError:
    return ArtefactError(
        f"{file}: {problem}; not as llmrec prepare wrote it: remove {file.parent} and prepare again"
    )
