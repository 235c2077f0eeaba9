"""What readers of a prepared folder rely on, whoever wrote it: kinds of columns, ranges of indices.

A manifest vouches for files that llmrec wrote, and not for those of a folder that was edited by
hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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

_NEEDED: Final = (ROW, USER_ID, HISTORY, TARGET)  # in every row
_INDICES: Final = (TARGET, HISTORY, NEGATIVES, DISLIKED)  # columns that name items of the catalogue


def check_items(file: Path, items: pa.Table) -> None:
    """Refuse a catalogue that is none.

    Args:
        file: named in the message.
        items: the content of items.parquet.

    Raises:
        ArtefactError: columns of another kind; no items; indices that are not 0, 1, ... in order;
            an id that is missing or occurs twice; an item without a title and without tokens;
            items with tokens beside items without.
    """
    _check_columns(file, items.schema, ITEMS_SCHEMA)
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


def check_rows(file: Path, items: int) -> None:
    """Refuse a split file whose rows are none of this catalogue; a row group is in memory at once.

    Args:
        items: size of the catalogue.

    Raises:
        ArtefactError: no parquet file; columns of another kind; rows not numbered 0, 1, ...; a row
            without a user, history or target; an item outside of the catalogue.
    """
    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            _check_columns(file, opened.schema_arrow.remove_metadata(), rows_schema(names))
            read = [name for name in names if name in (*_NEEDED, *_INDICES)]
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
