"""What an audit measures beyond the manifest: how far training sees ahead, what ties decide.

Works on any prepared folder, whenever it was written.  What is held in memory grows with distinct
times and with the rows of validation and test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_cli.data.audit import Finding, audit, shared_targets, unseen_targets
from llmrec_cli.data.catalog import EXAMPLES
from llmrec_cli.data.columns import (
    HISTORY,
    ITEM,
    ITEM_ID,
    ITEMS_FILE,
    SPLITS,
    TARGET,
    TIMESTAMP,
    USER,
    USER_ID,
    split_file,
)
from llmrec_cli.data.store import Manifest, Prepared
from llmrec_cli.recipe.data import format_of

DAY: Final = 86_400_000  # milliseconds
CHECKS: Final = {
    "items that share a title or tokens",
    "test targets that share a title or tokens",
    "targets in their own history",
    "test targets never seen in training",
    "users in several splits",
    "rows that stand in two splits",
    "interactions that tie in time",
    "training rows later than the earliest test row",
    "popularity in training",
}
"""What the audit of every manifest holds today."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """How much of the training split is later than the rows of a split."""

    mean: float  # over rows: share of training targets later than the row's, [0, 1]
    median: float
    days: float  # median over rows: from the row to the last training target; 0: none is later


@dataclass(frozen=True, slots=True)
class Measured:
    """What the split files tell and the manifest does not; None: cannot be told."""

    ahead: Mapping[str, Ahead]  # of valid and test; empty: times do not compare across users
    undecided: Finding | None  # users whose validation and test targets bear one time
    shared_valid: Finding  # as the audit's of test
    unseen_valid: Finding
    unheard: Finding  # test targets that are in no training row and in no validation row


def with_audit(prepared: Prepared) -> Manifest:
    """The manifest with its audit whole: what an older one lacks is counted from the files.

    (Ties apart: the files do not hold the times of histories.)
    """
    told = prepared.manifest.get("audit", {})
    if set(told) >= CHECKS:
        return prepared.manifest
    splits = {name: _scan(prepared, name) for name in prepared.splits}
    counted = audit(_items(prepared), splits, None, has_times(prepared.manifest["data"]))
    return {**prepared.manifest, "audit": counted | told}


def has_times(data: Mapping[str, Any]) -> bool:
    """Whether the source of a ``[data]`` section has times that compare across users."""
    columns = data.get("columns", {})
    return format_of(data["format"]).compares_times(columns.get("timestamp"))


def measure(prepared: Prepared) -> Measured:
    """Measure a prepared folder."""
    data, items = prepared.manifest["data"], _items(prepared)
    clock = has_times(data)
    train, valid, test = (_scan(prepared, name) for name in SPLITS)
    held_out = {"test": test, "valid": valid}
    return Measured(
        ahead={name: ahead(train, rows) for name, rows in held_out.items()} if clock else {},
        undecided=undecided(valid, test) if clock and data["split"] == "leave-one-out" else None,
        shared_valid=shared_targets(items, valid),
        unseen_valid=unseen_targets(items, valid),
        unheard=unheard(items, [train, valid], test),
    )


def ahead(train: pl.LazyFrame, rows: pl.LazyFrame) -> Ahead:
    """How much of training is later than each of ``rows`` (at the same time is not later)."""
    times = train.group_by(TIMESTAMP).len().sort(TIMESTAMP).collect()
    time_T, count_T = times[TIMESTAMP].to_numpy(), times["len"].to_numpy().astype(np.int64)
    time_R = rows.select(TIMESTAMP).collect()[TIMESTAMP].to_numpy()
    share_R = _later(time_T, count_T, time_R) / count_T.sum()
    days_R = np.maximum(0, time_T[-1] - time_R) / DAY
    return Ahead(float(share_R.mean()), float(np.median(share_R)), float(np.median(days_R)))


def _later(
    time_T: NDArray[np.int64], count_T: NDArray[np.int64], time_R: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each time of R, how many of T's (ascending, ``count_T`` each) are later."""
    at_most_T = np.concatenate([[0], np.cumsum(count_T)])
    later: NDArray[np.int64] = at_most_T[-1] - at_most_T[np.searchsorted(time_T, time_R, "right")]
    return later


def undecided(valid: pl.LazyFrame, test: pl.LazyFrame) -> Finding:
    """Test rows at the very time of their user's validation row: input order tells them apart."""
    key = [USER, TIMESTAMP]
    hits = test.select(*key, USER_ID).join(valid.select(key), on=key, how="semi").sort(USER)
    tied = hits.select(USER_ID).collect()[USER_ID]
    rows = test.select(pl.len()).collect().item()
    return {"count": len(tied), "of": rows, "examples": tied.head(EXAMPLES).to_list()}


def unheard(items: pl.DataFrame, shown: list[pl.LazyFrame], test: pl.LazyFrame) -> Finding:
    """Test rows whose target stands nowhere in ``shown``, neither as target nor in a history."""
    parts = [rows.select(pl.col(HISTORY).alias(ITEM)).explode(ITEM).drop_nulls() for rows in shown]
    parts += [rows.select(pl.col(TARGET).alias(ITEM)) for rows in shown]
    known = pl.concat(parts).unique().collect()
    unknown = items.join(known, on=ITEM, how="anti").select(pl.col(ITEM).alias(TARGET), ITEM_ID)
    targets = test.select(TARGET).collect()
    hits = targets.join(unknown, on=TARGET, maintain_order="left")[ITEM_ID]
    examples = hits.unique(maintain_order=True).head(EXAMPLES).to_list()
    return {"count": len(hits), "of": len(targets), "examples": examples}


def _items(prepared: Prepared) -> pl.DataFrame:
    return pl.read_parquet(prepared.folder / ITEMS_FILE, glob=False)


def _scan(prepared: Prepared, split: str) -> pl.LazyFrame:
    return pl.scan_parquet(prepared.folder / split_file(split), glob=False)
