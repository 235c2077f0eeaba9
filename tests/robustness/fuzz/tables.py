"""Parquet files whose columns are of another type than expected; bytes alone rarely get there."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

Change = Callable[[pa.Array], pa.Array]


def _each(make: Callable[[int], Any], kind: pa.DataType) -> Change:
    return lambda column: pa.array([make(n) for n in range(len(column))], kind)


def _some_null(column: pa.Array) -> pa.Array:
    return pa.array([None if n % 3 == 0 else value for n, value in enumerate(column.to_pylist())])


def _text_of(*words: str) -> Change:
    return _each(lambda n: words[n % len(words)], pa.string())


TABLES: Final[tuple[Change | None, ...]] = (
    None,
    _some_null,
    lambda column: column.dictionary_encode(),
    lambda column: pa.nulls(len(column)),
    lambda column: pa.nulls(len(column), pa.string()),
    lambda column: pa.array([[value] for value in column.to_pylist()]),
    lambda column: pa.array([{"a": value} for value in column.to_pylist()]),
    lambda column: column.cast(pa.large_string()) if pa.types.is_string(column.type) else column,
    lambda column: column.cast(pa.string_view()) if pa.types.is_string(column.type) else column,
    _each(lambda n: n, pa.int8()),
    _each(lambda n: 2**64 - 1 - n, pa.uint64()),
    _each(lambda n: n / 2, pa.float64()),
    _each(lambda n: n / 2, pa.float16()),
    _each(lambda n: float("nan") if n % 2 else float("inf"), pa.float32()),
    _each(lambda n: n % 2 == 0, pa.bool_()),
    _each(lambda n: Decimal(n), pa.decimal128(30, 4)),
    _each(lambda n: b"\xff\x00" * n, pa.binary()),
    _each(lambda n: 1_500_000_000_000_000_000 + n, pa.timestamp("ns", "UTC")),
    _each(lambda n: 2**50 + n, pa.timestamp("s")),
    _each(lambda n: n, pa.date32()),
    _each(lambda n: n, pa.duration("s")),
    _each(lambda n: n, pa.time64("us")),
    _text_of("", "a", " "),
    _text_of("\0", "nan", "\u2028", "\ufeff"),
    _text_of("1" * 5000, "x" * 5000),
    lambda column: column.slice(0, 0),
)


def parquet(table: pa.Table, change: Change | None, *, only: int | None = None) -> bytes:
    """A parquet file, its columns changed.

    Args:
        only: number of the one column that is changed; None: all of them.
    """
    columns = [column.combine_chunks() for column in table.columns]
    if change is not None:
        places = range(len(columns)) if only is None else [only % len(columns)]
        for place in places:
            with contextlib.suppress(pa.ArrowNotImplementedError):  # a type it does not go with
                columns[place] = change(columns[place])
        shortest = min(map(len, columns))
        columns = [column.slice(0, shortest) for column in columns]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, names=table.column_names), out)
    return out.getvalue()
