"""Parquet files of a prepared folder: schemas, and a writer whose bytes follow from the rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.data.columns import (
    BRAND,
    CHOSEN_FIRST,
    COUNT,
    DISLIKED,
    HISTORY,
    ITEM,
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
    }
)


def rows_schema(columns: Iterable[str]) -> pa.Schema:
    """The schema of a split file whose rows have ``columns``."""
    present = set(columns)
    return pa.schema([*ROWS_SCHEMA, *(f for f in OPTIONAL_SCHEMA if f.name in present)])


class TableFile:
    """Context manager around a parquet file that takes rows in portions of any size.

    Row groups, pages and encodings depend on the rows and their order alone, never on the portions
    or on who made them.  Up to ``ROW_GROUP`` rows are in memory.
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
