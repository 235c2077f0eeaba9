"""Interactions on their way to parquet: checked, in milliseconds, in bounded memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.data.columns import ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.data.readers.lines import fault, shown
from llmrec_cli.data.readers.source import Notes
from llmrec_cli.errors import MachineError

SCHEMA: Final = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (RATING, pa.float64()),
        (TIMESTAMP, pa.int64()),
        (POSITION, pa.int64()),
    ]
)
ROW_GROUP: Final = 1 << 16  # rows

# 1990-01-01 .. 2100-01-01 UTC.  As seconds and as milliseconds the two ranges do not touch, so a
# timestamp names its own unit.
_FIRST, _LAST = 631_152_000, 4_102_444_800
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SCALE: Final = {"seconds": 1, "milliseconds": 1000}


@dataclass(frozen=True)
class Fields:
    """What a file calls its columns, for messages."""

    user: str
    item: str
    rating: str
    timestamp: str


@dataclass(frozen=True)
class Interactions:
    """Some consecutive interactions of one file.

    Attributes:
        users, items: ids, exactly as in the file.
        ratings: numbers, or None where the source has none.
        timestamps: numbers, or None where the order in the file is the time.
        line_of: file line (or row) of an index into these.
    """

    users: Sequence[str]
    items: Sequence[str]
    ratings: Sequence[float] | np.ndarray[Any, Any] | None
    timestamps: Sequence[float] | np.ndarray[Any, Any] | None
    line_of: Callable[[int], int]


class Sink:
    """Context manager around the parquet file; it appears under its name only when complete."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for writing, under a temporary name beside it."""
        self.path = path
        self.count = 0
        self._part = path.with_name(path.name + ".part")
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        try:
            self._writer = pq.ParquetWriter(
                self._part, SCHEMA, compression="lz4", use_dictionary=False
            )
        except OSError as error:
            raise _unwritable(path, error) from error

    def __enter__(self) -> Sink:
        """Nothing more to do: the file is open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish the file, or leave nothing behind."""
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                os.replace(self._part, self.path)
        except OSError as trouble:
            if kind is None:
                raise _unwritable(self.path, trouble) from trouble
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, batch: Interactions, times: np.ndarray[Any, Any]) -> None:
        """Append checked interactions at ``times`` (ms); positions continue over all files."""
        rows = len(batch.users)
        rating = pa.nulls(rows, pa.float64()) if batch.ratings is None else batch.ratings
        columns = [
            batch.users,
            batch.items,
            rating,
            times,
            np.arange(self.count, self.count + rows),
        ]
        arrays = [pa.array(c, type_) for c, type_ in zip(columns, SCHEMA.types, strict=True)]
        self._pending.append(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self.count += rows
        self._pending_rows += rows
        if self._pending_rows >= ROW_GROUP:
            try:
                self._flush()
            except OSError as error:
                raise _unwritable(self.path, error) from error

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
        self._pending, self._pending_rows = [], 0


def _unwritable(path: Path, error: OSError) -> MachineError:
    return MachineError(f"{path}: cannot be written: {error.strerror or error}")


def deliver(
    path: Path,
    batches: Iterable[Interactions],
    fields: Fields,
    sink: Sink,
    calendar: bool = True,
) -> Notes:
    """Check one file's interactions, bring their times to milliseconds and write them.

    Args:
        path: the file, for messages.
        batches: its interactions, in order.
        fields: what the file calls its columns.
        sink: where they go.
        calendar: timestamps are dates; False takes them as they are (an order, not a time).

    Returns:
        Counts and the timestamp unit.

    Raises:
        DataError: empty id, rating outside 1..5, timestamp outside 1990..2100, mixed units, or no
            interactions at all.
    """
    unit, before = None, sink.count
    for batch in batches:
        if calendar and batch.timestamps is not None:
            unit, times = check(path, batch, fields, unit)
        else:
            check_ids(path, batch, fields)
            order = np.arange(sink.count, sink.count + len(batch.users))
            times = order if batch.timestamps is None else np.asarray(batch.timestamps)
        sink.write(batch, times)
    if sink.count == before:
        raise fault(path, 1, "the file has no interactions")
    return {"interactions": sink.count - before, "timestamp": unit or "order in the file"}


def check(
    path: Path, batch: Interactions, fields: Fields, unit: str | None
) -> tuple[str | None, np.ndarray[Any, Any]]:
    """Check a batch whole.

    Args:
        path, fields: for messages.
        batch: what to check.
        unit: of the timestamps before in this file; None: none yet.

    Returns:
        The unit of this file's timestamps, and the timestamps as int64 milliseconds.

    Raises:
        DataError: as ``deliver``.
    """
    check_ids(path, batch, fields)
    _check_ratings(path, batch, fields.rating)
    return milliseconds(path, batch, fields.timestamp, unit)


def check_ids(path: Path, batch: Interactions, fields: Fields) -> None:
    """Refuse empty ids and ids that no UTF-8 file can hold."""
    for name, ids in ((fields.user, batch.users), (fields.item, batch.items)):
        if not all(ids):
            index = next(i for i, value in enumerate(ids) if not value)
            raise fault(path, batch.line_of(index), f'"{name}" is empty, expected an id')
        try:
            "".join(ids).encode()
        except UnicodeEncodeError:
            index = next(i for i, value in enumerate(ids) if _SURROGATE.search(value))
            problem = f'"{name}" is {shown(ids[index])}, which is not valid Unicode'
            raise fault(path, batch.line_of(index), problem) from None


def _check_ratings(path: Path, batch: Interactions, name: str) -> None:
    if batch.ratings is None:
        return
    ratings = np.asarray(batch.ratings, dtype=np.float64)
    wrong = ~((ratings >= 1) & (ratings <= 5))  # true for NaN, too
    if wrong.any():
        index = int(wrong.argmax())
        problem = f'"{name}" is {ratings[index]:g}, expected a number 1..5'
        raise fault(path, batch.line_of(index), problem)


def milliseconds(
    path: Path, batch: Interactions, name: str, unit: str | None
) -> tuple[str | None, np.ndarray[Any, Any]]:
    """Timestamps of a batch as int64 ms, and their unit: found here, or as ``unit`` says.

    Raises:
        DataError: a timestamp outside 1990..2100 in either unit, a fraction, or a change of unit.
    """
    values = np.asarray(batch.timestamps, dtype=np.float64)
    if not len(values):
        return unit, values.astype(np.int64)
    unit = unit or _unit(float(values[0])) or "seconds"
    scale = _SCALE[unit]
    wrong = ~((values >= _FIRST * scale) & (values < _LAST * scale) & (values % 1 == 0))
    if wrong.any():
        index = int(wrong.argmax())
        raise fault(path, batch.line_of(index), _time_problem(name, float(values[index]), unit))
    return unit, values.astype(np.int64) * (1000 // scale)


def _unit(value: float) -> str | None:
    fits = [unit for unit, s in _SCALE.items() if _FIRST * s <= value < _LAST * s]
    return fits[0] if fits else None


def _time_problem(name: str, value: float, unit: str) -> str:
    said = f'"{name}" is {value:.15g}'
    other = _unit(value)
    if other and other != unit:
        return f"{said}, in {other}, but the lines before are in {unit}; expected one unit"
    return f"{said}, expected whole seconds or milliseconds between the years 1990 and 2100"
