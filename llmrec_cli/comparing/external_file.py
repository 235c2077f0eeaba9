"""Files of recommended items that other tools write: CSV, parquet, TREC runs; their bytes tell."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.data.columns import ITEM_ID, RANKED, ROW, USER_ID
from llmrec_cli.data.readers.block import fault, shown
from llmrec_cli.data.readers.delimited import Kinds, header
from llmrec_cli.data.readers.lines import blocks, head
from llmrec_cli.data.readers.tables import Table, read_parts
from llmrec_cli.errors import DataError

RANK, SCORE = "rank", "score"
QUERY = "qid"  # of a TREC run: a user or a row
_COLUMNS: Final = (USER_ID, ROW, ITEM_ID, RANK, SCORE)
_EXPECTED = "item_id, user_id or row, and rank or score"
_TREC = "expected a TREC run: qid Q0 docno rank score tag"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Listed:
    """One recommended item per entry, in the order of the file.

    Attributes:
        kind: what ``key_E`` holds: USER_ID, ROW or QUERY.
        rank_E, score_E: finite, or None where the file has no such column.
    """

    path: Path
    kind: str
    key_E: list[str]
    item_E: list[str]
    rank_E: Floats | None
    score_E: Floats | None
    _line_of: Callable[[int], int]

    def fault(self, entry: int, problem: str) -> DataError:
        """The error of one entry, which names file and line."""
        return fault(self.path, self._line_of(int(entry)), problem)


def is_ours(path: Path) -> bool:
    """Whether a file is a ``predictions.parquet`` of llmrec's own schema."""
    return head(path)[:4] == b"PAR1" and RANKED in _parquet_names(path)


def read_listed(path: Path) -> Listed:
    """Read another tool's file.

    Raises:
        DataError: missing, damaged or empty; columns that are not there; a rank or score that is
            no finite number.
    """
    if head(path)[:4] == b"PAR1":
        return _columns(path, _parquet_names(path))
    first = next(blocks(path)).data.partition(b"\n")[0]
    cells = first.split()
    if len(cells) == 6 and cells[1].upper() == b"Q0":
        return _trec(path)
    return _columns(path, header(path, "\t" if b"\t" in first else ","))


def _parquet_names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except MemoryError:  # Arrow has a kind of its own
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise fault(path, 1, f"no readable parquet file ({reason})") from None


@dataclass
class _Lines:
    """The line of every entry of consecutive parts."""

    starts: list[int] = field(default_factory=list)
    line_of: list[Callable[[int], int]] = field(default_factory=list)

    def add(self, start: int, line_of: Callable[[int], int]) -> None:
        self.starts.append(start)
        self.line_of.append(line_of)

    def __call__(self, entry: int) -> int:
        part = bisect_right(self.starts, entry) - 1
        return self.line_of[part](entry - self.starts[part])


def _columns(path: Path, names: Sequence[str]) -> Listed:
    """A table with named columns; RecBole writes ``name:type``."""
    found = {name.partition(":")[0]: name for name in names}
    kind = USER_ID if USER_ID in found else ROW
    if not {kind, ITEM_ID} <= found.keys() or not {RANK, SCORE} & found.keys():
        raise fault(path, 1, f"columns {shown(', '.join(names), 100)}, expected {_EXPECTED}")
    numbers = [name for name in (RANK, SCORE) if name in found]
    parts, lines, count = [], _Lines(), 0
    wanted = Kinds(numbers=tuple(found[name] for name in numbers))
    for part in read_parts(Table(path), [found[kind], found[ITEM_ID]], wanted):
        lines.add(count, part.line_of)
        count += len(part.texts[found[ITEM_ID]])
        parts.append(part)
    if not count:
        raise DataError(f"{path}: no line of a recommended item")
    by_name = {
        name: np.concatenate(
            [part.numbers[found[name]].to_numpy(zero_copy_only=False) for part in parts]
        )
        for name in numbers
    }
    listed = Listed(
        path=path,
        kind=kind,
        key_E=list(chain.from_iterable(part.texts[found[kind]] for part in parts)),
        item_E=list(chain.from_iterable(part.texts[found[ITEM_ID]] for part in parts)),
        rank_E=by_name.get(RANK),
        score_E=by_name.get(SCORE),
        _line_of=lines,
    )
    return _checked(listed)


def _checked(listed: Listed) -> Listed:
    for name, number_E in ((RANK, listed.rank_E), (SCORE, listed.score_E)):
        if number_E is not None and np.isnan(number_E).any():
            at = int(np.argmax(np.isnan(number_E)))
            raise listed.fault(at, f'"{name}" is not a number')
    if listed.score_E is not None:  # predictions hold 32 bits
        over_E = np.isfinite(listed.score_E) & (np.abs(listed.score_E) > np.finfo(np.float32).max)
        if over_E.any():
            at = int(np.argmax(over_E))
            raise listed.fault(at, f'"{SCORE}" is {listed.score_E[at]:g}, expected at most 3.4e+38')
    return listed


def _trec(path: Path) -> Listed:
    """A run in TREC's format; its second and last column say nothing."""
    lines = [line for block in blocks(path) for line in block.lines()]
    rows = [line.decode().split() for _, line in lines]
    for (number, line), cells in zip(lines, rows, strict=True):
        if len(cells) != 6:
            problem = f"{len(cells)} cells, {_TREC}; found {shown(line.decode())}"
            raise fault(path, number, problem)
    query_E, _, item_E, rank_E, score_E, _ = map(list, zip(*rows, strict=True))
    numbers = [number for number, _ in lines]
    return _checked(
        Listed(
            path=path,
            kind=QUERY,
            key_E=query_E,
            item_E=item_E,
            rank_E=_floats(path, numbers, RANK, rank_E),
            score_E=_floats(path, numbers, SCORE, score_E),
            _line_of=numbers.__getitem__,
        )
    )


def _floats(path: Path, numbers: Sequence[int], name: str, cells: Iterable[Any]) -> Floats:
    values = []
    for number, cell in zip(numbers, cells, strict=True):
        try:
            values.append(float(cell))
        except ValueError:
            raise fault(path, number, f'"{name}" is {shown(cell)}, expected a number') from None
    return np.array(values)
