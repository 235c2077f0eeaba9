"""Pop: recommend the most popular catalogue entries to everyone, the line every model must beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmrec_cli.data.leaves import Leaves

Ranking = tuple[list[NDArray[np.int32]], list[NDArray[np.float32]]]


def rank_by_popularity(
    leaves: Leaves, depths: Iterable[int], exclude: Sequence[Sequence[int]] = ()
) -> Ranking:
    """Rank the catalogue's leaves by training count, the same order for every row.

    Ties: the leaf whose representative item has the lowest index first.

    Args:
        leaves: the catalogue's distinct entries.
        depths: per row, how many leaves to list, >= 0; fewer come back where fewer are left.
        exclude: per row, items whose leaves are no candidates; empty: none for any row.

    Returns:
        ranked: per row, one representative item of each leaf, int32.
        scores: per row, the training count of each leaf, float32.
    """
    item_L = leaves.item_of_leaf_L[leaves.by_popularity_L].astype(np.int32)
    count_L = leaves.count_L[leaves.by_popularity_L].astype(np.float32)
    place_of_leaf_L = np.argsort(leaves.by_popularity_L)
    ranked, scores = [], []
    for row, depth in enumerate(depths):
        gone = np.asarray(exclude[row] if exclude else (), dtype=np.int64)
        gone = np.unique(place_of_leaf_L[leaves.leaf_of_item_I[gone]])
        places = np.setdiff1d(np.arange(min(depth + len(gone), leaves.n_leaves)), gone)[:depth]
        ranked.append(item_L[places])
        scores.append(count_L[places])
    return ranked, scores
