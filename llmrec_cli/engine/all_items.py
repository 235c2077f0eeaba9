"""Exact scores of every item of the catalogue, for full ranks and as the searches' judge.

Only nodes with a choice below them are read (the trie's *branching closure*); they are read in
depth-first order, a bounded number of tokens at a time, behind the prompt's cache.

Shape suffixes: B users, T tokens of one call, L leaves, N trie nodes, E = N - 1 edges.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmrec_cli.engine.tree_cache import NONE, TreeCache
from llmrec_cli.errors import NumbersError
from llmrec_cli.tensors.children import Scorer, child_log_probs
from llmrec_cli.tensors.trie import ROOT, Trie, paths


def score_leaves(tree: TreeCache, scorer: Scorer, tokens_at_once: int) -> Tensor:
    """Log-probability of every leaf, score_BL in fp32; with mask "before" they sum to 1.

    Raises:
        NumbersError: the model's hidden states are not finite.
    """
    trie = scorer.trie
    edge_BE = torch.zeros((len(tree.hidden_BD), trie.n_nodes - 1), device=trie.parent_N.device)
    asked_N = trie.fan_out(torch.arange(trie.n_nodes, device=trie.parent_N.device)) > (
        0 if scorer.over_vocab else 1
    )
    if bool(asked_N[ROOT]):
        root_1 = torch.zeros(1, dtype=torch.int64, device=asked_N.device)
        _score_edges(edge_BE, scorer, tree.hidden_BD[:, None], root_1)
    for node_T, parent_T in _split_into_trees(trie, asked_N, tokens_at_once):
        shape = (len(tree.hidden_BD), -1)
        token_T = trie.edge_token_E[node_T - 1].long()
        hidden_BTD = tree.extend(token_T.expand(shape), parent_T.expand(shape))
        tree.clear_tree()
        _score_edges(edge_BE, scorer, hidden_BTD[:, asked_N[node_T]], node_T[asked_N[node_T]])
    score_BL = _sum_paths(trie, edge_BE)
    if bool(score_BL.isnan().any()):
        raise NumbersError("the model's output is NaN or infinite: no list can be ranked")
    return score_BL


def _score_edges(edge_BE: Tensor, scorer: Scorer, hidden_BTD: Tensor, node_T: Tensor) -> None:
    """Write the log-probabilities of all edges that leave ``node_T``."""
    n_users, n_nodes = hidden_BTD.shape[:2]
    log_prob_PF, child_PF = child_log_probs(
        scorer, hidden_BTD.flatten(0, 1), node_T.expand(n_users, -1).flatten()
    )
    child_TF = child_PF[:n_nodes]
    log_prob_BTF = log_prob_PF.view(n_users, n_nodes, -1)
    edge_BE[:, child_TF[child_TF != NONE] - 1] = log_prob_BTF[:, child_TF != NONE]


def _split_into_trees(
    trie: Trie, asked_N: Tensor, tokens_at_once: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The nodes to read, in pieces that are trees of their own: (node_T, parent place_T).

    A piece repeats the ancestors of its first node, so that it needs nothing but the prompt.
    """
    node_M = _order_depth_first(trie, asked_N)
    place_N = torch.full((trie.n_nodes,), NONE, device=asked_N.device)
    for piece in torch.split(node_M, tokens_at_once) if len(node_M) > 0 else ():
        above, at = [], int(trie.parent_N[piece[0]])
        while at != ROOT:
            above.append(at)
            at = int(trie.parent_N[at])
        node_T = torch.cat([piece.new_tensor(above[::-1]), piece])
        place_N[node_T] = torch.arange(len(node_T), device=node_T.device)
        # The root's place stays NONE: its children follow the prompt.
        yield node_T, place_N[trie.parent_N[node_T].long()]


def _order_depth_first(trie: Trie, asked_N: Tensor) -> Tensor:
    """Nodes at or above an asked one, the root left out, parents before children, depth first."""
    leaf_L = torch.arange(trie.n_leaves, device=asked_N.device)
    node_LT, _, _ = paths(trie, leaf_L)
    asked_LT = asked_N[node_LT.clamp_min(0)] & (node_LT != NONE)
    needed_LT = asked_LT.flip(1).cumsum(1).flip(1) > 0  # at or above the last asked one
    new_LT = torch.ones_like(needed_LT)
    new_LT[1:] = node_LT[1:] != node_LT[:-1]
    return node_LT[needed_LT & new_LT & (node_LT != ROOT)]


def _sum_paths(trie: Trie, edge_BE: Tensor) -> Tensor:
    """Sum of the edges on the way to each leaf: score_BL."""
    node_BN = torch.cat([edge_BE.new_zeros(len(edge_BE), 1), edge_BE], dim=1)
    low, high = 1, int(trie.edge_start_N1[1]) + 1  # nodes of one level; breadth first: a range
    while low < high:
        node_BN[:, low:high] += node_BN[:, trie.parent_N[low:high].long()]
        low, high = high, int(trie.edge_start_N1[high]) + 1
    return node_BN[:, trie.node_of_leaf_L.long()]
