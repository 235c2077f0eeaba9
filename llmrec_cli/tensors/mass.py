"""Item probabilities laid over the trie: the mass of a node is the sum over the items below it.

Leaves are numbered in trie order, so the leaves below a node are a range, and one cumulative sum
over the leaves gives the mass of every node as a difference (ILRec step 6, docs/methods).

Shape suffixes: A answers (one probability row each), F leaves, N trie nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmrec_cli.tensors.trie import ROOT, Trie


@dataclass(frozen=True, slots=True)
class LeafMass:
    """Cumulative leaf probabilities of each answer, and the leaf range of each node."""

    cumulative_AF1: Tensor  # float64: probability of the first f leaves, 0 at f = 0
    first_N: Tensor  # int64: the leaves below node n are first_N[n] .. end_N[n] - 1
    end_N: Tensor

    def of_nodes(self, answer: Tensor, node: Tensor) -> Tensor:
        """Mass of ``node`` in the row of ``answer``: float64, in the tensors' common shape."""
        row = self.cumulative_AF1
        width = row.shape[1]
        flat = row.reshape(-1)
        start = answer * width
        mass: Tensor = flat[start + self.end_N[node]] - flat[start + self.first_N[node]]
        return mass.clamp_min(0)  # a parallel sum may fall by a rounding error

    def to(self, device: torch.device) -> LeafMass:
        """The same, with its arrays on ``device``."""
        arrays = (self.cumulative_AF1, self.first_N, self.end_N)
        return LeafMass(*(x.to(device, non_blocking=True) for x in arrays))


def leaf_ranges(trie: Trie) -> tuple[Tensor, Tensor]:
    """``first_N, end_N``: the leaves below node n are ``first_N[n] .. end_N[n] - 1``.

    Nodes are numbered breadth first and leaves in trie order, so every leaf hands its number up:
    one minimum and one count per level of the trie.
    """
    first_N = torch.full((trie.n_nodes,), trie.n_leaves, device=trie.device)
    count_N = torch.zeros_like(first_N)
    leaf_L = torch.arange(trie.n_leaves, device=trie.device)
    node_L = trie.node_of_leaf_L.long()
    while True:
        first_N.scatter_reduce_(0, node_L, leaf_L, "amin")
        count_N.scatter_add_(0, node_L, torch.ones_like(node_L))
        below_L = node_L != ROOT
        if not bool(below_L.any()):
            return first_N, first_N + count_N
        node_L, leaf_L = trie.parent_N[node_L[below_L]].long(), leaf_L[below_L]


def leaf_mass(probability_AF: Tensor, ranges: tuple[Tensor, Tensor]) -> LeafMass:
    """Lay leaf probabilities over the trie.

    Args:
        probability_AF: non-negative, in leaf order; rows need not sum to 1.
        ranges: from ``leaf_ranges`` of the same trie, on the same device.
    """
    cumulative_AF = probability_AF.double().cumsum(1)
    return LeafMass(torch.nn.functional.pad(cumulative_AF, (1, 0)), *ranges)
