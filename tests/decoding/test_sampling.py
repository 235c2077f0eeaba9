"""Draws without replacement: beside a slow draw of all leaves, and their frequencies."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrec_cli.decoding.guide import Guide
from llmrec_cli.decoding.sampling import GumbelNoise, condition_on_maximum, draw_gumbels
from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue, score_all
from llmrec_cli.errors import RecipeError
from llmrec_cli.tensors.trie import ROOT, Trie, build_trie
from tests.decoding.search_peers import awkward_catalogue, ragged_prompts, small_model

KEYS = [11, 2**62 + 5, 0, 77, 2**63 - 1]
Draw = tuple[int, ...]


def gumbel(key: int, node: int) -> float:
    return float(draw_gumbels(torch.tensor([key]), torch.tensor([node])))


def slow_draw(trie: Trie, score_L: Tensor, key: int) -> list[tuple[float, int]]:
    """Every leaf's sum, by plain recursion from the top, best first.

    Children of a forced chain, and the opening, have the sum of their parent.
    """
    log_prob: dict[int, float] = {}
    for leaf, node in enumerate(trie.node_of_leaf_L.tolist()):
        at = node
        while at != -1:
            known = log_prob.get(at, -math.inf)
            log_prob[at] = float(np.logaddexp(known, float(score_L[leaf])))
            at = int(trie.parent_N[at])
    found: list[tuple[float, int]] = []

    def go_down(node: int, total: float) -> None:
        children = range(int(trie.edge_start_N1[node]) + 1, int(trie.edge_start_N1[node + 1]) + 1)
        if not children:
            found.append((total, int(trie.leaf_of_node_N[node])))
        elif len(children) == 1:
            go_down(children[0], total)
        else:
            free = [log_prob[child] + gumbel(key, child) for child in children]
            for child, own in zip(children, free, strict=True):
                beyond = math.exp(-total) - math.exp(-max(free)) + math.exp(-own)
                go_down(child, -math.log(beyond))

    start = ROOT
    while int(trie.fan_out(torch.tensor(start))) == 1:
        start += 1  # the opening: one node a level
    go_down(start, gumbel(key, start))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("sharpness", [1.0, 8.0])
@pytest.mark.parametrize("opening", [[], [7, 9]])
def test_draws_equal_a_draw_of_all_leaves(sharpness: float, opening: list[int]) -> None:
    """The search looks at few leaves, and finds the k highest sums of all of them."""
    catalogue = [[*opening, *item] for item in awkward_catalogue(5)]
    model, trie = small_model("llama", 5, sharpness), build_trie(catalogue)
    prompts = ragged_prompts(5)
    score_BL = score_all(model, trie, prompts, DecodeOptions(k=1)).double()
    found = rank_catalogue(model, trie, prompts, DecodeOptions(k=6), keys=KEYS)
    for row, key in enumerate(KEYS):
        slow = slow_draw(trie, score_BL[row], key)[:6]
        assert found.leaf_BK[row].tolist() == [leaf for _, leaf in slow]
        assert found.score_BK[row].tolist() == pytest.approx([s for s, _ in slow], abs=1e-4)
    best = rank_catalogue(model, trie, prompts, DecodeOptions(k=6))
    assert not torch.equal(found.leaf_BK, best.leaf_BK)


def test_all_leaves_are_drawn_once() -> None:
    model, trie = small_model("qwen3", 7), build_trie(awkward_catalogue(7))
    options = DecodeOptions(k=trie.n_leaves)
    found = rank_catalogue(model, trie, ragged_prompts(7), options, keys=KEYS)
    for leaf_K in found.leaf_BK.tolist():
        assert sorted(leaf_K) == list(range(trie.n_leaves))


def test_a_draw_depends_on_its_key_alone() -> None:
    """Not on the batch, the order of the search, or the seed of torch."""
    model, trie, prompts = small_model("llama", 3), build_trie(awkward_catalogue(3)), [[4, 9]] * 5
    options = DecodeOptions(k=5)
    whole = rank_catalogue(model, trie, prompts, options, keys=KEYS)
    assert len({tuple(row) for row in whole.leaf_BK.tolist()}) > 1
    torch.manual_seed(99)
    for row, key in enumerate(KEYS):
        alone = rank_catalogue(model, trie, prompts[:1], options, keys=[key])
        assert alone.leaf_BK[0].tolist() == whole.leaf_BK[row].tolist()
    apart = rank_catalogue(model, trie, prompts, DecodeOptions(k=5, batch=2), keys=KEYS)
    assert torch.equal(apart.leaf_BK, whole.leaf_BK)
    more = rank_catalogue(model, trie, prompts, DecodeOptions(k=8), keys=KEYS)
    assert torch.equal(more.leaf_BK[:, :5], whole.leaf_BK)


def test_excluded_leaves_do_not_change_the_order_of_the_others() -> None:
    model, trie = small_model("llama", 4), build_trie(awkward_catalogue(4))
    prompts = ragged_prompts(4)
    everything = rank_catalogue(model, trie, prompts, DecodeOptions(k=20), keys=KEYS)
    excluded = [row[:3:2] for row in everything.leaf_BK.tolist()]
    found = rank_catalogue(model, trie, prompts, DecodeOptions(k=6), excluded, keys=KEYS)
    for row, gone in enumerate(excluded):
        kept = [leaf for leaf in found.leaf_BK[row].tolist() if leaf not in (*gone, -1)]
        order = [leaf for leaf in everything.leaf_BK[row].tolist() if leaf not in gone]
        assert kept == order[:6]


CHI_SQUARE_999 = {19: 43.82, 23: 49.73}  # 0.999 quantiles by degrees of freedom


def test_frequencies_are_those_of_draws_without_replacement() -> None:
    """Ordered pairs of five entries, 20,000 keys, against p_i p_j / (1 - p_i): chi-square."""
    catalogue = [[5, 6, 1], [5, 7, 1], [5, 7, 8, 1], [9, 1], [10, 11, 12, 1]]
    model, trie = small_model("llama", 1, 4.0), build_trie(catalogue)
    p_L = score_all(model, trie, [[4, 9]], DecodeOptions(k=1))[0].exp().double()
    p = (p_L / p_L.sum()).tolist()
    assert max(p) < 0.9
    assert min(p) > 1e-3
    n = 20_000
    options = DecodeOptions(k=2, batch=4_000)
    drawn = rank_catalogue(model, trie, [[4, 9]] * n, options, keys=list(range(n))).leaf_BK
    counts: Counter[Draw] = Counter(map(tuple, drawn.tolist()))
    statistic = 0.0
    for i, j in itertools.permutations(range(5), 2):
        expected = n * p[i] * p[j] / (1 - p[i])
        statistic += (counts[i, j] - expected) ** 2 / expected
    assert sum(counts.values()) == n
    assert statistic < CHI_SQUARE_999[19]


def test_noise_is_gumbel_and_independent_of_neighbours() -> None:
    key, number = torch.arange(400)[:, None], torch.arange(500)
    noise = draw_gumbels(key, number)
    assert noise.dtype == torch.float64
    uniform = (-(-noise).exp()).exp().flatten()  # the distribution function
    counts = torch.histc(uniform.float(), 24, 0, 1).double()
    expected = len(uniform) / 24
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE_999[23]
    flat = noise - noise.mean()
    for one, other in ((flat[1:], flat[:-1]), (flat[:, 1:], flat[:, :-1])):
        assert abs(float((one * other).mean() / noise.var())) < 4 / math.sqrt(one.numel())


def test_the_highest_of_a_group_is_what_is_asked_for() -> None:
    free = torch.tensor([[0.3, -2.0, -torch.inf], [40.0, -700.0, 39.9]], dtype=torch.float64)
    maximum = torch.tensor([-5.0, 3.0], dtype=torch.float64)
    found = condition_on_maximum(free, maximum)
    assert found.amax(1).tolist() == maximum.tolist()
    assert found[0, 2] == -torch.inf
    assert not found.isnan().any()
    by_hand = -math.log(math.exp(5.0) - math.exp(-0.3) + math.exp(2.0))
    assert float(found[0, 1]) == pytest.approx(by_hand)


def test_no_rounding_lifts_a_child_above_its_parent() -> None:
    """Best-first search relies on it to the last bit; the best child has its parent's very sum."""
    torch.manual_seed(0)
    trie = build_trie([[3 + first, 40 + second, 1] for first in range(8) for second in range(30)])
    noise = GumbelNoise(trie, range(50))
    row_B = torch.arange(50)
    parent_BX = torch.randn(50, 8) * torch.tensor([1e-6, 1e-3, 1, 10, 100, 1e3, 1e4, 1e5])
    node_BC = torch.arange(9, 9 + 8 * 30).expand(50, -1)
    log_prob_BC = torch.randn(50, 8 * 30) * 20 - 10
    score_BC = noise.perturb(row_B, node_BC, log_prob_BC, parent_BX)
    assert torch.equal(score_BC.view(50, 8, 30).amax(2), parent_BX)
    assert torch.equal(noise.find_log_probs(row_B, node_BC), log_prob_BC)


@pytest.mark.parametrize(
    "changes", [{"mask": "after"}, {"search": "beam"}, {"search": "all"}, {"guide": True}]
)
def test_draws_need_a_distribution_over_the_catalogue(changes: dict[str, Any]) -> None:
    model, trie = small_model("llama", 1), build_trie([[5, 1], [6, 1]])
    guide = Guide(lambda rows: torch.zeros(len(rows), 2), 1.0) if changes.pop("guide", 0) else None
    options = DecodeOptions(k=1, **changes)
    with pytest.raises(RecipeError, match="draws need search = 'exact' and mask = 'before'"):
        rank_catalogue(model, trie, [[4]], options, guide=guide, keys=[1])
