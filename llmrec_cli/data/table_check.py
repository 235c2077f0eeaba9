"""What readers of a prepared folder rely on, whoever wrote it: kinds of columns, ranges of indices.

A manifest vouches for files that llmrec wrote, and not for those of a folder that was edited by
hand.  Split files are judged by their schemas and statistics, without reading a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.data.columns import (
    DISLIKED,
    HISTORY,
    ITEM,
    ITEM_ID,
    NEGATIVES,
    ROW,
    TARGET,
    TITLE,
    TOKENS,
    USER_ID,
)
from llmrec_cli.data.table_file import ITEMS_SCHEMA, rows_schema
from llmrec_cli.errors import ArtefactError

_INDICES: Final = {TARGET: TARGET} | {
    name: f"{name}.list.element" for name in (HISTORY, NEGATIVES, DISLIKED)
}  # columns that name items of the catalogue, and what parquet calls them


def check_items(file: Path, items: pa.Table) -> None:
    """Refuse a catalogue that is none.

    Args:
        file: named in the message.
        items: the content of items.parquet.

    Raises:
        ArtefactError: columns of another kind; no items; indices that are not 0, 1, ... in order;
            an id that is missing or occurs twice; an item without a title and without tokens.
    """
    _check_columns(file, items.schema, ITEMS_SCHEMA)
    item_I = items[ITEM].to_numpy()
    if len(item_I) == 0:
        raise _odd(file, "no items")
    if items[ITEM].null_count or not np.array_equal(item_I, np.arange(len(item_I))):
        raise _odd(file, f"its column {ITEM} is not 0, 1, ... in order")
    ids = items[ITEM_ID]
    if ids.null_count or len(ids.unique()) != len(ids):
        raise _odd(file, f"its column {ITEM_ID} has an id twice, or none")
    nameless = items[TITLE].is_null().to_numpy() & items[TOKENS].is_null().to_numpy()
    if nameless.any():
        raise _odd(file, f"item {int(np.argmax(nameless))} has neither a title nor tokens")


def check_rows(file: Path, items: int) -> None:
    """Refuse a split file whose rows are none of this catalogue.

    Args:
        items: size of the catalogue.

    Raises:
        ArtefactError: no parquet file; columns of another kind; rows not numbered 0, 1, ...; a row
            without a user or target; an item outside of the catalogue.
    """
    try:
        with pq.ParquetFile(file) as opened:
            schema, metadata = opened.schema_arrow.remove_metadata(), opened.metadata
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ArtefactError(f"{file}: no readable parquet file ({reason})") from None
    _check_columns(file, schema, rows_schema(schema.names))
    _check_range(file, metadata, ROW, ROW, metadata.num_rows)
    for name, path in _INDICES.items():
        if name in schema.names:
            _check_range(file, metadata, name, path, items)
    for name in (ROW, USER_ID, TARGET):
        if any(found.null_count for found in _statistics(metadata, name)):
            raise _odd(file, f"its column {name} has rows without a value")


def _check_columns(file: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if found.names != expected.names:
        names = ", ".join(found.names)
        raise _odd(file, f"its columns are {names}, expected {', '.join(expected.names)}")
    for name in expected.names:
        if found.field(name).type != expected.field(name).type:
            kinds = f"{found.field(name).type}, expected {expected.field(name).type}"
            raise _odd(file, f"its column {name} is {kinds}")


def _check_range(file: Path, metadata: Any, name: str, path: str, size: int) -> None:
    for found in _statistics(metadata, path):
        if found.has_min_max and not (found.min >= 0 and found.max < size):
            at = found.min if found.min < 0 else found.max
            raise _odd(file, f"its column {name} has {at}, expected 0..{size - 1}")


def _statistics(metadata: Any, path: str) -> Iterator[Any]:
    """Those of a column in every row group."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for at in range(group.num_columns):
            column = group.column(at)
            if column.path_in_schema == path and column.statistics is not None:
                yield column.statistics


def _odd(file: Path, problem: str) -> ArtefactError:
    return ArtefactError(
        f"{file}: {problem}; not as llmrec prepare wrote it: remove {file.parent} and prepare again"
    )
