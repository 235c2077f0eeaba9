"""Leakage and identity checks of a prepared data set: counts and a few examples, no verdicts.

Rows are lazy frames over the split files, read in batches; what is held grows with users and items
(4 bytes per user of a split), not with rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_cli.data.catalog import EXAMPLES, shares_identity
from llmrec_cli.data.columns import (
    COUNT,
    HISTORY,
    ITEM,
    ITEM_ID,
    NEGATIVES,
    PREFERENCE,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER,
    USER_ID,
)
from llmrec_cli.data.leaves import has_tokens

Finding: TypeAlias = dict[str, Any]


def audit(
    items: pl.DataFrame, splits: Mapping[str, pl.LazyFrame], tied: Finding | None, clock: bool
) -> Finding:
    """All checks; None stands for one that cannot be made.

    Args:
        items: the catalogue with COUNT.
        splits: the final rows of train, valid and test; of pairs, perhaps those to align on too.
        tied: users with interactions at the same time as another one of theirs, where input order
            decides; None for sources that come split.
        clock: whether times compare across users.
    """
    return {
        "items that share a title or tokens": shared_items(items),
        "test targets that share a title or tokens": shared_targets(items, splits["test"]),
        "targets in their own history": {name: repeats(rows) for name, rows in splits.items()},
        "test targets never seen in training": unseen_targets(items, splits["test"]),
        "users in several splits": users_in_common(splits),
        "rows that stand in two splits": rows_in_common(splits, clock),
        "interactions that tie in time": tied,
        "training rows later than the earliest test row": overlap_in_time(splits)
        if clock
        else None,
        "popularity in training": concentration(items[COUNT].to_numpy()),
    } | ({"test pairs that are trained on": trained_pairs(splits)} if _of_pairs(splits) else {})


def trained_pairs(splits: Mapping[str, pl.LazyFrame]) -> Finding:
    """Test pairs (same history, same candidates) that training or alignment shows too."""
    key = [USER_ID, TARGET, NEGATIVES]
    parts = [splits[name] for name in ("train", PREFERENCE) if name in splits]
    shown = pl.concat([part.select(key).explode(NEGATIVES) for part in parts]).unique()
    test = splits["test"].select(key).explode(NEGATIVES)
    hits = test.join(shown, on=key, how="semi", maintain_order="left")
    return _found(hits.select(USER_ID), _count(test))


def _of_pairs(splits: Mapping[str, pl.LazyFrame]) -> bool:
    return NEGATIVES in splits["test"].collect_schema()


def shared_items(items: pl.DataFrame) -> Finding:
    """Items whose title (or tokens) another item has too."""
    shared = items.filter(shares_identity(items))
    name = TOKENS if has_tokens(items) else TITLE
    found = _found(shared.lazy().select(name), len(items))
    return found | {"groups": shared[name].n_unique()}


def shared_targets(items: pl.DataFrame, test: pl.LazyFrame) -> Finding:
    """Test rows whose target another item cannot be told from."""
    return _targets_among(items.filter(shares_identity(items)), test)


def repeats(rows: pl.LazyFrame) -> Finding:
    """Rows whose target also stands in their history."""
    hits = rows.filter(pl.col(HISTORY).list.contains(pl.col(TARGET)))
    return _found(hits.select(USER_ID), _count(rows))


def unseen_targets(items: pl.DataFrame, test: pl.LazyFrame) -> Finding:
    """Test rows whose target is in no training row."""
    return _targets_among(items.filter(pl.col(COUNT) == 0), test)


def users_in_common(splits: Mapping[str, pl.LazyFrame]) -> Finding:
    """Users with rows in more than one split, by pair of splits."""
    users = {name: rows.select(USER).unique().collect() for name, rows in splits.items()}
    pairs = [("train", "valid"), ("train", "test"), ("valid", "test")]
    if PREFERENCE in users:
        pairs += [("train", PREFERENCE), (PREFERENCE, "valid"), (PREFERENCE, "test")]
    return {f"{a} and {b}": len(users[a].join(users[b], on=USER, how="semi")) for a, b in pairs}


def rows_in_common(splits: Mapping[str, pl.LazyFrame], clock: bool) -> dict[str, Finding]:
    """Rows of a later split that an earlier one holds too, by pair of splits.

    Two rows are the same where user, target and history are; where times compare across users,
    also where user, target and time are (the history may have been cut elsewhere).  Of pairs, the
    candidates must be the same too.
    """
    pairs = [("train", "valid"), ("train", "test"), ("valid", "test")]
    candidates = [NEGATIVES] if _of_pairs(splits) else []
    keys = [[USER_ID, TARGET, HISTORY, *candidates]]
    if clock:
        keys.append([USER_ID, TARGET, TIMESTAMP, *candidates])
    return {f"{a} and {b}": _rows_in_common(splits[a], splits[b], keys) for a, b in pairs}


def _rows_in_common(a: pl.LazyFrame, b: pl.LazyFrame, keys: list[list[str]]) -> Finding:
    """Rows of ``b`` that stand in ``a`` by any of ``keys``; 8 bytes per row of ``b`` are held."""
    users = b.select(USER_ID)
    hits = pl.Series([False], dtype=pl.Boolean)
    for key in keys:
        hashed = pl.struct(key).hash().alias("key")  # 64 bits
        wanted = b.select(hashed).collect(engine="streaming")["key"]
        asked = pl.LazyFrame({"key": wanted.unique()})
        found = a.select(hashed).join(asked, on="key", how="semi").unique()
        hits = hits | wanted.is_in(found.collect(engine="streaming")["key"].implode())
    return _found(users.with_columns(hits.alias("hit")).filter("hit").select(USER_ID), len(hits))


def overlap_in_time(splits: Mapping[str, pl.LazyFrame]) -> Finding:
    """Training targets later than the earliest test target: what a global cut would not allow."""
    earliest = splits["test"].select(pl.col(TIMESTAMP).min()).collect().item()
    train = splits["train"]
    return {"count": _count(train.filter(pl.col(TIMESTAMP) > earliest)), "of": _count(train)}


def concentration(counts: NDArray[np.int32]) -> Finding:
    """Gini index of training interactions over items (0: all equal), and the top 1 %'s share."""
    ascending = np.sort(counts.astype(np.float64))
    total, n = ascending.sum(), len(ascending)
    ranks = np.arange(1, n + 1)
    gini = 2 * (ranks * ascending).sum() / (n * total) - (n + 1) / n
    top = ascending[n - max(1, n // 100) :].sum() / total
    return {"gini": round(float(gini), 4), "share of the top 1 % of items": round(float(top), 4)}


def _targets_among(items: pl.DataFrame, test: pl.LazyFrame) -> Finding:
    among = items.lazy().select(pl.col(ITEM).alias(TARGET), ITEM_ID)
    hits = test.select(TARGET).join(among, on=TARGET, maintain_order="left")
    return _found(hits.select(ITEM_ID), _count(test))


def _found(hits: pl.LazyFrame, n: int) -> Finding:
    """How many hits, and the first few different ones; ``hits`` has one column."""
    examples = hits.unique(maintain_order=True).head(EXAMPLES).collect().to_series()
    return {"count": _count(hits), "of": n, "examples": examples.to_list()}


def _count(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())
