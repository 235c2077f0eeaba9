"""CSV and parquet files as columns, and the checks that every format's columns pass."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.data.formats.parsing import (
    STRICT,
    BadLines,
    Block,
    Shape,
    first_block,
    make_fault,
    only_beginnings,
    read_blocks,
    read_head,
    read_records,
    show_text,
    split_lines,
)
from llmrec_cli.errors import DataError, LineFault, MachineError

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
    for index, problem in problems.found.items():
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


# CSV text as columns of strings.  Ids are never mistaken for numbers, ``NA`` is never null.
#
# As with JSON lines, pyarrow reads whole blocks. A block with quotes, or one that pyarrow refuses,
# is read record by record.
#
# A record ends at a line end outside of quotes (RFC 4180), so a quoted cell may hold line breaks.
# If the quotes of a record are broken, its end is unknown. Its first line is then bad. Each
# following line is taken as part of it, and is bad too. This ends at a line that closes the quote,
# or opens quotes where none could close, or has all cells with numbers in the columns of numbers.


_NUMBER: Final = re.compile(r"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*")
_PLAIN_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"  # of Arrow's RE2
_BREAK: Final = re.compile(r"[\r\n]")
_ROUNDED: Final = 2**53  # from here on float64 does not hold every whole number
_OPEN: Final = "unexpected end of data"  # what the csv module says of a quote that is not closed

Problems = dict[int, str]  # index of a record -> what is wrong with it


@dataclass(frozen=True)
class Kinds:
    """What the cells of some columns must be; the others are any text.

    Attributes:
        numbers: finite decimal numbers.
        optional: those of them that may be empty.
        times: numbers, or all of them ISO dates.
        ids: without line breaks.
    """

    numbers: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


TEXTS: Final = Kinds()


@dataclass(frozen=True)
class Cells:
    """Consecutive records as columns.

    Attributes:
        columns: all columns, as strings.
        numbers: columns of numbers and times: float64, or int64 of times; null where empty.
        line_of: the line on which a record begins, by its index.
        clock: ``DATES`` where the times are ISO dates.
    """

    columns: dict[str, pa.Array]
    numbers: dict[str, pa.Array]
    line_of: Callable[[int], int]
    clock: Clock | None = None

    def strings(self, name: str) -> list[str]:
        """A column as Python strings."""
        values: list[str] = self.columns[name].to_pylist()
        return values


def read_cells(
    path: Path,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    kinds: Kinds = TEXTS,
    bad: BadLines = STRICT,
) -> Iterator[Cells]:
    """Stream a CSV file, plain or gzip.

    Args:
        path: the file.
        names: the columns of a file without a header; None reads them from the first line.
        delimiter: one character between cells.
        kinds: what the cells must be.
        bad: what becomes of records that are wrong.

    Raises:
        DataError: see ``lines.blocks``; and a record with too few or too many cells or with broken
            quotes, a cell that is not of its kind, or a header with repeated names.
    """
    stream = read_blocks(path, bad)
    if names is None:
        names, first = _split_header(next(stream), delimiter)
        stream = chain([first] if first.data else [], stream)
    columns = tuple(names)
    records = _Records(columns, delimiter, kinds, bad)
    dates: bool | None = None
    for block, last in _with_last(stream):
        fast = None if records.pending else _split_plainly(block, columns, delimiter, bad)
        cells = _convert_cells(path, *(fast or records.cut(block, last)), kinds, bad, dates)
        if dates is None and kinds.times and len(cells.numbers[kinds.times[0]]):
            dates = cells.clock is DATES
        yield cells


def _with_last(stream: Iterator[Block]) -> Iterator[tuple[Block, bool]]:
    """Every block, and whether it is the last one."""
    before = None
    for block in stream:
        if before is not None:
            yield before, False
        before = block
    if before is not None:
        yield before, True


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """The column names in the first line of a CSV file; an index column's may be empty."""
    return _split_header(first_block(path), delimiter)[0]


