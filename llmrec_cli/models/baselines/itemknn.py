"""ItemKNN: entries that the same users took, by cosine similarity of their users.

``s(i, j) = |U_i & U_j| / (sqrt(|U_i| |U_j|) + shrink)``, of each entry the ``neighbours`` strongest
are kept; a history scores ``sum_j decay^(age of j) s(i, j)``.  After Sarwar et al. (WWW 2001).

Shape suffixes: L catalogue entries (leaves), U users, R histories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines.contract import Arrays, Baseline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy import sparse

    from llmrec_cli.data.catalog import CatalogueEntries
    from llmrec_cli.models.base import FullScoreRanker, Histories


class ItemknnOptions(Options):
    """ItemKNN: cosine similarity of entries by the users they share."""

    neighbours: int = Field(
        default=400, ge=1, description="number of most similar entries to keep for each entry"
    )
    shrink: float = Field(
        default=100.0,
        ge=0,
        description="number of users added to the denominator; a larger value gives rare entries "
        "less weight (about 5 suits a few hundred entries)",
    )
    decay: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="factor per step back in the history, in (0, 1]; the newest item has weight 1",
    )


def fit_itemknn(
    users: Iterable[Sequence[int]], n_leaves: int, *, neighbours: int, shrink: float
) -> Arrays:
    """Similarities of entries, as arrays to store; ``similarities`` makes a matrix of them.

    Args:
        users: leaves of each user's training items; repeats count once.
        neighbours: kept for each entry, >= 1.
        shrink: >= 0; larger trusts rare entries less.
    """
    import numpy as np
    from scipy import sparse

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
    kept = _keep_strongest(similar, neighbours)
    return {"values": kept.data, "columns": kept.indices, "starts": kept.indptr}


def similarities(arrays: Arrays) -> sparse.csr_matrix:
    """[L, L] fp32; row i holds the neighbours of entry i."""
    from scipy import sparse

    size = len(arrays["starts"]) - 1
    stored = (arrays["values"], arrays["columns"], arrays["starts"])
    return sparse.csr_matrix(stored, shape=(size, size))


def _keep_strongest(similar_LL: sparse.csr_matrix, neighbours: int) -> sparse.csr_matrix:
    """Of every row the largest entries; ties go to the lower leaf."""
    import numpy as np
    from scipy import sparse

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
    """Scores of every entry for each history (leaves, oldest first): [R, L], >= 0.

    Args:
        decay: weight of an item per place that it lies further back, (0, 1]; 1: all count alike.
    """
    import numpy as np
    from scipy import sparse

    ages = [np.arange(len(history))[::-1] for history in histories]
    weight = np.concatenate([np.empty(0), *(decay**age for age in ages)]).astype(np.float32)
    indices = np.array([leaf for history in histories for leaf in history], dtype=np.int64)
    indptr = np.cumsum([0, *map(len, histories)])
    history_RL = sparse.csr_matrix(
        (weight, indices, indptr), shape=(len(histories), similar_LL.shape[0])
    )
    scored: NDArray[np.float32] = (history_RL @ similar_LL.T).toarray().astype(np.float32)
    return scored


def _count(options: ItemknnOptions, users: Sequence[Sequence[int]], n_leaves: int) -> Arrays:
    return fit_itemknn(users, n_leaves, neighbours=options.neighbours, shrink=options.shrink)


def _open(options: ItemknnOptions, arrays: Arrays, leaves: CatalogueEntries) -> FullScoreRanker:
    from llmrec_cli.models.base import FullScoreRanker, ScoredBy

    similar_LL = similarities(arrays)

    def score_all(histories: Histories) -> NDArray[np.float32]:
        taken = [leaves.leaf_of_item_I[list(history)].tolist() for history in histories]
        return score_itemknn(similar_LL, taken, decay=options.decay)

    return FullScoreRanker(score_all, leaves, ScoredBy.SIMILARITY)


BASELINE = Baseline(
    summary="entries that the same users took (Sarwar et al. 2001)",
    options=ItemknnOptions,
    load=_open,
    count=_count,
)
