"""Guided search against brute force over all items, and scores of Rankers as a guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmrec_cli.decoding.guide import (
    UNIFORM,
    Guide,
    LeafScores,
    bound_nodes,
    log_probabilities,
    sum_nodes,
)
from llmrec_cli.decoding.search import rank_catalogue, score_all
from llmrec_cli.errors import NumbersError, RecipeError
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.tensors.trie import Trie, build_trie
from tests.decoding.search_peers import awkward_catalogue, ragged_prompts, slow_scores, small_model
from tests.decoding.test_search import expect_top, leaves_of, options

WEIGHTS = [0.3, 1.0, 4.0, 50.0]


def semantic_ids(seed: int, levels: int = 3, size: int = 5, n_items: int = 60) -> list[list[int]]:
    """IDs of a few levels with tokens of their own, some of them shared by two items."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, size, (n_items, levels), generator=draw).tolist()
    return [[*(3 + level * size + code for level, code in enumerate(row)), 1] for row in codes]


CATALOGUES: dict[str, Callable[[int], list[list[int]]]] = {
    "titles": awkward_catalogue,
    "semantic IDs": semantic_ids,
}


def draw_log_probs(seed: int, n_users: int, n_leaves: int) -> Tensor:
    """Peaked distributions, with many equal values as similarities have them."""
    draw = torch.Generator().manual_seed(seed)
    score_BL = torch.randn((n_users, n_leaves), generator=draw) * 3
    score_BL[torch.rand(score_BL.shape, generator=draw) < 0.5] = -4.0
    return score_BL.log_softmax(1)


def make_guide(log_prob_BL: Tensor, weight: float) -> Guide:
    return Guide(lambda rows: log_prob_BL[list(rows)], weight)


@pytest.mark.parametrize("kind", CATALOGUES)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("sharpness", [1.0, 24.0])
def test_guided_search_equals_brute_force(
    kind: str, weight: float, mask: str, sharpness: float
) -> None:
    """Every leaf for itself through a Hugging Face Llama, without trie or cache, in float64."""
    model, trie = small_model("llama", 3, sharpness), build_trie(CATALOGUES[kind](3))
    prompts = ragged_prompts(3)
    slow_BL = torch.stack([slow_scores(model, leaves_of(trie), one, mask) for one in prompts])
    log_prob_BL = draw_log_probs(3, len(prompts), trie.n_leaves)
    joined_BL = slow_BL + weight * log_prob_BL.double()
    best_BL = joined_BL.argsort(descending=True).tolist()
    exclude = [row[1:4] + row[7:8] for row in best_BL]
    for search in ("exact", "all", "beam"):  # a beam as wide as the catalogue
        how = options(mask=mask, search=search, beams=trie.n_leaves)
        found = rank_catalogue(model, trie, prompts, how, guide=make_guide(log_prob_BL, weight))
        expect_top(found, joined_BL, 6)
        found = rank_catalogue(
            model, trie, prompts, how, exclude, guide=make_guide(log_prob_BL, weight)
        )
        expect_top(found, joined_BL, 6, exclude)


@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("search", ["exact", "all", "beam"])
def test_weight_0_is_the_list_without_a_guide(mask: str, search: str) -> None:
    model, trie = small_model("llama", 4), build_trie(awkward_catalogue(4))
    prompts, how = ragged_prompts(4), options(mask=mask, search=search)
    log_prob_BL = draw_log_probs(4, len(prompts), trie.n_leaves)
    alone = rank_catalogue(model, trie, prompts, how)
    found = rank_catalogue(model, trie, prompts, how, guide=make_guide(log_prob_BL, 0.0))
    assert torch.equal(found.leaf_BK, alone.leaf_BK)
    assert torch.equal(found.score_BK, alone.score_BK)
    unasked = Guide(lambda rows: pytest.fail("a guide without weight was asked"), 0.0)
    rank_catalogue(model, trie, prompts, how, guide=unasked)
    other = rank_catalogue(model, trie, prompts, how, guide=make_guide(log_prob_BL, 1.0))
    assert not torch.equal(other.leaf_BK, alone.leaf_BK)


