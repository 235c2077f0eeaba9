"""Pop: the order, its ties, and one deep list for both policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.catalog import CatalogueEntries, gather_entries
from llmrec_cli.evaluation.metrics import score_rows, seen_leaves
from llmrec_cli.evaluation.predictions import check_predictions, list_predictions
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.models.baselines.pop import PopRanker

# Leaf counts: 0 -> 4, 1 -> 3 + 3 = 6 (items 1 and 5), 2 -> 4, 3 -> 0, 4 -> 9.
LEAVES = gather_entries(pd.DataFrame({"count": [4, 3, 4, 0, 9, 3]}), [0, 1, 2, 3, 4, 1])


def test_leaves_are_ranked_by_their_items_counts_together() -> None:
    found = PopRanker(LEAVES).rank([[]], 5)
    assert found.leaf_BK.tolist() == [[4, 1, 0, 2, 3]]  # 0 and 2 tie: the lower item first
    assert found.score_BK.tolist() == [[9, 6, 4, 4, 0]]
    assert found.leaf_BK.dtype == np.int64
    assert found.score_BK.dtype == np.float32
    assert PopRanker(LEAVES).scored_by is ScoredBy.COUNT


@pytest.mark.parametrize("depth", [1, 4, 5, 50])
def test_depth_is_a_prefix_of_the_whole_order(depth: int) -> None:
    assert PopRanker(LEAVES).rank([[2]], depth).leaf_BK[0].tolist() == [4, 1, 0, 2, 3][:depth]


def slow_list(leaves: CatalogueEntries, depth: int, gone: list[int]) -> list[int]:
    order = sorted(
        set(range(leaves.n_leaves)) - set(gone),
        key=lambda leaf: (-leaves.count_L[leaf], leaves.item_of_leaf_L[leaf]),
    )
    return [int(leaf) for leaf in order][:depth]


def test_equals_a_sort_per_row() -> None:
    rng = np.random.default_rng(0)
    leaf_of_item = np.concatenate([np.arange(30), rng.integers(0, 30, 20)])
    leaves = gather_entries(pd.DataFrame({"count": rng.integers(0, 5, 50)}), leaf_of_item)
    exclude = [rng.integers(0, 30, rng.integers(0, 12)).tolist() for _ in range(100)]
    for depth in (1, 7, 30):
        found = PopRanker(leaves).rank([[]] * 100, depth, exclude)
        places = found.places_outside(exclude, depth)
        for leaf_K, kept, gone in zip(found.leaf_BK, places, exclude, strict=True):
            assert leaf_K[kept].tolist() == slow_list(leaves, depth, gone)


def test_one_deep_list_serves_both_policies() -> None:
    columns: dict[str, Any] = {"row": [0, 1, 2], "user_id": ["a", "a", "b"], "target": [2, 4, 3]}
    rows = pd.DataFrame(columns | {"history": [[4, 1], [4, 0], []]})
    seen = seen_leaves(rows, LEAVES.leaf_of_item_I)
    assert seen == [[1, 4], [0], []]  # row 1: the target is in its own history and stays
    found = PopRanker(LEAVES).rank(rows["history"].tolist(), 2, seen)
    frame = list_predictions(rows, found, LEAVES)
    check_predictions(frame, [0, 1, 2])
    assert [len(ranked) for ranked in frame["ranked"]] == [4, 3, 2]
    assert score_rows(frame, LEAVES, [2], "remove")["rank"].tolist() == [2, 1, 0]
    assert score_rows(frame, LEAVES, [2], "keep")["rank"].tolist() == [0, 1, 0]
