"""Ranking metrics against tables computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec_cli.tensors.ranking import (
    auc_paired,
    auc_pooled,
    hit_at,
    means_at,
    ndcg_at,
    rank_of,
    reciprocal_rank,
)

RANKS = torch.tensor([0, 1, 2, 3, 5, 10, 11])


@pytest.mark.parametrize(
    ("k", "hits"),
    [(1, [0, 1, 0, 0, 0, 0, 0]), (5, [0, 1, 1, 1, 1, 0, 0]), (10, [0, 1, 1, 1, 1, 1, 0])],
)
def test_hits(k: int, hits: list[float]) -> None:
    assert hit_at(RANKS, k).tolist() == hits


@pytest.mark.parametrize(
    ("k", "gains"),
    [
        (1, [0, 1, 0, 0, 0, 0, 0]),
        (5, [0, 1, 0.6309298, 0.5, 0.3868528, 0, 0]),
        (10, [0, 1, 0.6309298, 0.5, 0.3868528, 0.2890648, 0]),
    ],
)
def test_ndcg(k: int, gains: list[float]) -> None:
    assert ndcg_at(RANKS, k).tolist() == pytest.approx(gains, abs=1e-7)


def test_reciprocal_rank() -> None:
    expected = [0, 1, 1 / 2, 1 / 3, 1 / 5, 1 / 10, 1 / 11]
    assert reciprocal_rank(RANKS).tolist() == pytest.approx(expected, abs=1e-15)


def test_metrics_keep_rows_apart_and_are_float64() -> None:
    for values in (hit_at(RANKS, 5), ndcg_at(RANKS, 5), reciprocal_rank(RANKS)):
        assert values.shape == RANKS.shape
        assert values.dtype == torch.float64


@pytest.mark.parametrize(
    ("target", "ranked", "rank"),
    [
        (7, [7, 3, 5], 1),
        (5, [7, 3, 5], 3),
        (4, [7, 3, 5], 0),
        (5, [7, 7, 5], 2),  # a repeated leaf takes one place
        (7, [3, 7, 7], 2),
        (5, [3, 7, 3, 7, 5], 3),
        (5, [7, -1, 5], 2),  # an empty place takes none
        (5, [-1, -1, -1], 0),
    ],
)
def test_rank_counts_distinct_leaves(target: int, ranked: list[int], rank: int) -> None:
    assert rank_of(torch.tensor([target]), torch.tensor([ranked])).tolist() == [rank]


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(-1, 5), min_size=6, max_size=6))))
def test_rank_equals_a_plain_loop(rows: list[tuple[int, list[int]]]) -> None:
    expected = []
    for target, ranked in rows:
        distinct = list(dict.fromkeys(leaf for leaf in ranked if leaf >= 0))
        expected.append(distinct.index(target) + 1 if target in distinct else 0)
    ranks = rank_of(
        torch.tensor([target for target, _ in rows], dtype=torch.int64),
        torch.tensor([ranked for _, ranked in rows], dtype=torch.int32).reshape(-1, 6),
    )
    assert ranks.tolist() == expected


def test_auc_paired() -> None:
    liked, disliked = torch.tensor([0.3, 0.1, 0.2]), torch.tensor([0.1, 0.3, 0.2])
    assert auc_paired(liked, disliked).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("scores", "liked", "auc"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([3, 2, 1], [1, 0, 0], 1.0),
        ([3, 2, 1], [0, 0, 1], 0.0),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 3.5 / 4),  # a tie counts half
    ],
)
def test_auc_pooled(scores: list[float], liked: list[int], auc: float) -> None:
    assert auc_pooled(torch.tensor(scores), torch.tensor(liked).bool()) == pytest.approx(auc)


def test_auc_pooled_equals_all_pairs() -> None:
    torch.manual_seed(0)
    scores, liked = torch.randint(20, (300,)).float(), torch.rand(300) < 0.3
    wins = auc_paired(scores[liked][:, None], scores[~liked][None])
    assert auc_pooled(scores, liked) == pytest.approx(float(wins.mean()), abs=1e-12)


def test_pooled_and_paired_answer_different_questions() -> None:
    """Users on different scales: every pair is right, the pool is not."""
    liked, disliked = torch.tensor([0.9, 0.2]), torch.tensor([0.8, 0.1])
    assert auc_paired(liked, disliked).mean() == 1
    labels = torch.tensor([True, True, False, False])
    assert auc_pooled(torch.cat([liked, disliked]), labels) == 0.75


@pytest.mark.parametrize("liked", [[True, True], [False, False]])
def test_auc_pooled_needs_both_classes(liked: list[bool]) -> None:
    with pytest.raises(ValueError, match="liked and disliked"):
        auc_pooled(torch.tensor([0.1, 0.2]), torch.tensor(liked))


def test_a_discount_is_the_usual_one() -> None:
    assert float(ndcg_at(torch.tensor([7]), 10)) == pytest.approx(1 / math.log2(8))


def test_means_are_over_all_rows_under_the_names_of_the_log() -> None:
    """Ranks 1 and 3 of four lists count at 3: gains 1 and 1/2; a miss is rank 0."""
    found = means_at(torch.tensor([1, 3, 4, 0]), 3)
    assert found == {"ndcg@3": pytest.approx(1.5 / 4), "hr@3": 2 / 4}
