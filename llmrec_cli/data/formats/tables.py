"""Named columns of a CSV, parquet or JSON-lines file. The first bytes of the file show its kind.

A table may also be a folder of parquet files, as Spark, Dask and others write it; the names of
folders such as ``year=2018`` are then a column of it (Hive partitions).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import UNSET

from llmrec_cli.data.formats.checks import CLOCKS, DATES, Clock
from llmrec_cli.data.formats.delimited import TEXTS, Kinds, read_cells, read_header, read_times
from llmrec_cli.data.formats.parsing import (
    STRICT,
    BadLines,
    Shape,
    first_block,
    make_fault,
    only_beginnings,
    parse_object,
    read_head,
    read_records,
    show_text,
    was_cut,
)
from llmrec_cli.errors import DataError, LineFault, MachineError

BOMB_ROWS: Final = 1_000_000  # rows before their number is set against the bytes of the file
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"  # Hive's null
_INDEX: Final = ("", "Unnamed: 0", "__index_level_0__")  # what pandas calls an unnamed index
_UNITS: Final = dict(zip(("s", "ms", "us", "ns"), CLOCKS, strict=True))
_DAY: Final = 86_400  # seconds
_LINES_OF_KEYS: Final = 100  # whose keys an error message lists

Texts = list[str]


@dataclass(frozen=True)
class Part:
    """Some consecutive rows.

    Attributes:
        texts: column -> strings; where the file has null, "" stands.
        numbers: column -> pyarrow array of float64, of times also int64 or a list; null or None
            where the file has none.
        line_of: file line (parquet: row, from 1) of an index into these.
        values: column -> what the file has there, of any kind; CSV has texts alone.
        clock: unit of the times where their column or notation states it.
    """

    texts: dict[str, Texts]
    numbers: dict[str, Any]
    line_of: Callable[[int], int]
    clock: Clock | None = None
    values: Mapping[str, list[Any]] = field(default_factory=dict)


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
        kinds: columns of numbers, of times and of values of any kind.
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
        return _read_json(path, texts, kinds, bad, absent)
    delimiter = _guess_delimiter(opening)
    wanted = [*texts, *kinds.numbers, *kinds.times, *kinds.values]
    _require_columns(path, wanted, read_header(path, delimiter), absent)
    return _read_csv(path, texts, kinds, delimiter, bad)


def _read_csv(
    path: Path, texts: Sequence[str], kinds: Kinds, delimiter: str, bad: BadLines
) -> Iterator[Part]:
    for cells in read_cells(path, delimiter=delimiter, kinds=kinds, bad=bad):
        named = {name: cells.strings(name) for name in texts}
        values = {name: list[Any](cells.strings(name)) for name in kinds.values}
        yield Part(named, cells.numbers, cells.line_of, cells.clock, values)


def _read_json(
    path: Path, texts: Sequence[str], kinds: Kinds, bad: BadLines, absent: Mapping[str, str]
) -> Iterator[Part]:
    """Objects by line.  A key that is no id, time or needed number may be absent, which is null."""
    columns: list[tuple[str, Any]] = [(name, str | int | None) for name in texts]
    columns += [(name, float | None) for name in kinds.numbers]
    columns += [(name, int | float | str | None) for name in kinds.times]
    columns += [(name, Any) for name in kinds.values]
    needed = {*kinds.ids, *kinds.times, *kinds.numbers} - {*kinds.optional}
    fields = [
        (f"field_{i}", kind) if name in needed else (f"field_{i}", kind | msgspec.UnsetType, UNSET)
        for i, (name, kind) in enumerate(columns)
    ]
    renamed = {f"field_{i}": name for i, (name, _) in enumerate(columns)}
    record = msgspec.defstruct("Record", fields, gc=False, kw_only=True, rename=renamed)
    shape = Shape(record, f"an object with {', '.join(name for name, _ in columns)}")
    dates: bool | None = None
    never = [name for name, _ in columns if name not in needed]  # keys of no line so far
    seen = 0
    for batch in read_records(path, shape, bad):
        seen += len(batch.rows)
        found = {name: [getattr(row, f) for row in batch.rows] for f, name in renamed.items()}
        never = [name for name in never if all(value is UNSET for value in found[name])]
        for name in renamed.values():
            if name not in needed:
                found[name] = [None if value is UNSET else value for value in found[name]]
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
        values = {name: found[name] for name in kinds.values}
        yield _drop_rows(Part(strings, numbers, rows, clock, values), set(problems))
    if never and seen and not was_cut(path):  # a key that no line has is misspelt, more likely
        _require_columns(path, never, _list_keys(path), absent)


def _list_keys(path: Path) -> list[str]:
    """The keys of the first objects of a JSON-lines file, in order of appearance."""
    keys: dict[str, None] = {}
    for number, line in islice(first_block(path).lines(), _LINES_OF_KEYS):
        with suppress(LineFault):
            keys |= dict.fromkeys(parse_object(path, number, line, "an object"))
    return list(keys)


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
        {name: [values[index] for index in kept] for name, values in part.values.items()},
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
    wanted = [*texts, *kinds.numbers, *kinds.times, *kinds.values]
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
            values = {name: columns[name].to_pylist() for name in kinds.values}
            part = Part(strings, numbers, row.__add__, clock, values)
            yield _drop_rows(part, set(problems))
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
