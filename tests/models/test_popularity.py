"""Pop: the order, its ties, and what is left once items are excluded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.leaves import Leaves, gather_leaves
from llmrec_cli.models.popularity import rank_by_popularity
from llmrec_cli.report.lists import needed_depth, removable
from llmrec_cli.report.metrics import score_rows
from llmrec_cli.report.predictions import build_predictions, check_predictions

# Leaf counts: 0 -> 4, 1 -> 3 + 3 = 6 (items 1 and 5), 2 -> 4, 3 -> 0, 4 -> 9.
LEAVES = gather_leaves(pd.DataFrame({"count": [4, 3, 4, 0, 9, 3]}), [0, 1, 2, 3, 4, 1])


def test_leaves_are_ranked_by_their_items_counts_together() -> None:
    ranked, scores = rank_by_popularity(LEAVES, [5])
    assert ranked[0].tolist() == [
        4,
        1,
        0,
        2,
        3,
    ]  # ties 0 and 2, and 1 for items 1 and 5: lowest index
    assert scores[0].tolist() == [9, 6, 4, 4, 0]
    assert (ranked[0].dtype, scores[0].dtype) == (np.int32, np.float32)


def test_excluded_items_take_their_leaf_along_and_the_list_fills_up() -> None:
    ranked, scores = rank_by_popularity(LEAVES, [2, 2, 9], exclude=[[5], [], [4, 4, 0]])
    assert [r.tolist() for r in ranked] == [[4, 0], [4, 1], [1, 2, 3]]
    assert [s.tolist() for s in scores] == [[9, 4], [9, 6], [6, 4, 0]]


@pytest.mark.parametrize("depth", [0, 1, 5, 50])
def test_depth_is_a_prefix_of_the_whole_order(depth: int) -> None:
    assert rank_by_popularity(LEAVES, [depth])[0][0].tolist() == [4, 1, 0, 2, 3][:depth]


def slow_list(leaves: Leaves, depth: int, gone: list[int]) -> list[int]:
    gone_leaves = {leaves.leaf_of_item_I[i] for i in gone}
    order = sorted(
        set(range(leaves.n_leaves)) - gone_leaves,
        key=lambda leaf: (-leaves.count_L[leaf], leaves.item_of_leaf_L[leaf]),
    )
    return [int(leaves.item_of_leaf_L[leaf]) for leaf in order][:depth]


def test_equals_a_sort_per_row() -> None:
    rng = np.random.default_rng(0)
    leaf_of_item = np.concatenate([np.arange(30), rng.integers(0, 30, 20)])
    leaves = gather_leaves(pd.DataFrame({"count": rng.integers(0, 5, 50)}), leaf_of_item)
    depths = rng.integers(0, 35, 100).tolist()
    exclude = [rng.integers(0, 50, rng.integers(0, 12)).tolist() for _ in depths]
    ranked, _ = rank_by_popularity(leaves, depths, exclude)
    expected = [slow_list(leaves, d, gone) for d, gone in zip(depths, exclude, strict=True)]
    assert [r.tolist() for r in ranked] == expected


def test_one_deep_list_serves_both_policies() -> None:
    rows = pd.DataFrame(
        {
            "row": [0, 1, 2],
            "user_id": ["a", "a", "b"],
            "history": [[4, 1], [4, 0], []],
            "target": [2, 4, 3],
        }
    )
    pairs = list(zip(rows["history"], rows["target"], strict=True))
    deep = rank_by_popularity(LEAVES, [needed_depth(h, t, 2, LEAVES) for h, t in pairs])
    without = rank_by_popularity(LEAVES, [2] * 3, [removable(h, t, LEAVES) for h, t in pairs])
    frames = [build_predictions(rows, *lists) for lists in (deep, without)]
    for frame in frames:
        check_predictions(frame, [0, 1, 2])
    scored = [score_rows(frame, LEAVES, [2], "remove")["rank"].tolist() for frame in frames]
    assert scored[0] == scored[1] == [2, 1, 0]  # row 1: the target is in its own history and stays
    assert score_rows(frames[0], LEAVES, [2], "keep")["rank"].tolist() == [0, 1, 0]
