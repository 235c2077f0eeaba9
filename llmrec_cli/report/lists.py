"""From ranked items to recommended lists: the first distinct leaves, with history kept or removed.

Shape suffixes: R rows, K list depth, E entries of all lists one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.columns import HISTORY, RANKED, ROW, TARGET
from llmrec_cli.data.leaves import Leaves
from llmrec_cli.errors import ArtefactError

Seen = Literal["keep", "remove"]
Ints = NDArray[np.int64]

_CHUNK = 512  # rows worked on together: bounds memory when lists hold the whole catalogue


@dataclass(frozen=True, slots=True)
class TopLists:
    """The first K distinct leaves of each row."""

    leaf_RK: Ints  # best first, -1 past the end
    target_R: Ints  # the target's leaf
    short_R: NDArray[np.bool_]  # fewer entries than K, although candidates were left


def top_lists(predictions: pd.DataFrame, leaves: Leaves, depth: int, seen: Seen) -> TopLists:
    """The first ``depth`` distinct leaves of each row's ranked items.

    A leaf counts at its first appearance.  With ``seen = "remove"`` the leaves of the row's history
    are dropped first, the target's own leaf never: a repeat purchase stays findable, as it is for
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
    """Leaves of each row's history, ascending, without the target's own: ``seen = "remove"``.

    For a Ranker, which goes on until it has found enough leaves outside them.
    """
    return [
        sorted(set(leaf_of_item[history].tolist()) - {int(leaf_of_item[target])})
        for history, target in zip(rows[HISTORY], rows[TARGET], strict=True)
    ]


def repeats(predictions: pd.DataFrame, leaves: Leaves) -> NDArray[np.bool_]:
    """Per row, whether the target's leaf stands in the row's own history.

    Such a row is easier with ``seen = "remove"``: its rivals of the history go, its target stays.

    Raises:
        ArtefactError: an item index is outside the catalogue.
    """
    target_R = _require_inside(predictions[TARGET].to_numpy(np.int64), predictions, leaves)
    key_R = np.arange(len(target_R)) * leaves.n_leaves + leaves.leaf_of_item_I[target_R]
    return np.isin(key_R, _key_entries(predictions, HISTORY, leaves))


def _take_top(rows: pd.DataFrame, leaves: Leaves, depth: int, seen: Seen) -> TopLists:
    target_R = leaves.leaf_of_item_I[_require_inside(rows[TARGET].to_numpy(np.int64), rows, leaves)]
    key_E = _key_entries(rows, RANKED, leaves)
    keep_E = np.zeros(len(key_E), dtype=bool)
    keep_E[np.unique(key_E, return_index=True)[1]] = True  # first appearance of a leaf in its row
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


def _key_entries(rows: pd.DataFrame, column: str, leaves: Leaves) -> Ints:
    """row * n_leaves + leaf of every entry of a list column, rows one after the other."""
    lists = [np.asarray(items, dtype=np.int64) for items in rows[column]]
    row_E = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    item_E = _require_inside(np.concatenate(lists), rows.iloc[row_E], leaves)
    return row_E * leaves.n_leaves + leaves.leaf_of_item_I[item_E]


def _require_inside(item_E: Ints, rows_E: pd.DataFrame, leaves: Leaves) -> Ints:
    bad = np.flatnonzero((item_E < 0) | (item_E >= leaves.n_items))
    if len(bad):
        row = rows_E[ROW].iloc[bad[0]]
        raise ArtefactError(
            f"predictions, row {row}: item {item_E[bad[0]]} is outside the catalogue of "
            f"{leaves.n_items} items"
        )
    return item_E
