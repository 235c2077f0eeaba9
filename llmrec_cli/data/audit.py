"""Leakage and identity checks of a prepared data set: counts and a few examples, no verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_cli.data.catalog import EXAMPLES, has_tokens, shares_identity
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

Finding: TypeAlias = dict[str, Any]


def audit(
    items: pl.DataFrame, splits: Mapping[str, pl.DataFrame], log: pl.DataFrame | None, clock: bool
) -> Finding:
    """All checks; None stands for one that cannot be made.

    Args:
        items: the catalogue with COUNT.
        splits: the final rows of train, valid and test; of pairs, perhaps those to align on too.
        log: the cleaned interactions, None for sources that come split.
        clock: whether times compare across users.
    """
    return {
        "items that share a title or tokens": shared_items(items),
        "test targets that share a title or tokens": shared_targets(items, splits["test"]),
        "targets in their own history": {name: repeats(rows) for name, rows in splits.items()},
        "test targets never seen in training": unseen_targets(items, splits["test"]),
        "users in several splits": users_in_common(splits),
        "interactions that tie in time": None if log is None else ties(log),
        "training rows later than the earliest test row": overlap_in_time(splits)
        if clock
        else None,
        "popularity in training": concentration(items[COUNT].to_numpy()),
    } | ({"test pairs that are trained on": trained_pairs(splits)} if _of_pairs(splits) else {})


def trained_pairs(splits: Mapping[str, pl.DataFrame]) -> Finding:
    """Test pairs (same history, same candidates) that training or alignment shows too."""
    key = [USER_ID, TARGET, NEGATIVES]
    parts = [splits[name] for name in ("train", PREFERENCE) if name in splits]
    shown = pl.concat([part.select(key).explode(NEGATIVES) for part in parts]).unique()
    test = splits["test"].select(key).explode(NEGATIVES)
    return _finding(test.join(shown, on=key, how="semi", maintain_order="left")[USER_ID], len(test))


def _of_pairs(splits: Mapping[str, pl.DataFrame]) -> bool:
    return NEGATIVES in splits["test"].columns


def shared_items(items: pl.DataFrame) -> Finding:
    """Items whose title (or tokens) another item has too."""
    shared = items.filter(shares_identity(items))
    name = TOKENS if has_tokens(items) else TITLE
    return _finding(shared[name], len(items)) | {"groups": shared[name].n_unique()}


def shared_targets(items: pl.DataFrame, test: pl.DataFrame) -> Finding:
    """Test rows whose target another item cannot be told from."""
    shared = items.filter(shares_identity(items))
    hit = test.join(shared, left_on=TARGET, right_on=ITEM, maintain_order="left")
    return _finding(hit[ITEM_ID], len(test))


def repeats(rows: pl.DataFrame) -> Finding:
    """Rows whose target also stands in their history."""
    return _finding(rows.filter(pl.col(HISTORY).list.contains(pl.col(TARGET)))[USER_ID], len(rows))


def unseen_targets(items: pl.DataFrame, test: pl.DataFrame) -> Finding:
    """Test rows whose target is in no training row."""
    unseen = items.filter(pl.col(COUNT) == 0)
    hit = test.join(unseen, left_on=TARGET, right_on=ITEM, maintain_order="left")
    return _finding(hit[ITEM_ID], len(test))


def users_in_common(splits: Mapping[str, pl.DataFrame]) -> Finding:
    """Users with rows in more than one split, by pair of splits."""
    users = {name: set(rows[USER].unique()) for name, rows in splits.items()}
    pairs = [("train", "valid"), ("train", "test"), ("valid", "test")]
    if PREFERENCE in users:
        pairs += [("train", PREFERENCE), (PREFERENCE, "valid"), (PREFERENCE, "test")]
    return {f"{a} and {b}": len(users[a] & users[b]) for a, b in pairs}


def ties(log: pl.DataFrame) -> Finding:
    """Interactions at the same time as another one of the same user; input order decides there."""
    tied = log.filter(pl.struct(USER, TIMESTAMP).is_duplicated())
    users = tied[USER_ID].unique(maintain_order=True)
    return _finding(users, log[USER].n_unique()) | {"interactions": len(tied)}


def overlap_in_time(splits: Mapping[str, pl.DataFrame]) -> Finding:
    """Training targets later than the earliest test target: what a global cut would not allow."""
    train = splits["train"][TIMESTAMP]
    later = int((train > splits["test"][TIMESTAMP].min()).sum())
    return {"count": later, "of": len(train)}


def concentration(counts: NDArray[np.int32]) -> Finding:
    """Gini index of training interactions over items (0: all equal), and the top 1 %'s share."""
    ascending = np.sort(counts.astype(np.float64))
    total, n = ascending.sum(), len(ascending)
    ranks = np.arange(1, n + 1)
    gini = 2 * (ranks * ascending).sum() / (n * total) - (n + 1) / n
    top = ascending[n - max(1, n // 100) :].sum() / total
    return {"gini": round(float(gini), 4), "share of the top 1 % of items": round(float(top), 4)}


def _finding(hits: pl.Series, n: int) -> Finding:
    examples = hits.unique(maintain_order=True).head(EXAMPLES).to_list()
    return {"count": len(hits), "of": n, "examples": examples}
