"""CSV and TSV as columns of strings. Ids are never mistaken for numbers, ``NA`` is never null.

As with JSON lines, pyarrow reads whole blocks. A block with quotes, or one that pyarrow refuses, is
read record by record.

A record ends at a line end outside of quotes (RFC 4180), so a quoted cell may hold line breaks. If
the quotes of a record are broken, its end is unknown. Its first line is then bad. Each following
line is taken as part of it, and is bad too. This ends at a line that closes the quote, or opens
quotes where none could close, or has all cells with numbers in the columns of numbers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from llmrec_cli.data.formats.checks import DATES, Clock, looks_like_date, parse_dates
from llmrec_cli.data.formats.parsing import (
    STRICT,
    BadLines,
    Block,
    first_block,
    make_fault,
    read_blocks,
    show_text,
    split_lines,
)
from llmrec_cli.errors import LineFault

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
        values: of any kind that the file has: texts, numbers, lists.
    """

    numbers: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


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
        DataError: see ``read_blocks``; and a record with too few or too many cells or with broken
            quotes, a cell that is not of its kind, a header with repeated names, or the header once
            more behind the first line.
    """
    stream = read_blocks(path, bad)
    has_header = names is None
    if names is None:
        names, first = _split_header(next(stream), delimiter)
        stream = chain([first] if first.data else [], stream)
    columns = tuple(names)
    records = _Records(columns, delimiter, kinds, bad)
    dates: bool | None = None
    for block, last in _with_last(stream):
        fast = None if records.pending else _split_plainly(block, columns, delimiter, bad)
        found, line_of = fast or records.cut(block, last)
        problems = _find_headers(found) if has_header else Problems()
        cells = _convert_cells(path, found, line_of, kinds, bad, dates, problems)
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
    return _split_header(first_block(path, header=True), delimiter)[0]


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


def _find_headers(columns: Columns) -> Problems:
    """Records that repeat the names of the columns, as files do that were joined from several."""
    found_N: NDArray[np.bool_] | None = None
    for name, column in columns.items():
        cells = pc.utf8_trim(column, " \t\ufeff")
        same_N = pc.equal(cells, name).to_numpy(zero_copy_only=False)
        found_N = same_N if found_N is None else found_N & same_N
        if not found_N.any():
            return Problems()
    problem = "the header once more, expected one header per file"
    return {} if found_N is None else dict.fromkeys(np.flatnonzero(found_N).tolist(), problem)


def _convert_cells(
    path: Path,
    columns: Columns,
    line_of: LineOf,
    kinds: Kinds,
    bad: BadLines,
    dates: bool | None,
    problems: Problems,
) -> Cells:
    """Numbers and times of records, without the records that have none.

    Args:
        dates: whether the times of the blocks before were ISO dates; None: there were none.
        problems: records that are wrong for another reason; they are left out, too.
    """
    numbers, clock = {}, None
    for name in kinds.numbers:
        numbers[name], found = _parse_floats(columns[name], name, name in kinds.optional)
        problems = found | problems
    for name in kinds.times:
        numbers[name], clock, found = read_times(columns[name], name, dates)
        problems = found | problems
    for index, problem in sorted(problems.items()):
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
    told = {index: problem + expected for index, problem in problems.items()}
    return _keep_exact(column, numbers), None, told


def _keep_exact(column: pa.Array, numbers: pa.Array) -> pa.Array:
    """Whole numbers that float64 rounds, such as nanoseconds, as int64.

    Args:
        numbers: the column as float64; null where a cell is no number.
    """
    size_N = np.abs(numbers.to_numpy(zero_copy_only=False))
    if not (size_N >= _ROUNDED).any():  # NaN where null
        return numbers
    try:
        return pc.cast(pc.if_else(numbers.is_valid(), column, None), pa.int64())
    except pa.ArrowInvalid:
        return numbers
