"""Ordering: the relations that rows are cut from, by user or by time, and what splits ask of them.

Relational like ``filters.py`` and on the same engine.  What comes out is a written relation whose
files are read once, from the first to the last (``users.py``): everything that depends on order
alone (dense user numbers, places in a user's sequence, windows) needs no window function then, and
no second shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.data.columns import ITEM, ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.data.engines.engine import Engine, Log, parts
from llmrec_cli.data.filters import MOMENT, upload_frame

Ints: TypeAlias = NDArray[np.int64]

BATCH = 1 << 17  # rows of a written relation that are in memory at a time
_SIZE, _USERS = "size", "users"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many users have how many interactions; one entry per number that occurs."""

    size_S: Ints
    users_S: Ints

    def total(self, each_S: Ints) -> int:
        """Sum over all users of what a user of each size has."""
        return int((each_S * self.users_S).sum())


def sort_by_user(log: Log, items: pl.DataFrame, engine: Engine, path: Path) -> Path:
    """The log with ITEM in place of item ids, by user, time and position, written to ``path``.

    Args:
        log: USER_ID, ITEM_ID, RATING, TIMESTAMP, POSITION; what is not in the catalogue leaves.
        items: the catalogue.
    """
    index = upload_frame(items.select(ITEM_ID, ITEM), path.with_suffix(".items.parquet"), engine)
    encoded = log.join(index, on=ITEM_ID, how="inner")
    columns = (USER_ID, ITEM, RATING, TIMESTAMP, POSITION)
    engine.written(encoded.select(columns).sort(USER_ID, *MOMENT), path)
    return path


def count_sizes(log: Log) -> Sizes:
    """How many users have how many interactions."""
    per_user = log.group_by(USER_ID).agg(nw.len().alias(_SIZE))
    counted = per_user.group_by(_SIZE).agg(nw.len().alias(_USERS)).sort(_SIZE)
    found: pl.DataFrame = counted.collect("polars").to_native()
    size_S, users_S = (found[name].cast(pl.Int64).to_numpy() for name in (_SIZE, _USERS))
    return Sizes(size_S, users_S)


def sort_moments(log: Log, after: int, engine: Engine, path: Path) -> Path:
    """The moments of all interactions but each user's first ``after``, ascending, at ``path``."""
    if after:
        place = nw.col(POSITION).cum_count().over(USER_ID, order_by=MOMENT)
        log = log.filter(place > after)
    engine.written(log.select(*MOMENT).sort(*MOMENT), path)
    return path


def sort_by_moment(rows: Path, engine: Engine, path: Path) -> Path:
    """A relation with MOMENT ordered by it, written to ``path``."""
    engine.written(engine.scan(rows).sort(*MOMENT), path)
    return path


def read_batches(relation: Path) -> Iterator[pl.DataFrame]:
    """The rows of a written relation in their order, at most ``BATCH`` at a time."""
    for part in parts(relation):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(BATCH):
                yield _to_frame(batch)


def _to_frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame: pl.DataFrame = pl.DataFrame(pl.from_arrow(batch))
    return frame


def read_rows_at(relation: Path, rank_R: Ints) -> pl.DataFrame:
    """The rows at some ranks of a written relation, counted from 0 and ascending."""
    found, first = [], 0
    for batch in read_batches(relation):
        low, high = np.searchsorted(rank_R, [first, first + len(batch)])
        found.append(batch[rank_R[low:high] - first])
        first += len(batch)
    return pl.concat(found)
