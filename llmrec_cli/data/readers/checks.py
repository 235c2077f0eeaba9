"""Is this an interaction?  Ids there, rating on its scale, time plausible and in one unit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmrec_cli.data.readers.block import STRICT, BadLines, fault, shown
from llmrec_cli.data.readers.times import Clock, Ints, to_milliseconds
from llmrec_cli.errors import LineFault

Numbers = Any  # a sequence of numbers and None, or a numpy or pyarrow array
Floats = NDArray[np.float64]

AMAZON_SCALE: Final = (1.0, 5.0)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Fields:
    """What a file calls its columns, for messages, and the scale of its ratings.

    Attributes:
        scale: lowest and highest rating that the format promises; None: any finite number is a
            rating, and an interaction may lack one.
    """

    user: str
    item: str
    rating: str
    timestamp: str
    scale: tuple[float, float] | None = AMAZON_SCALE


@dataclass(frozen=True)
class Interactions:
    """Some consecutive interactions of one file.

    Attributes:
        users, items: ids, exactly as in the file: a list of strings or a pyarrow array.
        ratings: numbers (null or None: not rated), or None where the source has none.
        timestamps: numbers, or None where the order in the file is the time.
        line_of: file line (or row) of an index into these.
        clock: unit of the timestamps where the file states it; None: the numbers show it.
    """

    users: Any
    items: Any
    ratings: Numbers | None
    timestamps: Numbers | None
    line_of: Callable[[int], int]
    clock: Clock | None = None


@dataclass(frozen=True)
class Checked:
    """Interactions that are right.

    Attributes:
        users, items: pyarrow arrays of strings.
        rating_N: float64, NaN where an interaction is not rated; None where the source has none.
        millisecond_N: None where the order in the file is the time.
        finer_N: nanoseconds beyond the milliseconds, 0..999,999.
        clock: of the file's times; None where there are none yet.
    """

    users: pa.Array
    items: pa.Array
    rating_N: Floats | None
    millisecond_N: Ints | None
    finer_N: Ints | None
    clock: Clock | None


@dataclass
class _Problems:
    """What is wrong with which interaction; the first thing that is found counts."""

    found: dict[int, str] = field(default_factory=dict)

    def add(self, index: int, problem: str) -> None:
        self.found.setdefault(index, problem)


def check(
    path: Path,
    batch: Interactions,
    fields: Fields,
    clock: Clock | None = None,
    bad: BadLines = STRICT,
) -> Checked:
    """Check a batch, bring its columns into arrays, and leave out what ``bad`` lets go.

    Args:
        path, fields: file and columns, for messages.
        clock: of the file's times before; None where there are none yet.

    Raises:
        DataError: an empty id, an id that is not valid Unicode, a rating that is no number or off
            its scale, a time outside 1990..2100, or a change of unit.
    """
    problems = _Problems()
    users = _check_ids(batch.users, fields.user, problems)
    items = _check_ids(batch.items, fields.item, problems)
    rating_N = _check_ratings(batch.ratings, fields, problems)
    millisecond_N = finer_N = None
    if batch.timestamps is not None:
        times = to_milliseconds(batch.timestamps, fields.timestamp, clock, batch.clock)
        for index, problem in times.problems.items():
            problems.add(index, problem)
        clock, millisecond_N, finer_N = times.clock, times.millisecond_N, times.finer_N
    if not problems.found:
        return Checked(users, items, rating_N, millisecond_N, finer_N, clock)
    for index, problem in problems.found.items():
        bad.skip(fault(path, batch.line_of(index), problem, index))
    kept_N = np.ones(len(users), dtype=bool)
    kept_N[list(problems.found)] = False
    kept = pa.array(kept_N)
    return Checked(
        users.filter(kept),
        items.filter(kept),
        None if rating_N is None else rating_N[kept_N],
        None if millisecond_N is None else millisecond_N[kept_N],
        None if finer_N is None else finer_N[kept_N],
        clock,
    )


def is_torn(text: str) -> bool:
    """Whether half of a surrogate pair is in a text: JSON can say it, no file can hold it."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def torn(path: Path, line: int, name: str, found: str, index: int | None = None) -> LineFault:
    """The error of an id that ``is_torn``."""
    return fault(path, line, _describe_torn(name, found), index)


def _describe_torn(name: str, found: str) -> str:
    return f'"{name}" is {shown(found)}, which is not valid Unicode'


def _check_ids(ids: Any, name: str, problems: _Problems) -> pa.Array:
    try:
        array = pa.array(ids, pa.string())
    except UnicodeEncodeError:
        for index, value in enumerate(ids):
            if is_torn(value):
                problems.add(index, _describe_torn(name, value))
        array = pa.array(["" if is_torn(value) else value for value in ids], pa.string())
    length = pc.binary_length(array)
    if pc.min(length).as_py() == 0:
        for index in np.flatnonzero(length.to_numpy(zero_copy_only=False) == 0).tolist():
            problems.add(index, f'"{name}" is empty, expected an id')
    return array


def _check_ratings(ratings: Numbers | None, fields: Fields, problems: _Problems) -> Floats | None:
    if ratings is None:
        return None
    column = pa.array(ratings, pa.float64())
    rating_N: Floats = column.to_numpy(zero_copy_only=False)
    low, high = fields.scale or (-np.inf, np.inf)
    wrong_N = ~(np.isfinite(rating_N) & (rating_N >= low) & (rating_N <= high))
    if fields.scale is None and column.null_count:
        wrong_N &= ~column.is_null().to_numpy(zero_copy_only=False)
    expected = "a finite number"
    if fields.scale is not None:
        expected = (
            f'a number {low:g}..{high:g}; ratings on another scale need format "interactions"'
        )
    for index in np.flatnonzero(wrong_N).tolist():
        problems.add(index, f'"{fields.rating}" is {rating_N[index]:g}, expected {expected}')
    return rating_N
