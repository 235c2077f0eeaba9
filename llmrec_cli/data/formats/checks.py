"""Checks that every format's interactions pass: ids, ratings, and times in one unit.

columns of a file -> check_interactions -> Checked (times in milliseconds), or bad lines
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmrec_cli.data.formats.parsing import (
    STRICT,
    BadLines,
    make_fault,
    show_text,
)
from llmrec_cli.errors import LineFault

# Times as files write them, brought to milliseconds without a loss of order.
#
# Numbers count from 1970-01-01 UTC.  Between 1990 and 2100 seconds, milliseconds, microseconds and
# nanoseconds do not overlap, so a number names its own unit, and the first one that lies in any of
# them decides for its file.  Dates are ISO 8601; without a zone they are UTC.


Ints = NDArray[np.int64]

_FIRST, _LAST = 631_152_000, 4_102_444_800  # seconds: 1990-01-01 .. 2100-01-01 UTC
_YEARS: Final = "between the years 1990 and 2100"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([T ]\S.*)?", re.ASCII)
_FINER: Final = re.compile(r"[.,]\d{6}(\d{1,3})", re.ASCII)  # digits behind the microseconds


@dataclass(frozen=True)
class Clock:
    """The unit of a file's times.

    Attributes:
        name: for the manifest and for messages.
        per_second: how many make a second.
    """

    name: str
    per_second: int

    def fits(self, value: float) -> bool:
        """Whether a number of this unit lies between 1990 and 2100."""
        return _FIRST * self.per_second <= value < _LAST * self.per_second


CLOCKS: Final = (
    Clock("seconds", 1),
    Clock("milliseconds", 10**3),
    Clock("microseconds", 10**6),
    Clock("nanoseconds", 10**9),
)
DATES: Final = Clock("ISO dates", 10**9)


@dataclass(frozen=True)
class Times:
    """The times of consecutive interactions.

    Attributes:
        clock: None where no time shows a unit.
        millisecond_N: whole milliseconds.
        finer_N: nanoseconds beyond those, 0..999,999.
        problems: index -> what is wrong with the time there.
    """

    clock: Clock | None
    millisecond_N: Ints
    finer_N: Ints
    problems: dict[int, str]


def to_milliseconds(values: Any, name: str, clock: Clock | None, stated: Clock | None) -> Times:
    """Bring the times of a batch to milliseconds.

    Args:
        values: numbers (a sequence, or a numpy or pyarrow array); None or null is no time.
        name: of the column, for messages.
        clock: of the file's times before; None where there are none yet.
        stated: the unit that the column's type or notation states; None: the numbers show it.
    """
    number_N, none_N = _to_numbers(values)
    if stated is not None and clock is not None and stated != clock:
        said = f'"{name}" has {stated.name}, but the lines before have {clock.name}'
        return _make_absent(number_N, clock, f"{said}; expected one unit")
    clock = stated or clock or _clock_of(number_N)
    used = clock or CLOCKS[0]
    first, last = _FIRST * used.per_second, _LAST * used.per_second
    wrong_N = none_N | ~((number_N >= first) & (number_N < last))
    problems = {
        int(at): _describe_problem(
            name, None if none_N[at] else number_N[at].item(), used, stated is not None
        )
        for at in np.flatnonzero(wrong_N)
    }
    if problems:
        number_N = np.where(wrong_N, first, number_N)
    return Times(clock, *_split_nanoseconds(number_N, used.per_second), problems)


def _to_numbers(values: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numbers as int64 or float64, and which of them are absent."""
    if isinstance(values, pa.Array):
        none_N = np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        filled = values.fill_null(0) if values.null_count else values
        return filled.to_numpy(zero_copy_only=False), none_N
    if isinstance(values, np.ndarray):
        return values, np.zeros(len(values), dtype=bool)
    number_N = np.asarray(values)
    none_N = np.zeros(len(values), dtype=bool)
    if number_N.dtype.kind not in "if":  # numbers that no 64 bits hold, or absent ones
        none_N = np.array([value is None for value in values], dtype=bool)
        floats = [np.nan if value is None else float(f"{value}") for value in values]
        number_N = np.array(floats, dtype=np.float64)
    return number_N, none_N


def _clock_of(number_N: NDArray[Any]) -> Clock | None:
    """The unit of the first number that lies in any."""
    inside_N = np.zeros(len(number_N), dtype=bool)
    for clock in CLOCKS:
        first, last = _FIRST * clock.per_second, _LAST * clock.per_second
        inside_N |= (number_N >= first) & (number_N < last)
    if not inside_N.any():
        return None
    value = number_N[int(inside_N.argmax())].item()
    return next(clock for clock in CLOCKS if clock.fits(value))


