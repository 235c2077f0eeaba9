"""Metrics of lists: HR, NDCG and MRR per row, and figures over all lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.data.schema import HISTORY, RANKED, ROW, TARGET, USER_ID
from llmrec_cli.errors import ArtefactError

# From ranked items to lists: the first distinct entries of the catalogue (leaves of its trie), with
# the history kept or removed.
#
# Shape suffixes: R rows, K list depth, E listed items of all rows one after the other.


Seen = Literal["keep", "remove"]
Ints = NDArray[np.int64]

_CHUNK = 512  # rows worked on together: bounds memory when lists hold the whole catalogue


@dataclass(frozen=True, slots=True)
class TopLists:
    """The first K distinct entries of each row."""

    leaf_RK: Ints  # best first, -1 past the end
    target_R: Ints  # the target's entry
    short_R: NDArray[np.bool_]  # fewer entries than K, although candidates were left


def cut_top_lists(
    predictions: pd.DataFrame, leaves: CatalogueEntries, depth: int, seen: Seen
) -> TopLists:
    """The first ``depth`` distinct entries of each row's ranked items.

    An entry counts at its first appearance.  With ``seen = "remove"`` the entries of the row's
    history are dropped first, but never the target's own: a repeat purchase can still be found, by
    every method alike.

    Raises:
        ArtefactError: an item index is outside the catalogue.
    """
    parts = [
        _take_top(predictions.iloc[start : start + _CHUNK], leaves, depth, seen)
        for start in range(0, len(predictions), _CHUNK)
    ]
    if not parts:
        raise ArtefactError("predictions hold no rows")
    return TopLists(
        np.concatenate([part.leaf_RK for part in parts]),
        np.concatenate([part.target_R for part in parts]),
        np.concatenate([part.short_R for part in parts]),
    )


def seen_leaves(rows: pd.DataFrame, leaf_of_item: NDArray[Any]) -> list[list[int]]:
    """Entries of each row's history, ascending, without the target's own: ``seen = "remove"``.

    A Ranker searches until it has found enough entries beside them.
    """
    return [
        sorted(set(leaf_of_item[history].tolist()) - {int(leaf_of_item[target])})
        for history, target in zip(rows[HISTORY], rows[TARGET], strict=True)
    ]


def find_repeats(predictions: pd.DataFrame, leaves: CatalogueEntries) -> NDArray[np.bool_]:
    """Per row, whether the target's entry is in the row's own history.

    Such a row is easier with ``seen = "remove"``: other history items go, the target stays.

    Raises:
        ArtefactError: an item index is outside the catalogue.
    """
    target_R = _require_inside(predictions[TARGET].to_numpy(np.int64), predictions, leaves)
    key_R = np.arange(len(target_R)) * leaves.n_leaves + leaves.leaf_of_item_I[target_R]
    return np.isin(key_R, _key_entries(predictions, HISTORY, leaves))


def _take_top(rows: pd.DataFrame, leaves: CatalogueEntries, depth: int, seen: Seen) -> TopLists:
    target_R = leaves.leaf_of_item_I[_require_inside(rows[TARGET].to_numpy(np.int64), rows, leaves)]
    key_E = _key_entries(rows, RANKED, leaves)
    keep_E = np.zeros(len(key_E), dtype=bool)
    keep_E[np.unique(key_E, return_index=True)[1]] = True  # first appearance of an entry in its row
    candidates_R = np.full(len(rows), leaves.n_leaves)
    if seen == "remove":
        gone = np.unique(_key_entries(rows, HISTORY, leaves))
        gone = gone[gone % leaves.n_leaves != target_R[gone // leaves.n_leaves]]
        keep_E &= ~np.isin(key_E, gone)
        candidates_R -= np.bincount(gone // leaves.n_leaves, minlength=len(rows))

    key_E = key_E[keep_E]
    row_E, leaf_E = key_E // leaves.n_leaves, key_E % leaves.n_leaves
    length_R = np.bincount(row_E, minlength=len(rows))
    place_E = np.arange(len(row_E)) - (np.cumsum(length_R) - length_R)[row_E]
    leaf_RK = np.full((len(rows), depth), -1, dtype=np.int64)
    leaf_RK[row_E[place_E < depth], place_E[place_E < depth]] = leaf_E[place_E < depth]
    return TopLists(leaf_RK, target_R, length_R < np.minimum(depth, candidates_R))


def _key_entries(rows: pd.DataFrame, column: str, leaves: CatalogueEntries) -> Ints:
    """row * n_leaves + leaf of every item of a list column, rows one after the other."""
    lists = [np.asarray(items, dtype=np.int64) for items in rows[column]]
    row_E = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    item_E = _require_inside(np.concatenate(lists), rows.iloc[row_E], leaves)
    return row_E * leaves.n_leaves + leaves.leaf_of_item_I[item_E]


def _require_inside(item_E: Ints, rows_E: pd.DataFrame, leaves: CatalogueEntries) -> Ints:
    bad = np.flatnonzero((item_E < 0) | (item_E >= leaves.n_items))
    if len(bad):
        row = rows_E[ROW].iloc[bad[0]]
        raise ArtefactError(
            f"predictions, row {row}: item {item_E[bad[0]]} is outside the catalogue of "
            f"{leaves.n_items} items"
        )
    return item_E


# Ranking metrics with one value per row, and figures over all lists.
#
# With ``rank`` the place of the target's entry among the first K distinct entries, from 1:
# HR@K = [rank <= K], NDCG@K = [rank <= K] / log2(rank + 1) (one relevant item, so the ideal is 1),
# MRR@K = [rank <= K] / rank at the largest cut-off only: the list ends there, so that a longer list
# gains nothing.  ``RANK_METRICS`` is the table of them.


RANK: Final = "rank"  # int64, from 1; 0: not among the first max(cutoffs)
HEAD_SHARE: Final = 0.2  # of the entries: the most popular ones, which are not long tail

Short = Literal["refuse", "miss"]
"""A list that ends before K although candidates are left: an error, or a miss past its end (what a
beam has not found, it does not recommend)."""


@dataclass(frozen=True, slots=True)
class RankMetric:
    """A metric of one row: the gain of a target at its rank; 0 past the cut-off.

    Attributes:
        name: without its cut-off: ``hr`` is reported as ``hr@10``.
        gain: of ranks, from 1: rank_R -> gain_R in [0, 1].
        definition: the gain as text, for ``report.json``.
        every_cutoff: reported at every cut-off, or at the largest one only.
    """

    name: str
    gain: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    definition: str
    every_cutoff: bool = True


RANK_METRICS: Final = (
    RankMetric("hr", lambda rank_R: np.ones(len(rank_R)), "1"),
    RankMetric("ndcg", lambda rank_R: 1 / np.log2(rank_R + 1), "1 / log2(rank + 1)"),
    RankMetric("mrr", lambda rank_R: 1 / rank_R, "1 / rank", every_cutoff=False),
)
"""All metrics of one row, in the order of reports.  A new one is one entry here."""


def name_metrics(cutoffs: Sequence[int]) -> list[str]:
    """Columns of ``score_rows``, such as ``hr@K``: by cut-off, then those of the largest alone."""
    each = [metric.name for metric in RANK_METRICS if metric.every_cutoff]
    last = [metric.name for metric in RANK_METRICS if not metric.every_cutoff]
    per_cutoff = [f"{name}@{k}" for k in sorted(set(cutoffs)) for name in each]
    return [*per_cutoff, *(f"{name}@{max(cutoffs)}" for name in last)]


def define_metrics() -> dict[str, str]:
    """The definition of each metric, such as ``hr@K``: ``1 if rank <= K``."""
    return {
        f"{metric.name}@K": f"{metric.definition} if rank <= K"
        + ("" if metric.every_cutoff else ", K the largest cut-off")
        for metric in RANK_METRICS
    }


def score_rows(
    predictions: pd.DataFrame,
    leaves: CatalogueEntries,
    cutoffs: Sequence[int],
    seen: Seen,
    short: Short = "refuse",
) -> pd.DataFrame:
    """Score every row on its own.

    Args:
        predictions: as in ``evaluation/predictions.py``.
        leaves: the catalogue's distinct entries; a hit on any item of the target's entry counts.
        cutoffs: values of K, >= 1.
        seen: keep the row's history among the candidates, or remove it (never the target's entry).
        short: what to do with a list too short for the largest K.

    Returns:
        ``row, user_id, target, rank`` and the columns of ``name_metrics``, float64 in [0, 1],
        ordered by ``row``.

    Raises:
        ArtefactError: no rows, an index outside the catalogue, or a list too short.
    """
    by_row = predictions.sort_values(ROW, kind="stable").reset_index(drop=True)
    top = cut_top_lists(by_row, leaves, max(cutoffs), seen)
    if short == "refuse":
        _require_long_enough(top, by_row, seen)
    hit_RK = top.leaf_RK == top.target_R[:, None]
    rank_R = np.where(hit_RK.any(axis=1), hit_RK.argmax(axis=1) + 1, 0)
    scored = by_row[[ROW, USER_ID, TARGET]].assign(**{RANK: rank_R})
    values = {name: metric_of_ranks(name, rank_R) for name in name_metrics(cutoffs)}
    return scored.assign(**values)


def metric_of_ranks(name: str, rank_R: NDArray[np.int64]) -> NDArray[np.float64]:
    """One metric of every row, in [0, 1].

    Args:
        name: such as ``hr@K``, of a metric of ``RANK_METRICS``.
        rank_R: of the target, from 1; 0: not in the list.
    """
    kind, k = name.split("@")
    gain = next(metric.gain for metric in RANK_METRICS if metric.name == kind)
    found_R = (rank_R > 0) & (rank_R <= int(k))
    return np.where(found_R, gain(np.maximum(rank_R, 1)), 0.0)


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
    """What is recommended, over the first ``depth`` entries of all rows."""

    depth: int
    coverage: float  # share of the catalogue's entries in at least one list, [0, 1]
    gini: float  # inequality of how often entries occur: 0 all equal, 1 - 1/n_leaves one alone
    popularity: float  # mean training interactions of a recommended entry
    long_tail: float  # share of recommendations outside the most popular 20 % of entries, [0, 1]
    short: int  # lists with fewer than ``depth`` entries although candidates were left


def measure_lists(
    predictions: pd.DataFrame, leaves: CatalogueEntries, depth: int, seen: Seen
) -> BeyondAccuracy:
    """Coverage, Gini, popularity and long-tail share of the recommended lists.

    The most popular 20 % are ``ceil(0.2 * n_leaves)`` entries by training count, ties as in
    ``CatalogueEntries.by_popularity_L``.  Empty lists count in no mean.  If nothing at all is
    recommended, the means are NaN.
    """
    top = cut_top_lists(predictions, leaves, depth, seen)
    times_L = np.bincount(top.leaf_RK[top.leaf_RK >= 0], minlength=leaves.n_leaves)
    total = times_L.sum()
    tail_L = np.ones(leaves.n_leaves, dtype=bool)
    tail_L[leaves.by_popularity_L[: int(np.ceil(HEAD_SHARE * leaves.n_leaves))]] = False
    return BeyondAccuracy(
        depth=depth,
        coverage=float((times_L > 0).mean()),
        gini=measure_gini(times_L),
        popularity=float(times_L @ leaves.count_L / total) if total else float("nan"),
        long_tail=float(times_L[tail_L].sum() / total) if total else float("nan"),
        short=int(top.short_R.sum()),
    )


def measure_gini(count_L: NDArray[np.int64]) -> float:
    """Gini coefficient ``sum_i (2 i - n - 1) c_(i) / (n sum_i c_i)`` of counts in rising order.

    Mean absolute difference of two draws over twice the mean: 0 where all are equal, ``1 - 1/n``
    where one has everything, NaN where all are 0.  Entries that are never counted belong to it.
    """
    n, total = len(count_L), int(count_L.sum())
    if total == 0:
        return float("nan")
    weight_L = 2 * np.arange(1, n + 1) - n - 1
    return float(weight_L @ np.sort(count_L) / (n * total))
