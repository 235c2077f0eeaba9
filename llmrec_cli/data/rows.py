"""Rows from the ordered log: one pass over whole users, in bounded memory, into the split files.

The pass runs in this process whatever the engine: a history is a slice of a sequence that lies
contiguous by now, and a file of fixed row groups has one writer.  ``global-time`` writes its rows
by user into scratch files, has the engine order those by time, and copies them.

In memory: a batch of users (``order.BATCH`` interactions, and the longest sequence of one user),
an unfinished row group of each split, and 8 bytes per item of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from llmrec_cli.data.audit import Finding
from llmrec_cli.data.catalog import EXAMPLES
from llmrec_cli.data.columns import (
    CUT_ITEMS,
    CUT_ROWS,
    DISLIKED,
    FINER,
    POSITION,
    SPLITS,
    TIMESTAMP,
    UNSAMPLED,
    USER,
    USER_ID,
    split_file,
)
from llmrec_cli.data.dislikes import add_disliked, find_dislikes, find_training_ends
from llmrec_cli.data.engines.engine import Engine
from llmrec_cli.data.order import read_batches, sort_by_moment
from llmrec_cli.data.split import Moment, SplitPlan
from llmrec_cli.data.table_file import TableFile, rows_schema
from llmrec_cli.data.users import UserBatch, attach_badly_rated, batch_users
from llmrec_cli.data.windows import SplitBatch, build_rows, count_training_items, split_users


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What a split lost between its source and its file."""

    unsampled: int = 0  # rows before data.sample
    cut_rows: int = 0  # rows whose history was cut to data.history
    cut_items: int = 0  # history items that went with it

    def plus(self, unsampled: int, cut_R: NDArray[Any]) -> SplitCounts:
        """With further rows.

        Args:
            unsampled: how many rows there were before any sampling.
            cut_R: history items that each kept row lost.
        """
        return SplitCounts(
            self.unsampled + unsampled,
            self.cut_rows + int((cut_R > 0).sum()),
            self.cut_items + int(cut_R.sum()),
        )

    def facts(self) -> dict[str, int]:
        """For the manifest."""
        return {
            UNSAMPLED: self.unsampled,
            CUT_ROWS: self.cut_rows,
            CUT_ITEMS: self.cut_items,
        }


@dataclass(slots=True)
class SplitStatistics:
    """What is counted while users pass by."""

    count_I: NDArray[np.int64]  # of each item, its interactions inside training rows
    users: int = 0
    tied_users: int = 0  # who have interactions at one time
    tied_interactions: int = 0
    tied: list[str] = field(default_factory=list)  # ids of the first few of these users
    splits: dict[str, SplitCounts] = field(default_factory=dict)

    def add(self, split_batch: SplitBatch) -> None:
        """Count one more batch of users."""
        log = split_batch.users.log
        self.count_I += count_training_items(log, split_batch.windows["train"], len(self.count_I))
        for name, part in split_batch.windows.items():
            cut_R = split_batch.users.place_N[part.target_R] - (part.target_R - part.start_R)
            counts = self.splits.get(name, SplitCounts())
            self.splits[name] = counts.plus(split_batch.unsampled[name], cut_R)
        self.users += log[USER].n_unique()
        moment = pl.struct(USER, TIMESTAMP, pl.col(POSITION) // FINER)
        tied = log.filter(moment.is_duplicated())[USER_ID]
        ids = tied.unique(maintain_order=True)
        self.tied_users += len(ids)
        self.tied_interactions += len(tied)
        self.tied += ids.head(EXAMPLES - len(self.tied)).to_list()

    def summarize_ties(self) -> Finding:
        """The audit's finding about interactions that tie in time."""
        found = {"count": self.tied_users, "of": self.users, "examples": self.tied}
        return found | {"interactions": self.tied_interactions}


def write_rows(
    log: Path,
    bad: Path | None,
    plan: SplitPlan,
    history: int,
    n_items: int,
    engine: Engine,
    folder: Path,
) -> SplitStatistics:
    """Write ``train|valid|test.parquet`` into ``folder``.

    Args:
        log: from ``order.sort_by_user``.
        bad: likewise, of what the rating threshold drops; None where there is none.
        history: longest history, items.
        n_items: size of the catalogue.
    """
    users = batch_users(read_batches(log))
    if bad is not None:
        users = attach_badly_rated(users, read_batches(bad))
    statistics = SplitStatistics(np.zeros(n_items, np.int64))
    schema = rows_schema([] if bad is None else [DISLIKED])
    if plan.end is None:
        _write_splits(users, plan, history, statistics, folder, schema)
        return statistics
    scratch = log.parent
    _write_splits(
        users, plan, history, statistics, scratch, schema.append(pa.field(POSITION, pa.int64()))
    )
    for name in SPLITS:
        file = scratch / split_file(name)
        rows = sort_by_moment(file, engine, file.with_suffix(".by-moment.parquet"))
        with TableFile(folder / split_file(name), schema) as table:
            for batch in read_batches(rows):
                table.append(batch)
    return statistics


def _write_splits(
    users: Iterator[UserBatch],
    plan: SplitPlan,
    history: int,
    statistics: SplitStatistics,
    folder: Path,
    schema: pa.Schema,
) -> None:
    """All splits at once, rows by user."""
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(TableFile(folder / split_file(name), schema))
            for name in SPLITS
        }
        for split_batch in split_users(users, plan, history):
            statistics.add(split_batch)
            for name, rows in _build_split_rows(split_batch, plan.end).items():
                files[name].append(rows)


def _build_split_rows(split_batch: SplitBatch, end: Moment | None) -> dict[str, pl.DataFrame]:
    users, windows = split_batch.users, split_batch.windows
    rows = {name: build_rows(users.log, part) for name, part in windows.items()}
    if users.bad is None:
        return rows
    known = find_dislikes(users.bad, users.log)
    ends = find_training_ends(users.log, split_batch.held_R, end)
    return add_disliked(rows, windows, known, users.log, ends)
