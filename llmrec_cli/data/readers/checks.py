"""Is this an interaction?  Ids there, rating 1..5, time plausible and in one unit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec_cli.data.readers.block import fault, shown
from llmrec_cli.errors import LineFault

Numbers = Sequence[float] | np.ndarray[Any, Any]

# 1990-01-01 .. 2100-01-01 UTC.  As seconds and as milliseconds the two ranges do not touch, so a
# timestamp names its own unit.
_FIRST, _LAST = 631_152_000, 4_102_444_800
_SCALE: Final = {"seconds": 1, "milliseconds": 1000}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


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
        users, items: ids, exactly as in the file: a list of strings or a pyarrow array.
        ratings: numbers, or None where the source has none.
        timestamps: numbers, or None where the order in the file is the time.
        line_of: file line (or row) of an index into these.
    """

    users: Any
    items: Any
    ratings: Numbers | None
    timestamps: Numbers | None
    line_of: Callable[[int], int]

    def only(self, indices: Sequence[int]) -> Interactions:
        """Some of them, in the order of ``indices``."""
        kept = np.asarray(indices, dtype=np.int64)

        def taken(column: Any) -> Any:
            if column is None or isinstance(column, np.ndarray):
                return None if column is None else column[kept]
            return column.take(kept) if isinstance(column, pa.Array) else [column[i] for i in kept]

        return Interactions(
            users=taken(self.users),
            items=taken(self.items),
            ratings=taken(self.ratings),
            timestamps=taken(self.timestamps),
            line_of=lambda index: self.line_of(int(kept[index])),
        )


def check(path: Path, batch: Interactions, fields: Fields) -> Interactions:
    """Check ids and ratings, and bring all columns into arrays (pyarrow, float64).

    Raises:
        DataError: an empty id, an id that is not valid Unicode, or a rating outside 1..5.
    """
    return replace(
        batch,
        users=_ids(path, batch, batch.users, fields.user),
        items=_ids(path, batch, batch.items, fields.item),
        ratings=_ratings(path, batch, fields.rating),
    )


def is_torn(text: str) -> bool:
    """Whether half of a surrogate pair is in a text: JSON can say it, no file can hold it."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def torn(path: Path, line: int, name: str, found: str, index: int | None = None) -> LineFault:
    """The error of an id that ``is_torn``."""
    problem = f'"{name}" is {shown(found)}, which is not valid Unicode'
    return fault(path, line, problem, index)


def _ids(path: Path, batch: Interactions, ids: Any, name: str) -> pa.Array:
    try:
        array = pa.array(ids, pa.string())
    except UnicodeEncodeError:
        index = next(i for i, value in enumerate(ids) if is_torn(value))
        raise torn(path, batch.line_of(index), name, ids[index], index) from None
    if pc.min(pc.binary_length(array)).as_py() == 0:
        index = array.to_pylist().index("")
        raise fault(path, batch.line_of(index), f'"{name}" is empty, expected an id', index)
    return array


def _ratings(path: Path, batch: Interactions, name: str) -> np.ndarray[Any, Any] | None:
    if batch.ratings is None:
        return None
    ratings = np.asarray(batch.ratings, dtype=np.float64)
    wrong = ~((ratings >= 1) & (ratings <= 5))  # true for NaN, too
    if wrong.any():
        index = int(wrong.argmax())
        problem = f'"{name}" is {ratings[index]:g}, expected a number 1..5'
        raise fault(path, batch.line_of(index), problem, index)
    return ratings


def milliseconds(
    path: Path, batch: Interactions, name: str, unit: str | None
) -> tuple[str | None, np.ndarray[Any, Any]]:
    """Timestamps of a batch as int64 ms, and the unit of the file they came from.

    Args:
        path, name: file and column, for messages.
        batch: its ``timestamps`` are not None.
        unit: of the file's timestamps before; None where there are none yet.

    Raises:
        DataError: a timestamp outside 1990..2100 in either unit, a fraction, or a change of unit.
    """
    try:
        values = np.asarray(batch.timestamps, dtype=np.float64)
    except OverflowError:  # a whole number that no float can hold
        values = np.array([float(f"{value}") for value in batch.timestamps or ()])
    if not len(values):
        return unit, values.astype(np.int64)
    unit = unit or _unit(float(values[0])) or "seconds"
    scale = _SCALE[unit]
    inside = (values >= _FIRST * scale) & (values < _LAST * scale)
    wrong = ~(inside & (values == np.floor(values)))
    if wrong.any():
        index = int(wrong.argmax())
        problem = _time_problem(name, float(values[index]), unit)
        raise fault(path, batch.line_of(index), problem, index)
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
