"""The flat trie against nested dictionaries."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_cli.tensors.trie import (
    ROOT,
    Trie,
    build_trie,
    edges_of,
    items_below,
    paths,
    tokens_to,
    widest_node,
)
from tests.tensors.trie_walk import walk

EOS = 9
titles = st.lists(st.integers(0, 4), max_size=5).map(lambda title: [*title, EOS])
catalogues = st.lists(titles, min_size=1, max_size=25)


def legal_by_prefix(items: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """The obvious trie: each prefix that occurs -> its next tokens, sorted."""
    children: dict[tuple[int, ...], set[int]] = {}
    for item in items:
        for t, token in enumerate(item):
            children.setdefault(tuple(item[:t]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in children.items()}


@given(catalogues)
@settings(max_examples=60, deadline=None)
def test_legal_tokens_equal_the_dictionary_tries(items: list[list[int]]) -> None:
    trie, expected = build_trie(items), legal_by_prefix(items)
    assert trie.n_nodes == 1 + sum(map(len, expected.values()))
    nodes = torch.tensor([walk(trie, prefix) for prefix in expected])
    assert trie.fan_out(nodes).tolist() == [len(tokens) for tokens in expected.values()]
    edge_C, owner_C = edges_of(trie, nodes)
    assert trie.edge_token_E[edge_C].tolist() == [t for legal in expected.values() for t in legal]
    owners = [i for i, legal in enumerate(expected.values()) for _ in legal]
    assert owner_C.tolist() == owners
    assert torch.equal(trie.parent_N[edge_C + 1].long(), nodes[owner_C])


@given(catalogues)
@settings(max_examples=60, deadline=None)
def test_paths_spell_the_items(items: list[list[int]]) -> None:
    trie = build_trie(items)
    node_BT, token_BT, length_B = paths(trie, trie.leaf_of_item_I)
    assert trie.max_length == max(map(len, items))
    for item, nodes, tokens, length in zip(
        items, node_BT.tolist(), token_BT.tolist(), length_B.tolist(), strict=True
    ):
        assert length == len(item)
        assert tokens == item + [-1] * (len(tokens) - length)
        assert nodes[:length] == [walk(trie, item[:t]) for t in range(length)]
        assert set(nodes[length:]) <= {-1}


@given(catalogues)
@settings(max_examples=60, deadline=None)
def test_items_share_a_leaf_exactly_if_their_tokens_are_equal(items: list[list[int]]) -> None:
    trie = build_trie(items)
    leaf_of_title: dict[tuple[int, ...], int] = {}
    for item, leaf in zip(items, trie.leaf_of_item_I.tolist(), strict=True):
        assert leaf_of_title.setdefault(tuple(item), leaf) == leaf
        assert int(trie.leaf_of_node_N[walk(trie, item)]) == leaf
    assert len(set(leaf_of_title.values())) == len(leaf_of_title) == trie.n_leaves
    assert sorted(leaf_of_title, key=leaf_of_title.__getitem__) == sorted(leaf_of_title)
    start = trie.item_start_L1.tolist()
    for leaf in range(trie.n_leaves):
        members = trie.item_order_I[start[leaf] : start[leaf + 1]].tolist()
        assert members == [i for i, x in enumerate(trie.leaf_of_item_I.tolist()) if x == leaf]


@given(catalogues)
@settings(max_examples=40, deadline=None)
def test_leaves_below_a_node_are_a_contiguous_range(items: list[list[int]]) -> None:
    trie = build_trie(items)
    node_BT, _, _ = paths(trie, torch.arange(trie.n_leaves))
    for node in range(trie.n_nodes):
        below = torch.nonzero((node_BT == node).any(1)).squeeze(1)
        if len(below):
            assert torch.equal(below, torch.arange(int(below[0]), int(below[-1]) + 1))


@given(catalogues)
@settings(max_examples=40, deadline=None)
def test_the_arrays_agree_with_each_other(items: list[list[int]]) -> None:
    trie = build_trie(items)
    parent = trie.parent_N.tolist()
    assert parent[ROOT] == -1
    assert all(0 <= p < n for n, p in enumerate(parent) if n != ROOT)
    counts = torch.bincount(trie.parent_N[1:].long(), minlength=trie.n_nodes)
    assert torch.equal(trie.fan_out(torch.arange(trie.n_nodes)).long(), counts)
    assert torch.equal(counts == 0, trie.leaf_of_node_N >= 0)
    leaves = trie.leaf_of_node_N[trie.node_of_leaf_L.long()]
    assert torch.equal(leaves.long(), torch.arange(trie.n_leaves))


@pytest.mark.parametrize(
    "items", [[[1, 2], [1, 2, 3]], [[1], [2, EOS], [1, EOS]], [[1, 2, 3], [1]]]
)
def test_a_title_that_is_a_prefix_of_another_is_refused(items: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="prefix"):
        build_trie(items)


@pytest.mark.parametrize("items", [[], [[]], [[1, EOS], []]])
def test_an_empty_catalogue_or_title_is_refused(items: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        build_trie(items)


def test_a_catalogue_of_one_item() -> None:
    trie = build_trie([[3, 1, EOS]])
    assert (trie.n_nodes, trie.n_leaves, trie.n_items, trie.max_length) == (4, 1, 1, 3)
    assert trie.fan_out(torch.arange(4)).tolist() == [1, 1, 1, 0]
    assert widest_node(trie) == ROOT  # nothing branches: the shallowest


@pytest.mark.parametrize(
    ("items", "prefix"),
    [
        ([[1, EOS], [2, EOS]], []),
        ([[7, 1, EOS], [7, 2, EOS]], [7]),  # behind a forced chain
        ([[7, 1, EOS], [7, 2, EOS], [7, 3, EOS], [8, 1, EOS]], [7]),  # behind a narrower choice
        ([[7, 5, n, EOS] for n in (1, 2, 3)] + [[7, 6, EOS], [8, EOS]], [7, 5]),
        ([[a, b, EOS] for a in (1, 2) for b in (3, 4)], []),  # as wide: the shallower
        ([[7, a, b, EOS] for a in (6, 5) for b in (2, 3, 4)], [7, 5]),  # ... then the lower token
    ],
)
def test_the_widest_node_has_the_most_children(items: list[list[int]], prefix: list[int]) -> None:
    trie = build_trie(items)
    assert widest_node(trie) == walk(trie, prefix)


def test_tokens_and_items_of_every_node_equal_plain_loops() -> None:
    items = [[5, 6, 7, EOS], [5, 6, EOS], [5, 6, EOS], [5, 8, EOS], [4, EOS], [EOS], [5, 6, 7, EOS]]
    trie = build_trie(items)
    for node in range(trie.n_nodes):
        prefix = tokens_to(trie, node)
        assert walk(trie, prefix) == node
        assert items_below(trie, node) == sum(item[: len(prefix)] == prefix for item in items)


def test_no_leaves_have_no_paths() -> None:
    node_BT, token_BT, length_B = paths(build_trie([[1, EOS]]), torch.tensor([], dtype=torch.long))
    assert (node_BT.shape[0], token_BT.shape[0], length_B.shape[0]) == (0, 0, 0)


def test_a_node_costs_at_most_20_bytes_and_a_leaf_or_item_8() -> None:
    items = [[a, b, c, EOS + 50] for a in range(20) for b in range(10) for c in range(5)]
    trie = build_trie(items)
    arrays = [getattr(trie, f) for f in trie.__dataclass_fields__ if f != "max_length"]
    size = sum(array.nbytes for array in arrays)
    assert size <= 20 * trie.n_nodes + 8 * (trie.n_leaves + trie.n_items)
    assert trie.to("meta").device.type == "meta"


def test_a_trie_is_the_same_from_its_tensors() -> None:
    items = [[5, 6, 1], [5, 7, 1], [5, 6, 1], [8, 1]]
    trie = build_trie(items)
    again = Trie.from_tensors({**trie.tensors(), "more": torch.zeros(1)})
    for field in fields(Trie):
        ours, theirs = getattr(again, field.name), getattr(trie, field.name)
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)), field.name