def _split_header(block: Block, delimiter: str) -> tuple[list[str], Block]:
    line, _, rest = block.data.partition(b"\n")
    if line.lstrip().startswith((b"{", b"[")):
        raise make_fault(
            block.path, block.first, f"JSON, expected CSV; found {show_text(line.decode())}"
        )
    cells = _whole_line(line.removesuffix(b"\r").decode(), delimiter)
    if isinstance(cells, str):
        raise _no_csv(block.path, block.first, cells, line)
    names = [name.strip() for name in cells]
    if len(set(names)) < len(names) or not all(names[1:]) or names == [""]:
        raise make_fault(
            block.path, block.first, f"empty or repeated column names: {show_text(names, 120)}"
        )
    return names, replace(block, first=block.first + 1, count=block.count - 1, data=rest)


Columns = dict[str, pa.Array]
LineOf = Callable[[int], int]


def _split_plainly(
    block: Block, names: Sequence[str], delimiter: str, bad: BadLines
) -> tuple[Columns, LineOf] | None:
    """The records of a block without quotes, a line each; None where there may be others."""
    data = block.data.replace(b"\r\n", b"\n") if b"\r" in block.data else block.data
    if b'"' in data or b"\r" in data:
        return None
    columns = _parse_csv(data, names, delimiter)
    if columns is None and bad.limit:
        block = _without_short(replace(block, data=data), names, delimiter, bad)
        columns = _parse_csv(block.data, names, delimiter)
    return None if columns is None else (columns, block.line_of)


def _parse_csv(data: bytes, names: Sequence[str], delimiter: str) -> Columns | None:
    if not data.strip():
        return {name: pa.array([], pa.string()) for name in names}
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            pacsv.ParseOptions(delimiter=delimiter, quote_char=False),
            pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    return {name: table.column(name).combine_chunks() for name in names}


def _without_short(block: Block, names: Sequence[str], delimiter: str, bad: BadLines) -> Block:
    """The block without the lines that have too few or too many cells; none has quotes."""
    byte_N = np.frombuffer(block.data, dtype=np.uint8)
    end_L = np.append(np.flatnonzero(byte_N == ord("\n")), len(byte_N))
    found_L = np.diff(np.searchsorted(np.flatnonzero(byte_N == ord(delimiter)), end_L), prepend=0)
    lines, left_out = block.data.split(b"\n"), []
    for at in np.flatnonzero(found_L != len(names) - 1):
        line, number = lines[at], block.first + int(at)
        if line and not line.isspace():
            bad.skip(
                _cell_count_fault(block.path, number, int(found_L[at]) + 1, names, line.decode())
            )
        left_out.append(number)
    return block.without(left_out)


def _cell_count_fault(
    path: Path, number: int, found: int, names: Sequence[str], line: str
) -> LineFault:
    problem = f"{found} cells, expected {len(names)}: {', '.join(names)}"
    return make_fault(path, number, f"{problem}; found {show_text(line)}")


