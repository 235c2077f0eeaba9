"""ItemKNN: entries that the same users took, by cosine similarity of their users.

``s(i, j) = |U_i & U_j| / (sqrt(|U_i| |U_j|) + shrink)``, of each entry the ``neighbours`` strongest
are kept; a history scores ``sum_j decay^(age of j) s(i, j)``.

Shape suffixes: L catalogue entries (leaves), U users.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Arrays = dict[str, NDArray[Any]]


def fit_itemknn(
    users: Iterable[Sequence[int]], n_leaves: int, *, neighbours: int, shrink: float
) -> Arrays:
    """Similarities of entries, as arrays to store; ``similarities`` makes a matrix of them.

    Args:
        users: leaves of each user's training items; repeats count once.
        neighbours: kept for each entry, >= 1.
        shrink: >= 0; larger trusts rare entries less.
    """
    owned = [sorted(set(leaves)) for leaves in users]
    indptr = np.cumsum([0, *map(len, owned)])
    indices = np.array([leaf for leaves in owned for leaf in leaves], dtype=np.int64)
    taken_UL = sparse.csr_matrix(
        (np.ones(len(indices), np.float32), indices, indptr), shape=(len(owned), n_leaves)
    )
    together_LL = (taken_UL.T @ taken_UL).tocoo()
    count_L = np.asarray(taken_UL.sum(0)).ravel()
    norm = np.sqrt(count_L[together_LL.row] * count_L[together_LL.col]) + shrink
    value = np.where(together_LL.row == together_LL.col, 0, together_LL.data / norm)
    similar = sparse.csr_matrix((value, (together_LL.row, together_LL.col)), together_LL.shape)
    kept = _strongest(similar, neighbours)
    return {"values": kept.data, "columns": kept.indices, "starts": kept.indptr}


def similarities(arrays: Arrays) -> sparse.csr_matrix:
    """[L, L] fp32; row i holds the neighbours of entry i."""
    size = len(arrays["starts"]) - 1
    stored = (arrays["values"], arrays["columns"], arrays["starts"])
    return sparse.csr_matrix(stored, shape=(size, size))


def _strongest(similar_LL: sparse.csr_matrix, neighbours: int) -> sparse.csr_matrix:
    """Of every row the largest entries; ties go to the lower leaf."""
    rows, columns, values = [], [], []
    for leaf in range(similar_LL.shape[0]):
        part = slice(similar_LL.indptr[leaf], similar_LL.indptr[leaf + 1])
        column, value = similar_LL.indices[part], similar_LL.data[part]
        kept = np.lexsort((column, -value))[:neighbours]
        kept = kept[value[kept] > 0]
        rows.append(np.full(len(kept), leaf))
        columns.append(column[kept])
        values.append(value[kept])
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=similar_LL.shape,
        dtype=np.float32,
    )


def score_itemknn(
    similar_LL: sparse.csr_matrix, histories: Sequence[Sequence[int]], *, decay: float
) -> NDArray[np.float32]:
    """Scores of every entry for each history (leaves, oldest first): [rows, L], >= 0.

    Args:
        decay: weight of an item per place that it lies further back, (0, 1]; 1: all count alike.
    """
    ages = [np.arange(len(history))[::-1] for history in histories]
    weight = np.concatenate([np.empty(0), *(decay**age for age in ages)]).astype(np.float32)
    indices = np.array([leaf for history in histories for leaf in history], dtype=np.int64)
    indptr = np.cumsum([0, *map(len, histories)])
    history_RL = sparse.csr_matrix(
        (weight, indices, indptr), shape=(len(histories), similar_LL.shape[0])
    )
    scored: NDArray[np.float32] = (history_RL @ similar_LL.T).toarray().astype(np.float32)
    return scored