def test_users_that_leave_the_batch_take_their_guide_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prefix a round and many users: most leave early, in another order than they came."""
    model, trie = small_model("qwen3", 7), build_trie(awkward_catalogue(7, 200))
    prompts = ragged_prompts(7, range(1, 24))
    log_prob_BL = draw_log_probs(7, len(prompts), trie.n_leaves)
    log_prob_BL[::3] = -np.log(trie.n_leaves)  # these search longer than the others
    joined_BL = score_all(model, trie, prompts, options()) + 2 * log_prob_BL
    monkeypatch.setattr("llmrec_cli.decoding.search._count_tokens", lambda k, n: 1)
    guide = make_guide(log_prob_BL, 2.0)
    expect_top(rank_catalogue(model, trie, prompts, options(), guide=guide), joined_BL, 6)
    expect_top(rank_catalogue(model, trie, prompts, options(batch=5), guide=guide), joined_BL, 6)


titles = st.lists(st.integers(3, 12), min_size=1, max_size=5).map(lambda tokens: [*tokens, 1])


@given(
    st.lists(titles, min_size=1, max_size=25),
    st.integers(1, 8),
    st.sampled_from([0.0, 1.0, 8.0, 40.0]),
    st.sampled_from(WEIGHTS),
    st.sampled_from(["before", "after"]),
    st.sampled_from(["exact", "beam"]),
    st.integers(0, 50),
)
@settings(max_examples=40, deadline=None)
def test_any_catalogue_is_ranked_as_by_brute_force(
    catalogue: list[list[int]],
    k: int,
    sharpness: float,
    weight: float,
    mask: str,
    search: str,
    seed: int,
) -> None:
    """Equal scores may change places."""
    model, trie, prompts = small_model("llama", seed, sharpness), build_trie(catalogue), [[5, 9]]
    log_prob_BL = draw_log_probs(seed, 1, trie.n_leaves)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmrec_cli.decoding.search._count_tokens", lambda k, n: 1)
        guide = make_guide(log_prob_BL, weight)
        how = options(k=k, mask=mask, search=search, beams=max(k, trie.n_leaves))
        found = rank_catalogue(model, trie, prompts, how, guide=guide)
    slow_L = slow_scores(model, leaves_of(trie), prompts[0], mask, 1.0)
    joined_L = (slow_L + weight * log_prob_BL[0].double()).float()
    listed = found.leaf_BK[0][found.leaf_BK[0] >= 0]
    best = joined_L.sort(descending=True).values[:k]
    assert found.proven
    assert len(listed) == min(k, trie.n_leaves) == len(set(listed.tolist()))
    torch.testing.assert_close(joined_L[listed], best, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(found.score_BK[0][: len(listed)], best, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", CATALOGUES)
def test_a_bound_is_the_best_leaf_below_and_a_mass_the_sum(kind: str) -> None:
    """Forced chains too; and where all probabilities below a node are tiny."""
    trie = build_trie([[7, 8, *item] for item in CATALOGUES[kind](5)])
    log_prob_BL = (torch.randn(3, trie.n_leaves) * 60).log_softmax(1)
    guide, row_B = LeafScores(log_prob_BL, 0.7), torch.tensor([2, 0])
    node_N = torch.arange(trie.n_nodes).expand(2, -1)
    bound_BN = bound_nodes(trie, guide).at(row_B, node_N)
    mass_BN = sum_nodes(trie, guide).at(row_B, node_N)
    for node in range(trie.n_nodes):
        below = [leaf for leaf in range(trie.n_leaves) if node in path_of(trie, leaf)]
        below_BL = log_prob_BL[row_B][:, below]
        assert torch.equal(bound_BN[:, node], (0.7 * below_BL).amax(1))
        expected = 0.7 * below_BL.double().logsumexp(1)
        torch.testing.assert_close(mass_BN[:, node].double(), expected, atol=1e-5, rtol=1e-6)
    assert mass_BN.min() < math.log(1e-38)  # a probability of 0 in fp32
    parent_N = trie.parent_N[1:].long()
    assert (mass_BN[:, 1:] <= mass_BN[:, parent_N]).all()  # to the last bit: scores only fall


def path_of(trie: Trie, leaf: int) -> list[int]:
    """The nodes from a leaf up to the root."""
    nodes = [int(trie.node_of_leaf_L[leaf])]
    while nodes[-1] != 0:
        nodes.append(int(trie.parent_N[nodes[-1]]))
    return nodes


def test_a_guided_search_reads_no_more_than_it_has_to() -> None:
    """A guide that knows the answer ends the search early: its bound prunes open prefixes."""
    model, trie = small_model("llama", 9, 1.0), build_trie(awkward_catalogue(9, 300))
    log_prob_BL = torch.full((1, trie.n_leaves), -30.0)
    log_prob_BL[0, 17] = 0.0
    tokens = [count_tokens(model, trie, guide) for guide in (None, make_guide(log_prob_BL, 5.0))]
    assert tokens[1] < tokens[0] / 2


def count_tokens(model: Any, trie: Trie, guide: Guide | None) -> int:
    """Tokens that the model reads to find the best entry behind one prompt."""
    read: list[int] = []

    def note(body: object, given: object, named: dict[str, Any]) -> None:
        read.append(named["input_ids"].numel())

    hook = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    rank_catalogue(model, trie, [[5, 6]], options(k=1), guide=guide)
    hook.remove()
    return sum(read)


@pytest.mark.parametrize("search", ["all", "beam"])
def test_a_length_penalty_takes_no_guide(search: str) -> None:
    model, trie = small_model("llama", 0), build_trie(awkward_catalogue(0))
    guide = make_guide(draw_log_probs(0, 1, trie.n_leaves), 1.0)
    how = options(search=search, length_penalty=1.0)
    with pytest.raises(RecipeError, match=r"length_penalty = 1\.0: must be 0 with a guide"):
        rank_catalogue(model, trie, [[3]], how, guide=guide)


def test_a_guide_of_infinite_scores_is_an_error() -> None:
    model, trie = small_model("llama", 0), build_trie(awkward_catalogue(0))
    wrong = torch.full((1, trie.n_leaves), -torch.inf)
    with pytest.raises(NumbersError, match="a score of the guide is NaN or infinite"):
        rank_catalogue(model, trie, [[3]], options(), guide=make_guide(wrong, 1.0))


def as_probabilities(score: Sequence[float], scored_by: ScoredBy) -> list[float]:
    return log_probabilities(np.array([score]), scored_by).exp()[0].tolist()


def test_scores_become_probabilities_over_the_catalogue() -> None:
    log_scores = [math.log(p) for p in (0.1, 0.2, 0.3)]  # some mass lies outside the catalogue
    found = as_probabilities(log_scores, ScoredBy.LOG_PROBABILITY)
    assert found == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    mixed = [(1 - UNIFORM) * share + UNIFORM / 3 for share in (0.0, 0.25, 0.75)]
    for scored_by in (ScoredBy.COUNT, ScoredBy.SIMILARITY):
        assert as_probabilities([0, 1, 3], scored_by) == pytest.approx(mixed)
        assert as_probabilities([0, 1e-6, 3e-6], scored_by) == pytest.approx(mixed)
        assert as_probabilities([0, 0, 0], scored_by) == pytest.approx([1 / 3] * 3)


def test_scores_that_cannot_guide() -> None:
    with pytest.raises(NumbersError, match="not finite"):
        log_probabilities(np.array([[0.0, np.nan]]), ScoredBy.LOG_PROBABILITY)
    with pytest.raises(NumbersError, match="not at least 0"):
        log_probabilities(np.array([[0.5, -0.1]]), ScoredBy.SIMILARITY)
