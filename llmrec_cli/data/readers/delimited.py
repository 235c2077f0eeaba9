"""CSV text as columns of strings.  Ids are never mistaken for numbers, ``NA`` is never null.

As with JSON lines, pyarrow reads whole blocks; a block with quotes, or one that pyarrow refuses,
is read line by line, which also finds the bad line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from llmrec_cli.data.readers.block import STRICT, BadLines, Block, fault, shown
from llmrec_cli.data.readers.lines import blocks, first_block

_NUMBER: Final = re.compile(r"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*")


@dataclass(frozen=True)
class Cells:
    """The lines of one block as columns of strings."""

    block: Block
    columns: dict[str, pa.Array]

    def strings(self, name: str) -> list[str]:
        """A column as Python strings."""
        values: list[str] = self.columns[name].to_pylist()
        return values

    def numbers(self, name: str) -> np.ndarray[Any, Any]:
        """A column as float64.

        Raises:
            DataError: a cell that is no finite decimal number.
        """
        try:
            values: np.ndarray[Any, Any] = pc.cast(self.columns[name], pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            values = np.array([np.nan])
        if np.isfinite(values).all():
            return values
        cells = self.strings(name)
        for index, cell in enumerate(cells):
            if not (_NUMBER.fullmatch(cell) and np.isfinite(float(cell))):
                problem = f'"{name}" is {shown(cell)}, expected a number'
                raise fault(self.block.path, self.block.line_of(index), problem)
        return np.array([float(cell) for cell in cells])


def read_cells(
    path: Path,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    numbers: Sequence[str] = (),
    bad: BadLines = STRICT,
) -> Iterator[Cells]:
    """Stream a CSV file, plain or gzip, one record per line.

    Args:
        path: the file.
        names: the columns of a file without a header; None reads them from the first line.
        delimiter: one character between cells.
        numbers: columns of numbers, which ``bad`` looks at too.
        bad: what becomes of lines that are wrong.

    Raises:
        DataError: see ``lines.blocks``; and a line with too few or too many cells, an unbalanced
            quote, or a header with repeated names.
    """
    stream = blocks(path, bad)
    if names is None:
        names, first = _split_header(next(stream), delimiter)
        stream = chain([first] if first.data else [], stream)
    columns = tuple(names)

    def cells(block: Block) -> Cells:
        found = _fast(block, columns, delimiter) or _slow(block, columns, delimiter)
        made = Cells(block, found)
        for name in numbers if bad.limit else ():
            made.numbers(name)
        return made

    for block in stream:
        yield bad.tried(block, cells)


def header(path: Path, delimiter: str = ",") -> list[str]:
    """The column names in the first line of a CSV file."""
    return _split_header(first_block(path), delimiter)[0]


def _split_header(block: Block, delimiter: str) -> tuple[list[str], Block]:
    line, _, rest = block.data.partition(b"\n")
    if line.lstrip().startswith((b"{", b"[")):
        raise fault(block.path, block.first, f"JSON, expected CSV; found {shown(line.decode())}")
    names = [name.strip() for name in _cells(block.path, block.first, line, delimiter)]
    if len(set(names)) < len(names) or not all(names):
        raise fault(block.path, block.first, f"empty or repeated column names: {shown(names, 120)}")
    return names, replace(block, first=block.first + 1, count=block.count - 1, data=rest)


def _fast(block: Block, names: Sequence[str], delimiter: str) -> dict[str, pa.Array] | None:
    data = block.data.replace(b"\r\n", b"\n") if b"\r" in block.data else block.data
    if b'"' in data or b"\r" in data:
        return None
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


def _slow(block: Block, names: Sequence[str], delimiter: str) -> dict[str, pa.Array]:
    rows = []
    for number, line in block.lines():
        cells = _cells(block.path, number, line, delimiter)
        if len(cells) != len(names):
            problem = f"{len(cells)} cells, expected {len(names)}: {', '.join(names)}"
            raise fault(block.path, number, f"{problem}; found {shown(line.decode())}")
        rows.append(cells)
    columns = zip(*rows, strict=True) if rows else [[] for _ in names]
    return {
        name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)
    }


def _cells(path: Path, number: int, line: bytes, delimiter: str) -> list[str]:
    text = line.removesuffix(b"\r").decode()
    if '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise fault(path, number, f"no valid CSV ({error}); found {shown(text)}") from None