def _split_nanoseconds(number_N: NDArray[Any], per_second: int) -> tuple[Ints, Ints]:
    """Milliseconds and the nanoseconds beyond them; of a fraction, whole microseconds count."""
    whole_N = np.floor(number_N).astype(np.int64) if number_N.dtype.kind == "f" else number_N
    if per_second > 1000:
        scale = per_second // 1000
        millisecond_N = whole_N // scale
        return millisecond_N, (whole_N - millisecond_N * scale) * (10**6 // scale)
    millisecond_N = whole_N * (1000 // per_second)
    if number_N.dtype.kind != "f" or (part_N := number_N - whole_N).max(initial=0) == 0:
        return millisecond_N, np.zeros(len(number_N), np.int64)
    micro_N = np.rint(part_N * (10**6 // per_second)).astype(np.int64)
    return millisecond_N + micro_N // 1000, micro_N % 1000 * 1000


def _describe_problem(name: str, value: float | None, clock: Clock, stated: bool) -> str:
    if value is None:
        return f'"{name}" is empty, expected a time'
    said = f'"{name}" is {value if isinstance(value, int) else f"{value:.15g}"}'
    if stated:
        return f"{said} ({clock.name}), expected a time {_YEARS}"
    other = next((other for other in CLOCKS if other.fits(value)), None)
    if other and other != clock:
        return (
            f"{said}, in {other.name}, but the lines before are in {clock.name}; expected one unit"
        )
    units = ", ".join(clock.name for clock in CLOCKS[:-1]) + f" or {CLOCKS[-1].name}"
    return f"{said}, expected {units} {_YEARS}"


def _make_absent(number_N: NDArray[Any], clock: Clock, problem: str) -> Times:
    nought_N = np.zeros(len(number_N), np.int64)
    return Times(clock, nought_N, nought_N, dict.fromkeys(range(len(number_N)), problem))


def looks_like_date(cell: str) -> bool:
    """Whether a text begins as an ISO date does."""
    return _DATE.fullmatch(cell.strip()) is not None


def parse_dates(cells: Sequence[str | None], name: str) -> tuple[Ints, dict[int, str]]:
    """ISO dates as nanoseconds since 1970 (``DATES``), and index -> problem of those that are none.

    Args:
        cells: such as ``2018-06-30``, ``2018-06-30 12:00:00.5`` or ``2018-06-30T12:00:00+02:00``.
        name: of the column, for messages.
    """
    nanosecond_N = np.zeros(len(cells), np.int64)
    problems = {}
    for at, cell in enumerate(cells):
        try:
            nanosecond_N[at] = _parse_nanoseconds((cell or "").strip())
        except ValueError as error:
            problems[at] = f'"{name}" is {show_text(cell or "")}, expected {error}'
    return nanosecond_N, problems


def _parse_nanoseconds(cell: str) -> int:
    if not _DATE.fullmatch(cell):
        raise ValueError("an ISO date such as 2018-06-30, as the other lines have")
    try:
        moment = datetime.fromisoformat(cell)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        micros = (moment - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise ValueError("an ISO date such as 2018-06-30T12:00:00Z") from None
    if not _FIRST * 10**6 <= micros < _LAST * 10**6:
        raise ValueError(f"a date {_YEARS}")
    finer = _FINER.search(cell)
    return micros * 1000 + (int(finer[1].ljust(3, "0")) if finer else 0)


# Checks of an interaction: ids, rating on its scale, plausible time in one unit.


Numbers = Any  # a sequence of numbers and None, or a numpy or pyarrow array
Floats = NDArray[np.float64]

AMAZON_SCALE: Final = (1.0, 5.0)
MISSING_WORDS: Final = frozenset(
    r"nan NaN -nan -NaN None NULL null NA N/A n/a <NA> #N/A #NA \N".split()
)
"""How tables write no value: what pandas reads as none by default, and the \\N of databases."""
_LONGEST_WORD: Final = max(map(len, MISSING_WORDS))
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


def check_interactions(
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
    for index, problem in sorted(problems.found.items()):
        bad.skip(make_fault(path, batch.line_of(index), problem, index))
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
    return make_fault(path, line, _describe_torn(name, found), index)


def _describe_torn(name: str, found: str) -> str:
    return f'"{name}" is {show_text(found)}, which is not valid Unicode'


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


def count_missing_words(ids: pa.Array | pa.ChunkedArray) -> Counter[str]:
    """How often which of ``MISSING_WORDS`` is an id.  Ids are exact texts, so it is one."""
    shortest = pc.min(pc.binary_length(ids)).as_py()
    if shortest is None or shortest > _LONGEST_WORD:
        return Counter()
    found = ids.filter(pc.is_in(ids, value_set=pa.array(MISSING_WORDS, ids.type)))
    return Counter(found.to_pylist())


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
