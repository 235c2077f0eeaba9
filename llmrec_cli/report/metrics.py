"""Ranking metrics, one value per row, and what the recommended lists look like as a whole.

With ``rank`` the target leaf's place among the first K distinct leaves, from 1:
HR@K = [rank <= K], NDCG@K = [rank <= K] / log2(rank + 1) (one relevant item, so the ideal is 1),
MRR@K = [rank <= K] / rank at the largest cut-off only: the list ends there, and so a list that
happens to be longer gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.columns import ROW, TARGET, USER_ID
from llmrec_cli.data.leaves import Leaves
from llmrec_cli.errors import ArtefactError
from llmrec_cli.report.lists import Seen, TopLists, top_lists

RANK: Final = "rank"  # int64, from 1; 0: not among the first max(cutoffs)
HEAD_SHARE: Final = 0.2  # the most popular leaves that are not long tail

Short = Literal["refuse", "miss"]
"""A list that ends before K although candidates are left: an error, or a miss past its end (what a
beam has not found, it does not recommend)."""


def metric_names(cutoffs: Sequence[int]) -> list[str]:
    """Columns of ``score_rows``: ``hr@K`` and ``ndcg@K`` per cut-off, ``mrr@K`` of the largest."""
    per_cutoff = [f"{metric}@{k}" for k in sorted(set(cutoffs)) for metric in ("hr", "ndcg")]
    return [*per_cutoff, f"mrr@{max(cutoffs)}"]


def score_rows(
    predictions: pd.DataFrame,
    leaves: Leaves,
    cutoffs: Sequence[int],
    seen: Seen,
    short: Short = "refuse",
) -> pd.DataFrame:
    """Score every row on its own.

    Args:
        predictions: as in ``report/predictions.py``.
        leaves: the catalogue's distinct entries; a hit on any item of the target's leaf counts.
        cutoffs: values of K, >= 1.
        seen: keep the row's history among the candidates, or remove it (never the target's leaf).
        short: what to do with a list too short for the largest K.

    Returns:
        ``row, user_id, target, rank`` and the columns of ``metric_names``, float64 in [0, 1],
        ordered by ``row``.

    Raises:
        ArtefactError: no rows, an index outside the catalogue, or a list too short.
    """
    by_row = predictions.sort_values(ROW, kind="stable").reset_index(drop=True)
    top = top_lists(by_row, leaves, max(cutoffs), seen)
    if short == "refuse":
        _require_long_enough(top, by_row, seen)
    hit_RK = top.leaf_RK == top.target_R[:, None]
    rank_R = np.where(hit_RK.any(axis=1), hit_RK.argmax(axis=1) + 1, 0)
    scored = by_row[[ROW, USER_ID, TARGET]].assign(**{RANK: rank_R})
    values = {name: metric_of_ranks(name, rank_R) for name in metric_names(cutoffs)}
    return scored.assign(**values)


def metric_of_ranks(name: str, rank_R: NDArray[np.int64]) -> NDArray[np.float64]:
    """One metric of every row, in [0, 1].

    Args:
        name: ``hr@K``, ``ndcg@K`` or ``mrr@K``.
        rank_R: of the target, from 1; 0: not in the list.
    """
    kind, k = name.split("@")
    found_R = (rank_R > 0) & (rank_R <= int(k))
    safe_R = np.maximum(rank_R, 1)
    gain_R = {"hr": np.ones(len(rank_R)), "ndcg": 1 / np.log2(safe_R + 1), "mrr": 1 / safe_R}[kind]
    return np.where(found_R, gain_R, 0.0)


def _require_long_enough(top: TopLists, rows: pd.DataFrame, seen: Seen) -> None:
    if not top.short_R.any():
        return
    first = int(np.argmax(top.short_R))
    raise ArtefactError(
        f"predictions, row {rows[ROW].iloc[first]}: {(top.leaf_RK[first] >= 0).sum()} distinct "
        f'candidates with seen = "{seen}", expected {top.leaf_RK.shape[1]}; {top.short_R.sum()} of '
        f"{len(rows)} rows are too short: rank deeper"
    )


@dataclass(frozen=True, slots=True)
class BeyondAccuracy:
    """What is recommended, over all rows' first ``depth`` leaves."""

    depth: int
    coverage: float  # share of the catalogue's leaves in at least one list, [0, 1]
    gini: (
        float  # inequality of how often each leaf is recommended: 0 equal, 1 - 1/n_leaves one leaf
    )
    popularity: float  # mean training interactions of a recommended leaf
    long_tail: float  # share of recommendations outside the most popular 20 % of leaves, [0, 1]
    short: int  # lists with fewer than ``depth`` leaves although candidates were left


def beyond_accuracy(
    predictions: pd.DataFrame, leaves: Leaves, depth: int, seen: Seen
) -> BeyondAccuracy:
    """Coverage, Gini, popularity and long-tail share of the recommended lists.

    The most popular 20 % are ``ceil(0.2 * n_leaves)`` leaves by training count, ties as in
    ``Leaves.by_popularity_L``.  Empty lists count in no mean; with nothing recommended at all the
    means are NaN.
    """
    top = top_lists(predictions, leaves, depth, seen)
    times_L = np.bincount(top.leaf_RK[top.leaf_RK >= 0], minlength=leaves.n_leaves)
    total = times_L.sum()
    tail_L = np.ones(leaves.n_leaves, dtype=bool)
    tail_L[leaves.by_popularity_L[: int(np.ceil(HEAD_SHARE * leaves.n_leaves))]] = False
    return BeyondAccuracy(
        depth=depth,
        coverage=float((times_L > 0).mean()),
        gini=gini(times_L),
        popularity=float(times_L @ leaves.count_L / total) if total else float("nan"),
        long_tail=float(times_L[tail_L].sum() / total) if total else float("nan"),
        short=int(top.short_R.sum()),
    )


def gini(count_L: NDArray[np.int64]) -> float:
    """Gini coefficient ``sum_i (2 i - n - 1) c_(i) / (n sum_i c_i)`` of counts in rising order.

    Mean absolute difference of two draws over twice the mean; 0 where all are equal, ``1 - 1/n``
    where one has everything, NaN where there is nothing.  Entries never counted belong to it.
    """
    n, total = len(count_L), int(count_L.sum())
    if total == 0:
        return float("nan")
    weight_L = 2 * np.arange(1, n + 1) - n - 1
    return float(weight_L @ np.sort(count_L) / (n * total))
