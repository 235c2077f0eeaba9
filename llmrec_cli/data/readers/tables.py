"""Named columns of a CSV, parquet or JSON-lines file; which of them it is, its bytes tell."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec_cli.data.readers.block import STRICT, BadLines, fault, shown
from llmrec_cli.data.readers.delimited import header, read_cells
from llmrec_cli.data.readers.json_lines import Shape, read_records
from llmrec_cli.data.readers.lines import first_block, head, only_beginnings

BOMB_ROWS: Final = 1_000_000  # rows before their number is set against the bytes of the file

Texts = list[str]
Numbers = Sequence[float] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Some consecutive rows.

    Attributes:
        texts: column -> strings; where the file has null, "" stands.
        numbers: column -> numbers; where the file has null, NaN stands.
        line_of: file line (parquet: row, from 1) of an index into these.
    """

    texts: dict[str, Texts]
    numbers: dict[str, Numbers]
    line_of: Callable[[int], int]


def read_parts(
    path: Path,
    texts: Sequence[str],
    numbers: Sequence[str] = (),
    bad: BadLines = STRICT,
    absent: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Part]:
    """Stream the named columns of a file.

    Args:
        path: CSV or TSV with a header, JSON lines (either may be gzip), or parquet.
        texts: columns of ids and titles; whole numbers become their decimal notation.
        numbers: columns of numbers; parquet's dates become milliseconds.
        bad: what becomes of lines that are wrong.
        absent: what to do where a column is not there, for the message.

    Raises:
        DataError: a column is absent or of the wrong type, or the file is damaged.
    """
    if head(path)[:4] == b"PAR1":
        return _parquet(path, texts, numbers, absent)
    opening = first_block(path).data
    if opening.lstrip().startswith((b"{", b"[")):
        return _json(path, texts, numbers, bad)
    delimiter = "\t" if b"\t" in opening.partition(b"\n")[0] else ","
    _require_columns(path, [*texts, *numbers], header(path, delimiter), absent)
    return _csv(path, texts, numbers, delimiter, bad)


def _csv(
    path: Path, texts: Sequence[str], numbers: Sequence[str], delimiter: str, bad: BadLines
) -> Iterator[Part]:
    for cells in read_cells(path, delimiter=delimiter, numbers=numbers, bad=bad):
        yield Part(
            {name: cells.strings(name) for name in texts},
            {name: cells.numbers(name) for name in numbers},
            cells.block.line_of,
        )


def _json(
    path: Path, texts: Sequence[str], numbers: Sequence[str], bad: BadLines
) -> Iterator[Part]:
    text, number = str | int | None, float | None
    fields = [(f"text_{i}", text) for i in range(len(texts))]
    fields += [(f"number_{i}", number) for i in range(len(numbers))]
    renamed = dict(zip([name for name, _ in fields], [*texts, *numbers], strict=True))
    record = msgspec.defstruct("Record", fields, gc=False, rename=renamed)
    shape = Shape(record, f"an object with {', '.join(renamed.values())}")
    for batch in read_records(path, shape, bad):
        columns = {renamed[name]: [getattr(row, name) for row in batch.rows] for name, _ in fields}
        yield Part(
            {name: ["" if v is None else str(v) for v in columns[name]] for name in texts},
            {name: [np.nan if v is None else v for v in columns[name]] for name in numbers},
            batch.block.line_of,
        )


def _require_plausible(path: Path, rows: int) -> None:
    """Parquet holds one row repeated a billion times in a few kilobytes."""
    size = path.stat().st_size
    if rows > BOMB_ROWS and rows > size:
        raise fault(path, 1, f"{rows:,} rows in {size:,} bytes: a parquet bomb?")


def _parquet(
    path: Path, texts: Sequence[str], numbers: Sequence[str], absent: Mapping[str, str]
) -> Iterator[Part]:
    try:
        file = pq.ParquetFile(path)
        _require_columns(path, [*texts, *numbers], file.schema_arrow.names, absent)
        _require_plausible(path, file.metadata.num_rows)
        row = 1
        for batch in file.iter_batches(columns=[*texts, *numbers]):
            yield Part(
                {name: _strings(path, name, batch.column(name)) for name in texts},
                {name: _floats(path, name, batch.column(name)) for name in numbers},
                row.__add__,
            )
            row += len(batch)
            if only_beginnings():
                return
    except MemoryError:  # Arrow has a kind of its own
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise fault(path, 1, f"no readable parquet file ({reason})") from None


def _strings(path: Path, name: str, column: pa.Array) -> Texts:
    kind = column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise fault(path, 1, f'column "{name}" is {kind}, expected strings or whole numbers')
    strings: Texts = pc.fill_null(column.cast(pa.string()), "").to_pylist()
    return strings


def _floats(path: Path, name: str, column: pa.Array) -> np.ndarray[Any, Any]:
    kind = column.type
    if pa.types.is_timestamp(kind):
        column, kind = (
            column.cast(pa.timestamp("ms", kind.tz), safe=False).cast(pa.int64()),
            pa.int64(),
        )
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise fault(path, 1, f'column "{name}" is {kind}, expected numbers or dates')
    values: np.ndarray[Any, Any] = column.cast(pa.float64(), safe=False).to_numpy(
        zero_copy_only=False
    )
    return values


def _require_columns(
    path: Path, wanted: Sequence[str], found: Sequence[str], absent: Mapping[str, str]
) -> None:
    for name in wanted:
        if name not in found:
            instead = f"; {absent[name]}" if name in absent else ""
            near = difflib.get_close_matches(name, found, 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            problem = f'no column "{name}" among {shown(", ".join(found), 200)}'
            raise fault(path, 1, f"{problem}{hint} ([data.columns] names them{instead})")
