"""Ranking metrics, one value per row; means, intervals and tables are the report's business.

A rank counts from 1; 0 means that the target is not in the list.

Shape suffixes: B rows (or users), K places of a list, N scored examples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rank_of(target_B: Tensor, ranked_BK: Tensor) -> Tensor:
    """Rank of each row's target among the *distinct* leaves of its list.

    Args:
        target_B: leaf index, >= 0.
        ranked_BK: leaf indices, best first; -1 is an empty place; a leaf that stands there several
            times (items that share a title) counts once, at its best place.

    Returns:
        rank_B: int64, 1..K, or 0 where the target is not in the list.
    """
    ordered_BK, place_BK = ranked_BK.sort(dim=1, stable=True)
    opens_BK = torch.ones_like(ordered_BK, dtype=torch.bool)
    opens_BK[:, 1:] = ordered_BK[:, 1:] != ordered_BK[:, :-1]
    opens_BK &= ordered_BK >= 0
    first_BK = torch.zeros_like(opens_BK).scatter(1, place_BK, opens_BK)
    found_BK = first_BK & (ranked_BK == target_B[:, None])
    return (first_BK.cumsum(1) * found_BK).sum(1)


def hit_at(rank_B: Tensor, k: int) -> Tensor:
    """HR@k per row: 1.0 if the target is among the first k, else 0.0; float64."""
    return ((rank_B >= 1) & (rank_B <= k)).double()


def ndcg_at(rank_B: Tensor, k: int) -> Tensor:
    """NDCG@k per row with one relevant item: ``1 / log2(rank + 1)`` within k, else 0.0; float64."""
    return hit_at(rank_B, k) / torch.log2(rank_B.double().clamp_min(1) + 1)


def means_at(rank_B: Tensor, k: int) -> dict[str, float]:
    """Mean NDCG@k and HR@k, under the names that validation logs them by."""
    return {
        f"ndcg@{k}": float(ndcg_at(rank_B, k).mean()),
        f"hr@{k}": float(hit_at(rank_B, k).mean()),
    }


def reciprocal_rank(rank_B: Tensor) -> Tensor:
    """``1 / rank`` per row, 0.0 where the target is not in the list; float64.  Its mean is MRR."""
    return (rank_B >= 1) / rank_B.double().clamp_min(1)


def auc_paired(liked_B: Tensor, disliked_B: Tensor) -> Tensor:
    """Per user: 1.0 if the liked title scores higher, 0.5 for a tie, else 0.0; float64."""
    return (liked_B > disliked_B).double() + 0.5 * (liked_B == disliked_B)


def auc_pooled(score_N: Tensor, liked_N: Tensor) -> float:
    """Area under the ROC curve over all users' scores together; ties count 1/2.

    Args:
        score_N: higher means liked more.
        liked_N: bool.

    Raises:
        ValueError: not both classes are present.
    """
    n_liked = int(liked_N.sum())
    n_pairs = n_liked * (len(liked_N) - n_liked)
    if n_pairs == 0:
        raise ValueError(
            f"AUC needs liked and disliked examples; {n_liked} of {len(liked_N)} liked"
        )
    _, value_N, count = torch.unique(score_N, return_inverse=True, return_counts=True)
    midrank = count.cumsum(0).double() - (count.double() - 1) / 2
    liked_ranks = float(midrank[value_N][liked_N].sum())
    return (liked_ranks - n_liked * (n_liked + 1) / 2) / n_pairs  # Mann-Whitney U / pairs
