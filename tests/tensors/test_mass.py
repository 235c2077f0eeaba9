"""Item probabilities on the trie against plain sums over items."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_cli.tensors.trie import ROOT, build_trie, edges_of, leaf_mass, leaf_ranges, paths
from tests.tensors.trie_walk import walk

EOS = 9
titles = st.lists(st.integers(0, 4), max_size=5).map(lambda title: [*title, EOS])
catalogues = st.lists(titles, min_size=1, max_size=25)


@given(catalogues, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_mass_of_a_node_is_the_sum_over_the_items_below_it(
    items: list[list[int]], seed: int
) -> None:
    trie = build_trie(items)
    torch.manual_seed(seed)
    probability_AF = torch.rand(3, trie.n_leaves)
    mass = leaf_mass(probability_AF, leaf_ranges(trie))
    sequences = {tuple(item): int(trie.leaf_of_item_I[i]) for i, item in enumerate(items)}
    for prefix in {tuple(item[:t]) for item in items for t in range(len(item) + 1)}:
        below = [leaf for tokens, leaf in sequences.items() if tokens[: len(prefix)] == prefix]
        node = torch.tensor(walk(trie, prefix))
        for answer in range(3):
            expected = float(probability_AF[answer, below].double().sum())
            found = float(mass.of_nodes(torch.tensor(answer), node))
            assert found == pytest.approx(expected, abs=1e-12)


@given(catalogues)
@settings(max_examples=40, deadline=None)
def test_leaves_below_a_node_are_a_range(items: list[list[int]]) -> None:
    trie = build_trie(items)
    first_N, end_N = leaf_ranges(trie)
    node_LT, _, length_L = paths(trie, torch.arange(trie.n_leaves))
    below: list[set[int]] = [set() for _ in range(trie.n_nodes)]
    for leaf in range(trie.n_leaves):
        on_the_way = node_LT[leaf, : int(length_L[leaf])].tolist()
        for node in (*on_the_way, int(trie.node_of_leaf_L[leaf])):
            below[node].add(leaf)
    assert [
        set(range(a, b)) for a, b in zip(first_N.tolist(), end_N.tolist(), strict=True)
    ] == below
    assert (int(first_N[ROOT]), int(end_N[ROOT])) == (0, trie.n_leaves)


def test_children_share_the_mass_of_their_node() -> None:
    trie = build_trie([[1, 2, EOS], [1, 3, EOS], [1, EOS], [4, EOS], [1, 3, 5, EOS]])
    torch.manual_seed(0)
    mass = leaf_mass(torch.rand(2, trie.n_leaves).softmax(1), leaf_ranges(trie))
    inner = torch.nonzero(trie.fan_out(torch.arange(trie.n_nodes)) > 0).squeeze(1)
    edge_C, owner_C = edges_of(trie, inner)
    for answer in range(2):
        children = mass.of_nodes(torch.full_like(edge_C, answer), edge_C + 1)
        summed = torch.zeros(len(inner), dtype=torch.float64).index_add(0, owner_C, children)
        torch.testing.assert_close(summed, mass.of_nodes(torch.full_like(inner, answer), inner))
    assert float(mass.of_nodes(torch.tensor(0), torch.tensor(ROOT))) == pytest.approx(1)


def test_an_item_without_probability_leaves_exactly_none() -> None:
    """History items may be zeroed; nothing of a neighbour's mass may fall on them."""
    trie = build_trie([[token, EOS] for token in range(8)])
    torch.manual_seed(1)
    probability_AF = torch.rand(1, 8)
    probability_AF[0, [0, 3, 4, 7]] = 0
    mass = leaf_mass(probability_AF, leaf_ranges(trie))
    of_leaf = mass.of_nodes(torch.zeros(8, dtype=torch.int64), trie.node_of_leaf_L.long())
    assert (of_leaf == 0).tolist() == (probability_AF[0] == 0).tolist()


def test_a_sum_that_falls_by_rounding_gives_no_negative_mass() -> None:
    trie = build_trie([[1, EOS], [2, EOS]])
    mass = leaf_mass(torch.tensor([[1.0, -0.25]]), leaf_ranges(trie))
    assert float(mass.of_nodes(torch.tensor(0), trie.node_of_leaf_L[1].long())) == 0
