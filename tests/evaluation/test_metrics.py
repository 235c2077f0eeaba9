"""Per-row metrics and list properties against tables worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.catalog import CatalogueEntries, gather_entries
from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.metrics import (
    Seen,
    cut_top_lists,
    find_repeats,
    measure_gini,
    measure_lists,
    metric_of_ranks,
    name_metrics,
    score_rows,
    seen_leaves,
)

# Ten items, eight leaves: items 1 and 6 share leaf 1 (counts 5 + 7), items 2 and 9 leaf 2.
LEAF_OF_ITEM = [0, 1, 2, 3, 4, 5, 1, 6, 7, 2]
COUNT = [20, 5, 9, 3, 2, 1, 7, 4, 0, 1]


@pytest.fixture
def leaves() -> CatalogueEntries:
    return gather_entries(pd.DataFrame({"count": COUNT}), LEAF_OF_ITEM)


def frame(*rows: tuple[str, list[int], int, list[int]]) -> pd.DataFrame:
    """Predictions from (user_id, history, target, ranked); scores fall by one."""
    users, histories, targets, ranked = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "row": np.arange(len(rows), dtype=np.int32),
            "user_id": list(users),
            "history": [np.array(h, dtype=np.int32) for h in histories],
            "target": np.array(targets, dtype=np.int32),
            "ranked": [np.array(r, dtype=np.int32) for r in ranked],
            "scores": [-np.arange(len(r), dtype=np.float32) for r in ranked],
        }
    )


def ranks(
    predictions: pd.DataFrame, leaves: CatalogueEntries, k: int, seen: Seen = "keep"
) -> list[int]:
    return score_rows(predictions, leaves, [k], seen, short="miss")["rank"].tolist()


def test_leaves_count_represent_and_order_by_hand(leaves: CatalogueEntries) -> None:
    assert leaves.count_L.tolist() == [20, 12, 10, 3, 2, 1, 4, 0]
    assert leaves.item_of_leaf_L.tolist() == [0, 6, 2, 3, 4, 5, 7, 8]
    assert leaves.by_popularity_L.tolist() == [0, 1, 2, 6, 3, 4, 5, 7]


def test_every_metric_by_hand(leaves: CatalogueEntries) -> None:
    predictions = frame(
        ("a", [0], 3, [3, 4, 5]),  # rank 1
        ("a", [0], 5, [3, 4, 5]),  # rank 3
        ("b", [0], 8, [3, 4, 5]),  # not found
    )
    scored = score_rows(predictions, leaves, [3, 1], "keep")
    assert scored["rank"].tolist() == [1, 3, 0]
    assert name_metrics([3, 1]) == ["hr@1", "ndcg@1", "hr@3", "ndcg@3", "mrr@3"]
    assert scored["hr@1"].tolist() == [1, 0, 0]
    assert scored["ndcg@1"].tolist() == [1, 0, 0]
    assert scored["hr@3"].tolist() == [1, 1, 0]
    assert scored["ndcg@3"].tolist() == [1, 0.5, 0]  # 1 / log2(4)
    assert scored["mrr@3"].tolist() == [1, pytest.approx(1 / 3), 0]


def test_a_hit_on_either_item_of_a_shared_leaf_counts(leaves: CatalogueEntries) -> None:
    assert ranks(frame(("a", [], 1, [0, 6])), leaves, 2) == [2]
    assert ranks(frame(("a", [], 6, [0, 1])), leaves, 2) == [2]


def test_items_of_one_leaf_take_one_place(leaves: CatalogueEntries) -> None:
    predictions = frame(("a", [], 3, [1, 6, 9, 2, 3]))  # leaves 1 1 2 2 3
    assert ranks(predictions, leaves, 3) == [3]
    assert cut_top_lists(predictions, leaves, 4, "keep").leaf_RK.tolist() == [[1, 2, 3, -1]]


def test_remove_drops_history_leaves_from_the_list(leaves: CatalogueEntries) -> None:
    predictions = frame(("a", [0, 6], 3, [0, 1, 5, 3]))  # item 1 is gone through its leaf-mate 6
    assert ranks(predictions, leaves, 2, "keep") == [0]
    assert ranks(predictions, leaves, 2, "remove") == [2]


def test_remove_never_drops_the_target(leaves: CatalogueEntries) -> None:
    in_own_history = frame(("a", [0, 1, 3], 3, [0, 1, 3]))
    shares_leaf_with_history = frame(("a", [0, 6], 1, [0, 6]))
    assert ranks(in_own_history, leaves, 1, "remove") == [1]
    assert ranks(shares_leaf_with_history, leaves, 1, "remove") == [1]
    assert seen_leaves(shares_leaf_with_history, leaves.leaf_of_item_I) == [[0]]


def test_repeats_are_rows_whose_targets_leaf_is_in_their_history(leaves: CatalogueEntries) -> None:
    rows = [("a", [0, 6], 1, [0]), ("b", [0, 6], 3, [0]), ("c", [], 0, [0]), ("d", [3], 3, [0])]
    assert find_repeats(frame(*rows), leaves).tolist() == [True, False, False, True]


def test_a_list_that_already_left_the_history_out_scores_the_same(leaves: CatalogueEntries) -> None:
    whole = frame(("a", [0, 1], 3, [0, 1, 2, 3]))
    searched_without = frame(("a", [0, 1], 3, [2, 3]))
    assert ranks(whole, leaves, 2, "remove") == ranks(searched_without, leaves, 2, "remove") == [2]


def test_too_short_lists_are_refused_or_miss(leaves: CatalogueEntries) -> None:
    predictions = frame(("a", [0], 3, [0, 1, 2]), ("b", [5], 3, [0, 1, 2]))
    score_rows(predictions, leaves, [3], "keep")
    with pytest.raises(ArtefactError, match=r"row 0: 2 distinct candidates .*remove.*, expected 3"):
        score_rows(predictions, leaves, [3], "remove")
    second = frame(("b", [5], 3, [0, 1, 2]), ("a", [2], 3, [0, 1, 2]))
    with pytest.raises(ArtefactError, match=r"row 1: 2 distinct candidates .*1 of 2 rows"):
        score_rows(second, leaves, [3], "remove")
    assert ranks(predictions, leaves, 3, "remove") == [0, 0]
    assert measure_lists(predictions, leaves, 3, "remove").short == 1


def test_a_complete_list_is_never_too_short(leaves: CatalogueEntries) -> None:
    everything = frame(("a", [0, 2, 9], 8, list(range(10))))
    scored = score_rows(everything, leaves, [100], "remove")
    assert scored["rank"].tolist() == [6]  # leaves 1 3 4 5 6 7: the target's is the last
    assert seen_leaves(everything, leaves.leaf_of_item_I) == [[0, 2]]  # items 2 and 9 share a leaf


def test_a_list_longer_by_the_seen_leaves_is_deep_enough_and_not_more(
    leaves: CatalogueEntries,
) -> None:
    history, target = [0, 2, 9], 8
    [seen] = seen_leaves(frame(("a", history, target, [])), leaves.leaf_of_item_I)
    depth = 3 + len(seen)
    worst = [0, 2, 3, 4, 5, 1, 7, 8]  # the history's leaves first
    score_rows(frame(("a", history, target, worst[:depth])), leaves, [3], "remove")
    with pytest.raises(ArtefactError):
        score_rows(frame(("a", history, target, worst[: depth - 1])), leaves, [3], "remove")


def test_rows_come_back_in_order_whatever_order_they_arrive_in(leaves: CatalogueEntries) -> None:
    predictions = frame(("a", [], 0, [0]), ("b", [], 0, [1]), ("c", [], 2, [2]))
    shuffled = predictions.iloc[[2, 0, 1]]
    expected = score_rows(predictions, leaves, [1], "keep")
    pd.testing.assert_frame_equal(score_rows(shuffled, leaves, [1], "keep"), expected)


@pytest.mark.parametrize("column", ["history", "target", "ranked"])
@pytest.mark.parametrize("item", [-1, 10])
def test_items_outside_the_catalogue_are_named(
    leaves: CatalogueEntries, column: str, item: int
) -> None:
    parts = {"history": [0], "target": 0, "ranked": [0]}
    parts[column] = item if column == "target" else [0, item]
    bad = frame(("a", [0], 0, [0]), ("b", parts["history"], parts["target"], parts["ranked"]))  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match=rf"row 1: item {item} is outside the catalogue of 10"):
        cut_top_lists(bad, leaves, 1, "remove")


def slow_rank(row: pd.Series, leaves: CatalogueEntries, k: int, seen: Seen) -> int:
    """The definitions of docs/evaluation.md, word for word."""
    leaf_of = leaves.leaf_of_item_I
    target = leaf_of[row["target"]]
    gone = {leaf_of[i] for i in row["history"]} - {target} if seen == "remove" else set()
    listed: list[int] = []
    for item in row["ranked"]:
        if leaf_of[item] not in gone and leaf_of[item] not in listed:
            listed.append(leaf_of[item])
    return listed[:k].index(target) + 1 if target in listed[:k] else 0


@pytest.mark.parametrize("seen", ["keep", "remove"])
def test_vectorised_ranks_equal_the_slow_reference(seen: Seen) -> None:
    rng = np.random.default_rng(7)
    n_items, n_rows = 60, 1300  # more rows than one chunk
    leaf_of_item = np.concatenate([np.arange(40), rng.integers(0, 40, n_items - 40)])
    leaves = gather_entries(pd.DataFrame({"count": rng.integers(0, 9, n_items)}), leaf_of_item)
    rows = [
        (
            f"u{rng.integers(300)}",
            rng.integers(0, n_items, rng.integers(0, 8)).tolist(),
            int(rng.integers(n_items)),
            rng.permutation(n_items)[: rng.integers(0, 30)].tolist(),
        )
        for _ in range(n_rows)
    ]
    predictions = frame(*rows)
    expected = [slow_rank(row, leaves, 10, seen) for _, row in predictions.iterrows()]
    assert ranks(predictions, leaves, 10, seen) == expected
    assert len(set(expected)) == 11  # every rank and the miss occur


def test_beyond_accuracy_by_hand(leaves: CatalogueEntries) -> None:
    predictions = frame(("a", [0], 3, [0, 1]), ("b", [], 3, [6, 3]))  # leaves 0 1 and 1 3
    got = measure_lists(predictions, leaves, 2, "keep")
    assert got.depth == 2
    assert got.coverage == 3 / 8
    assert got.popularity == (20 + 12 + 12 + 3) / 4
    assert got.long_tail == 1 / 4  # head: ceil(0.2 * 8) = 2 leaves, 0 and 1
    # counts 0 0 0 0 0 1 1 2, rising: sum (2 i - 9) c = 3 + 5 + 2 * 7 = 22; over 8 * 4
    assert got.gini == pytest.approx(22 / 32)
    assert got.short == 0


def test_beyond_accuracy_sees_only_the_first_k_and_the_policy(leaves: CatalogueEntries) -> None:
    predictions = frame(("a", [0], 3, [0, 1, 2, 3]))
    kept = measure_lists(predictions, leaves, 2, "keep")
    removed = measure_lists(predictions, leaves, 2, "remove")
    assert (kept.popularity, removed.popularity) == ((20 + 12) / 2, (12 + 10) / 2)


def test_nothing_recommended_has_no_means(leaves: CatalogueEntries) -> None:
    got = measure_lists(frame(("a", [], 3, [])), leaves, 2, "keep")
    assert got.coverage == 0
    assert all(math.isnan(x) for x in (got.gini, got.popularity, got.long_tail))
    assert got.short == 1


def test_gini_bounds_and_definition() -> None:
    assert measure_gini(np.array([3, 3, 3])) == 0
    assert measure_gini(np.array([0, 0, 0, 9])) == pytest.approx(1 - 1 / 4)
    counts = np.random.default_rng(1).integers(0, 50, 40)
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert measure_gini(counts) == pytest.approx(differences / (2 * counts.mean()))


@pytest.mark.parametrize(
    ("count", "leaf_of_item", "message"),
    [
        ([1, 2], [0], "leaf index of 1 items, but the catalogue has 2"),
        ([1, 2], [0, 2], "every number from 0 on"),
        ([1, 2], [1, 2], "every number from 0 on"),
        ([], [], "every number from 0 on"),
    ],
)
def test_leaves_of_another_catalogue_are_refused(
    count: list[int], leaf_of_item: list[int], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        gather_entries(pd.DataFrame({"count": count}), leaf_of_item)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hr@1", [0, 1, 0, 0, 0, 0, 0]),
        ("hr@5", [0, 1, 1, 1, 1, 0, 0]),
        ("ndcg@1", [0, 1, 0, 0, 0, 0, 0]),
        ("ndcg@5", [0, 1, 0.6309298, 0.5, 0.3868528, 0, 0]),
        ("ndcg@10", [0, 1, 0.6309298, 0.5, 0.3868528, 0.2890648, 0]),
        ("mrr@10", [0, 1, 1 / 2, 1 / 3, 1 / 5, 1 / 10, 0]),
    ],
)
def test_a_metric_of_ranks(name: str, expected: list[float]) -> None:
    """Rank 0 is a target that is not in the list."""
    values = metric_of_ranks(name, np.array([0, 1, 2, 3, 5, 10, 11]))
    assert values.dtype == np.float64
    assert values.tolist() == pytest.approx(expected, abs=1e-7)