@dataclass
class _Records:
    """Cuts lines into records, across the blocks of a file.

    Attributes:
        pending: whether lines are left that the next block goes on with, or what follows may be
            the inside of a broken record.
    """

    names: tuple[str, ...]
    delimiter: str
    kinds: Kinds
    bad: BadLines
    rest: bytes = b""  # lines of a record that the last block has begun
    broken: int = 0  # the line of a record with broken quotes, while lines may be its inside
    rows: list[list[str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        return bool(self.rest or self.broken)

    def cut(self, block: Block, last: bool) -> tuple[Columns, LineOf]:
        """The records that begin in the block, and the line of each."""
        data, begun = self.rest + block.data, self.rest.count(b"\n")
        path, first, lines = block.path, block.first - begun, split_lines(data)
        self.rest, self.rows, self.numbers = b"", [], []
        texts = [line.removesuffix(b"\r").decode() for line in lines]
        at = 0
        while at < len(texts):
            if not texts[at] or texts[at].isspace():
                at += 1
                continue
            taken = self._take(path, first + at, texts, at, last)
            if not taken:  # the record goes on in the next block
                self.rest = b"\n".join(lines[at:]) + b"\n"
                break
            at += taken
        cells = zip(*self.rows, strict=True) if self.rows else [()] * len(self.names)
        named = zip(self.names, cells, strict=True)
        return {name: pa.array(c, pa.string()) for name, c in named}, self.numbers.__getitem__

    def _take(self, path: Path, number: int, texts: Sequence[str], at: int, last: bool) -> int:
        """Read the record that begins on a line; returns how many lines it takes, 0: more."""
        line = texts[at]
        if self.broken and self._may_be_inside(line):
            return self._leave_inside(path, number, line)
        taken, cells = 1, _whole_line(line, self.delimiter)
        if cells == _OPEN:
            taken, cells = _several_lines(texts, at, self.delimiter)
            if cells == _OPEN and not last:
                return 0
        if not isinstance(cells, str) and (taken > 1 or '"' in line):
            cells = self._quotes_problem(line, taken, cells) or cells
        if isinstance(cells, str):
            self.broken = 0 if self._ends_quotes(line) else number
            self.bad.skip(_no_csv(path, number, cells, line.encode()))
            return 1
        self.broken = 0
        if len(cells) != len(self.names):
            self.bad.skip(_cell_count_fault(path, number, len(cells), self.names, line))
        else:
            self.rows.append(cells)
            self.numbers.append(number)
        return taken

    def _quotes_problem(self, line: str, taken: int, cells: Sequence[str]) -> str | None:
        """What shows that quotes are broken although they come in pairs, or may."""
        whole = len(cells) == len(self.names)
        named = dict(zip(self.names, cells, strict=False))
        if taken == 1:
            sound = whole and not _closes_quotes(line, self.delimiter)
            sound = sound and not any('"' in named[name] for name in self.kinds.ids)
            sound = sound and f'{self.delimiter}"' not in f"{self.delimiter}{line}"
            odd = line.count('"') % 2 == 1 and not sound
            return "a quote in a cell that does not begin with one" if odd else None
        if not whole:
            return f"the quote is closed {taken - 1} lines below, which makes {len(cells)} cells"
        for name in (*self.kinds.ids, *self._typed_names()):
            if _BREAK.search(named[name]):
                return f'"{name}" has a line break in quotes'
        return None

    def _may_be_inside(self, line: str) -> bool:
        """Whether a line behind a broken record may belong to it."""
        if '"' in line:
            return _stays_or_closes(line, self.delimiter) or not _is_strict(line, self.delimiter)
        cells = line.split(self.delimiter)
        if len(cells) != len(self.names) or not (self.kinds.numbers or self.kinds.times):
            return True
        found = dict(zip(self.names, cells, strict=True))
        return not all(_is_kind(found[name], name, self.kinds) for name in self._typed_names())

    def _ends_quotes(self, line: str) -> bool:
        """Whether a line closes the quotes of lines before it, and opens none."""
        opens = _whole_line(line, self.delimiter) == _OPEN
        return '"' in line and not opens and _closes_quotes(line, self.delimiter)

    def _typed_names(self) -> tuple[str, ...]:
        return (*self.kinds.numbers, *self.kinds.times)

    def _leave_inside(self, path: Path, number: int, line: str) -> int:
        problem = f"behind the broken quotes of line {self.broken}; found {show_text(line)}"
        self.bad.skip(make_fault(path, number, problem))
        if self._ends_quotes(line):
            self.broken = 0
        return 1


def _is_kind(cell: str, name: str, kinds: Kinds) -> bool:
    if name in kinds.optional and not cell.strip():
        return True
    return _NUMBER.fullmatch(cell) is not None or (name in kinds.times and looks_like_date(cell))


def _whole_line(line: str, delimiter: str) -> list[str] | str:
    """The cells of a line that is a record, or what the csv module says of it."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return str(error)


def _several_lines(texts: Sequence[str], at: int, delimiter: str) -> tuple[int, list[str] | str]:
    """How many lines the record that begins at ``at`` takes, and its cells, or what is wrong."""
    lines = (texts[place] + "\n" for place in range(at, len(texts)))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        cells = next(reader)
    except csv.Error as error:
        return reader.line_num, str(error)
    return reader.line_num, cells


def _closes_quotes(line: str, delimiter: str) -> bool:
    """Whether a line, begun inside of quotes, closes them properly."""
    return not isinstance(_whole_line(f'"{line}', delimiter), str)


def _stays_or_closes(line: str, delimiter: str) -> bool:
    """Whether a line may begin inside of quotes."""
    cells = _whole_line(f'"{line}', delimiter)
    return not isinstance(cells, str) or cells == _OPEN


def _is_strict(line: str, delimiter: str) -> bool:
    """Whether quotes are only around cells, or doubled in them; the last cell may stay open."""
    return _strict_line(delimiter).fullmatch(line) is not None


@cache
def _strict_line(delimiter: str) -> re.Pattern[str]:
    quoted, plain = r'"(?:[^"]|"")*', rf'[^"{delimiter}]*'
    return re.compile(rf'(?:(?:{quoted}"|{plain}){delimiter})*(?:{quoted}"?|{plain})')


def _no_csv(path: Path, number: int, reason: str, line: bytes) -> LineFault:
    return make_fault(path, number, f"no valid CSV ({reason}); found {show_text(line.decode())}")


def _convert_cells(
    path: Path,
    columns: Columns,
    line_of: LineOf,
    kinds: Kinds,
    bad: BadLines,
    dates: bool | None,
) -> Cells:
    """Numbers and times of records, without the records that have none.

    Args:
        dates: whether the times of the blocks before were ISO dates; None: there were none.
    """
    numbers, clock, problems = {}, None, Problems()
    for name in kinds.numbers:
        numbers[name], found = _parse_floats(columns[name], name, name in kinds.optional)
        problems |= {index: found[index] for index in found if index not in problems}
    for name in kinds.times:
        numbers[name], clock, found = read_times(columns[name], name, dates)
        problems |= {index: found[index] for index in found if index not in problems}
    for index, problem in problems.items():
        bad.skip(make_fault(path, line_of(index), problem, index))
    if not problems:
        return Cells(columns, numbers, line_of, clock)
    kept_N = np.ones(len(next(iter(columns.values()))), dtype=bool)
    kept_N[list(problems)] = False
    place_N, kept = np.flatnonzero(kept_N), pa.array(kept_N)
    return Cells(
        {name: column.filter(kept) for name, column in columns.items()},
        {name: column.filter(kept) for name, column in numbers.items()},
        lambda index: line_of(int(place_N[index])),
        clock,
    )


def _parse_floats(column: pa.Array, name: str, optional: bool = False) -> tuple[pa.Array, Problems]:
    """Texts as float64, and those that are no finite decimal numbers.

    Args:
        optional: an empty cell is null.
    """
    try:
        numbers = pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        numbers = None
    if numbers is not None and np.isfinite(numbers.to_numpy()).all():
        return numbers, {}
    plain = pc.match_substring_regex(column, _PLAIN_NUMBER)
    number_N = pc.cast(pc.if_else(plain, column, "nan"), pa.float64()).to_numpy().copy()
    none_N, problems = np.zeros(len(number_N), dtype=bool), Problems()
    for index in np.flatnonzero(~np.isfinite(number_N)).tolist():
        cell = column[index].as_py()
        if _NUMBER.fullmatch(cell) and np.isfinite(value := float(cell)):
            number_N[index] = value
            continue
        none_N[index] = True
        if not (optional and not cell.strip()):
            problems[index] = f'"{name}" is {show_text(cell)}, expected a number'
    return pa.array(number_N, mask=none_N), problems


def read_times(
    column: pa.Array, name: str, dates: bool | None = None
) -> tuple[pa.Array, Clock | None, Problems]:
    """Texts as times: numbers, or ISO dates where the first one that is either is a date.

    Args:
        dates: which of the two the times before were; None: there were none.
    """
    numbers, problems = _parse_floats(column, name)
    if not problems and not dates:
        return _keep_exact(column, numbers), None, {}
    cells = column.to_pylist()
    first = next((c for c in cells if looks_like_date(c) or _NUMBER.fullmatch(c)), "")
    if looks_like_date(first) if dates is None else dates:
        nanosecond_N, problems = parse_dates(cells, name)
        return pa.array(nanosecond_N), DATES, problems
    expected = "" if first else " of a unit of time, or an ISO date such as 2018-06-30"
    if dates is False:
        expected = ", as the lines before have"
    return numbers, None, {index: problem + expected for index, problem in problems.items()}


def _keep_exact(column: pa.Array, numbers: pa.Array) -> pa.Array:
    """Whole numbers that float64 rounds, such as nanoseconds, as int64."""
    if np.abs(numbers.to_numpy()).max(initial=0) < _ROUNDED:
        return numbers
    try:
        return pc.cast(column, pa.int64())
    except pa.ArrowInvalid:
        return numbers


# Named columns of a CSV, parquet or JSON-lines file. The first bytes of the file tell its kind.
#
# A table may also be a folder of parquet files, as Spark, Dask and others write it; the names of
# folders such as ``year=2018`` are then a column of it (Hive partitions).


BOMB_ROWS: Final = 1_000_000  # rows before their number is set against the bytes of the file
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"  # Hive's null
_INDEX: Final = ("", "Unnamed: 0", "__index_level_0__")  # what pandas calls an unnamed index
_UNITS: Final = dict(zip(("s", "ms", "us", "ns"), CLOCKS, strict=True))
_DAY: Final = 86_400  # seconds

Texts = list[str]


@dataclass(frozen=True)
class Part:
    """Some consecutive rows.

    Attributes:
        texts: column -> strings; where the file has null, "" stands.
        numbers: column -> pyarrow array of float64, of times also int64 or a list; null or None
            where the file has none.
        line_of: file line (parquet: row, from 1) of an index into these.
        clock: unit of the times where their column or notation states it.
    """

    texts: dict[str, Texts]
    numbers: dict[str, Any]
    line_of: Callable[[int], int]
    clock: Clock | None = None


@dataclass(frozen=True)
class Table:
    """A file of a source, or one of the files in its folder.

    Attributes:
        constants: what the names of its folders say of all its rows: column -> value, or None.
    """

    path: Path
    constants: Mapping[str, str | None] = field(default_factory=dict)


def find_tables(path: Path) -> list[Table]:
    """The file itself, or the parquet files of a folder, in order of their paths.

    Names that begin with ``.`` or ``_`` are passed over, as every reader of such folders does.

    Raises:
        DataError: a folder without parquet files, or with others.
        MachineError: a folder that cannot be read.
    """
    if not path.is_dir():
        return [Table(path)]
    try:
        found = sorted(file for file in path.rglob("*") if file.is_file())
    except OSError as error:
        raise MachineError(f"{path}: cannot be read: {error.strerror or error}") from error
    tables = []
    for file in found:
        *folders, name = file.relative_to(path).parts
        if any(part.startswith((".", "_")) for part in (*folders, name)):
            continue
        if read_head(file)[:4] != b"PAR1":
            raise DataError(f"{file}: no parquet file; expected a folder of parquet files alone")
        pairs = [folder.partition("=") for folder in folders if "=" in folder]
        values = {key: None if v == _NO_VALUE else unquote(v) for key, _, v in pairs}
        tables.append(Table(file, values))
    if not tables:
        raise DataError(f"{path}: this is a folder without parquet files, expected a file")
    return tables


def find_index(table: Table, wanted: Sequence[str]) -> str | None:
    """The unnamed index column that pandas writes, where a file has one and nobody asks for it."""
    names = _read_names(table.path)
    return next((name for name in names if name in _INDEX and name not in wanted), None)


def _read_names(path: Path) -> list[str]:
    if read_head(path)[:4] == b"PAR1":
        with _arrow_errors(path):
            return list(pq.read_schema(path).names)
    opening = first_block(path).data
    if opening.lstrip().startswith((b"{", b"[")):
        return []
    return read_header(path, _guess_delimiter(opening))


def _guess_delimiter(opening: bytes) -> str:
    return "\t" if b"\t" in opening.partition(b"\n")[0] else ","


def read_parts(
    table: Table,
    texts: Sequence[str],
    kinds: Kinds = TEXTS,
    bad: BadLines = STRICT,
    absent: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Part]:
    """Stream the named columns of a file.

    Args:
        table: CSV or TSV with a header, JSON lines (either may be gzip), or parquet.
        texts: columns of ids and titles; whole numbers become their decimal notation.
        kinds: columns of numbers and times.
        bad: what becomes of lines that are wrong.
        absent: what to do where a column is not there, for the message.

    Raises:
        DataError: a column is absent or of the wrong type, or the file is damaged.
    """
    path = table.path
    if read_head(path)[:4] == b"PAR1":
        return _read_parquet(table, texts, kinds, bad, absent)
    opening = first_block(path).data
    if opening.lstrip().startswith((b"{", b"[")):
        return _read_json(path, texts, kinds, bad)
    delimiter = _guess_delimiter(opening)
    wanted = [*texts, *kinds.numbers, *kinds.times]
    _require_columns(path, wanted, read_header(path, delimiter), absent)
    return _read_csv(path, texts, kinds, delimiter, bad)


def _read_csv(
    path: Path, texts: Sequence[str], kinds: Kinds, delimiter: str, bad: BadLines
) -> Iterator[Part]:
    for cells in read_cells(path, delimiter=delimiter, kinds=kinds, bad=bad):
        named = {name: cells.strings(name) for name in texts}
        yield Part(named, cells.numbers, cells.line_of, cells.clock)


def _read_json(path: Path, texts: Sequence[str], kinds: Kinds, bad: BadLines) -> Iterator[Part]:
    columns: list[tuple[str, Any]] = [(name, str | int | None) for name in texts]
    columns += [(name, float | None) for name in kinds.numbers]
    columns += [(name, int | float | str | None) for name in kinds.times]
    fields = [(f"field_{i}", kind) for i, (_, kind) in enumerate(columns)]
    renamed = {f"field_{i}": name for i, (name, _) in enumerate(columns)}
    record = msgspec.defstruct("Record", fields, gc=False, rename=renamed)
    shape = Shape(record, f"an object with {', '.join(renamed.values())}")
    dates: bool | None = None
    for batch in read_records(path, shape, bad):
        found = {name: [getattr(row, f) for row in batch.rows] for f, name in renamed.items()}
        rows = batch.block.line_of
        numbers: dict[str, Any] = {n: pa.array(found[n], pa.float64()) for n in kinds.numbers}
        clock, problems = None, dict[int, str]()
        for name in kinds.times:
            numbers[name], clock, problems = _json_times(found[name], name, dates)
            if dates is None and len(problems) < len(found[name]):
                dates = clock is DATES
        for index, problem in problems.items():
            bad.skip(make_fault(path, rows(index), problem, index))
        strings = {name: ["" if v is None else str(v) for v in found[name]] for name in texts}
        yield _drop_rows(Part(strings, numbers, rows, clock), set(problems))


def _json_times(
    values: list[Any], name: str, dates: bool | None
) -> tuple[Any, Clock | None, dict[int, str]]:
    """Times of JSON lines: numbers as they are or in quotes, or ISO dates.

    Args:
        dates: which of the two the lines before had; None: they had no time.
    """
    if not dates and not any(isinstance(value, str) for value in values):
        return values, None, {}
    texts = ["" if value is None else str(value) for value in values]
    return read_times(pa.array(texts, pa.string()), name, dates)


def _drop_rows(part: Part, left_out: set[int]) -> Part:
    """The part without some rows."""
    if not left_out:
        return part
    rows = len(next(iter(part.numbers.values())))
    kept = [index for index in range(rows) if index not in left_out]
    return Part(
        {name: [texts[index] for index in kept] for name, texts in part.texts.items()},
        {name: _take_numbers(numbers, kept) for name, numbers in part.numbers.items()},
        lambda index: part.line_of(kept[index]),
        part.clock,
    )


def _take_numbers(numbers: Any, kept: Sequence[int]) -> Any:
    return numbers.take(kept) if isinstance(numbers, pa.Array) else [numbers[i] for i in kept]


def _require_plausible(path: Path, rows: int) -> None:
    """Parquet holds one row repeated a billion times in a few kilobytes."""
    size = path.stat().st_size
    if rows > BOMB_ROWS and rows > size:
        raise make_fault(path, 1, f"{rows:,} rows in {size:,} bytes: a parquet bomb?")


def _read_parquet(
    table: Table, texts: Sequence[str], kinds: Kinds, bad: BadLines, absent: Mapping[str, str]
) -> Iterator[Part]:
    path, constants = table.path, table.constants
    wanted = [*texts, *kinds.numbers, *kinds.times]
    with _arrow_errors(path), pq.ParquetFile(path) as file:
        found = file.schema_arrow.names
        _require_columns(path, wanted, [*found, *constants], absent)
        for name in wanted:
            if found.count(name) + (name in constants) > 1:
                where = " and a folder's name" if name in constants else ""
                problem = f'column "{name}" occurs more than once (in the file{where})'
                raise make_fault(path, 1, f"{problem}; expected one")
        _require_plausible(path, file.metadata.num_rows)
        stored = [name for name in wanted if name not in constants]
        row = 1
        for batch in file.iter_batches(columns=stored):
            columns = {name: _decode_dictionary(batch.column(name)) for name in stored}
            columns |= {
                name: pa.array([value] * len(batch), pa.string())
                for name, value in constants.items()
            }
            for name in set(kinds.numbers) & constants.keys():
                with suppress(pa.ArrowInvalid):  # no number: a text, which is refused below
                    columns[name] = columns[name].cast(pa.float64())
            numbers = {name: _to_floats(path, name, columns[name]) for name in kinds.numbers}
            clock, problems = None, dict[int, str]()
            for name in kinds.times:
                numbers[name], clock, problems = _to_times(path, name, columns[name])
            for index, problem in problems.items():
                bad.skip(make_fault(path, row + index, problem, index))
            strings = {name: _to_strings(path, name, columns[name]) for name in texts}
            yield _drop_rows(Part(strings, numbers, row.__add__, clock), set(problems))
            row += len(batch)
            if only_beginnings():
                return


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Around what Arrow reads of a parquet file.

    Raises:
        DataError: it is none, or damaged.
    """
    try:
        yield
    except MemoryError:  # Arrow has a kind of its own
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise make_fault(path, 1, f"no readable parquet file ({reason})") from None


def _decode_dictionary(column: pa.Array) -> pa.Array:
    """A column without dictionary (pandas calls it a categorical)."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _to_strings(path: Path, name: str, column: pa.Array) -> Texts:
    kind = column.type
    if pa.types.is_decimal(kind):
        column = _to_whole_numbers(path, name, column)
    elif not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_null(kind)):
        raise make_fault(path, 1, f'column "{name}" is {kind}, expected strings or whole numbers')
    strings: Texts = pc.fill_null(column.cast(pa.string()), "").to_pylist()
    return strings


def _to_whole_numbers(path: Path, name: str, column: pa.Array) -> pa.Array:
    """Decimals that are whole numbers, without their noughts."""
    values = column.to_pylist()
    if any(value is not None and value != int(value) for value in values):
        kind = f"{column.type} with fractions"
        raise make_fault(path, 1, f'column "{name}" is {kind}, expected strings or whole numbers')
    return pa.array([None if value is None else str(int(value)) for value in values], pa.string())


def _to_floats(path: Path, name: str, column: pa.Array) -> pa.Array:
    kind = column.type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        raise make_fault(path, 1, f'column "{name}" is {kind}, expected numbers')
    return column.cast(pa.float64(), safe=False)


def _to_times(
    path: Path, name: str, column: pa.Array
) -> tuple[pa.Array, Clock | None, dict[int, str]]:
    """Times as numbers, the unit where type or notation states it, and texts that are no times."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.int64()), _UNITS[kind.unit], {}
    if pa.types.is_date(kind):
        days = column.cast(pa.date32(), safe=False).cast(pa.int32()).cast(pa.int64())
        return pc.multiply(days, pa.scalar(_DAY)), _UNITS["s"], {}
    if _is_text(kind):
        return read_times(pc.fill_null(column.cast(pa.string()), ""), name)
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        try:
            return column.cast(pa.int64()), None, {}
        except pa.ArrowInvalid:  # fractions, or more than 64 bits
            return _to_floats(path, name, column), None, {}
    if not pa.types.is_floating(kind):
        raise make_fault(path, 1, f'column "{name}" is {kind}, expected numbers or dates')
    return _to_floats(path, name, column), None, {}


def _require_columns(
    path: Path, wanted: Sequence[str], found: Sequence[str], absent: Mapping[str, str]
) -> None:
    for name in wanted:
        if name not in found:
            instead = f"; {absent[name]}" if name in absent else ""
            near = difflib.get_close_matches(name, found, 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            if len(found) == 1 and any(mark in found[0] for mark in ";|"):
                raise make_fault(
                    path,
                    1,
                    f"its columns are separated by semicolons or bars ({show_text(found[0])}); "
                    "expected commas or tabs",
                )
            problem = f'no column "{name}" among {show_text(", ".join(found), 200)}'
            raise make_fault(path, 1, f"{problem}{hint} ([data.columns] names them{instead})")
