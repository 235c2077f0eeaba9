"""Guided decoding: another model and a language model as one exact ranking.

    s(i | u) = log P_lm(i | u) + weight * log P_guide(i | u)

The sum is a product of experts.  Best-first search stays exact: the best guide score of all leaves
below a node, ``weight * max log P_guide``, bounds what the guide can add below it, and on the way
down neither that bound nor ``log P_lm`` rises.  (D3, arXiv:2406.14900, guides token by token, which
only approximates this ranking.)

Shape suffixes: B users, L leaves, N trie nodes, C = L + branching nodes, E edges, X nodes
asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrec_cli.errors import NumbersError
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.tensors.beam_search import forced_chains
from llmrec_cli.tensors.trie import Trie, edges_of

UNIFORM: Final = 0.01
"""Share of the uniform distribution in ``log_probabilities`` of counts and similarities.

``(score + c) / sum`` with ``c = UNIFORM / (1 - UNIFORM) * mean score``: an entry without any score
keeps a probability, and the scale of the scores does not matter.
"""
_NO_PROBABILITY: Final = (ScoredBy.COUNT, ScoredBy.SIMILARITY)


@dataclass(frozen=True)
class Guide:
    """What a search adds to a language model's log-probabilities.

    Attributes:
        log_probs: numbers of prompts -> log P_guide of every leaf, [B, L], nats, finite.
        weight: its factor, at least 0.
    """

    log_probs: Callable[[Sequence[int]], Tensor]
    weight: float

    def score_leaves(self, rows: Sequence[int], device: torch.device) -> Tensor:
        """``weight * log P_guide`` of every leaf, [B, L] in fp32.

        Raises:
            NumbersError: one is not finite.
        """
        score_BL = self.log_probs(rows).to(device, torch.float32) * self.weight
        if not bool(score_BL.isfinite().all()):
            raise NumbersError("a score of the guide is NaN or infinite: no list can be ranked")
        return score_BL


def log_probabilities(score_BL: NDArray[Any], scored_by: ScoredBy) -> Tensor:
    """A Ranker's scores of all entries as log-probabilities over the catalogue, [B, L] in fp32.

    Log-probabilities are normalised over the catalogue (softmax).  Counts and similarities are
    divided by their sum, mixed with a uniform share (``UNIFORM``).

    Raises:
        NumbersError: a score is NaN or infinite, or a count or similarity is below 0.
    """
    score = torch.from_numpy(np.asarray(score_BL, dtype=np.float64))
    counted = scored_by in _NO_PROBABILITY
    if not bool(score.isfinite().all()) or (counted and bool((score < 0).any())):
        expected = "at least 0" if counted else "finite"
        raise NumbersError(f"a score of the guide is not {expected}: it cannot guide")
    if not counted:
        return score.log_softmax(1).float()
    total_B1 = score.sum(1, keepdim=True)
    uniform = 1 / score.shape[1]
    share_BL = torch.where(total_B1 > 0, score / total_B1.clamp_min(1e-300), uniform)
    return ((1 - UNIFORM) * share_BL + UNIFORM * uniform).log().float()


@dataclass(frozen=True, slots=True)
class NodeBounds:
    """The best guide score below every node of a trie, for each user of a batch.

    Nodes of a forced chain have the bound of its end, so that only leaves and branching nodes are
    stored.
    """

    bound_CB: Tensor  # fp32
    place_N: Tensor  # int32, the row of each node

    def at(self, row_B: Tensor, node_BX: Tensor) -> Tensor:
        """Bounds of nodes, in the shape of ``node_BX``; anything where it is NONE.

        Args:
            row_B: which user of the batch each row of ``node_BX`` is.
        """
        place_BX = self.place_N[node_BX.clamp_min(0)].long()
        return self.bound_CB[place_BX, row_B[:, None]]


def bound_nodes(trie: Trie, score_BL: Tensor) -> NodeBounds:
    """The best of ``score_BL`` among the leaves below each node: a maximum per level, bottom up."""
    layout = lay_out_nodes(trie)
    n_places, n_users = trie.n_leaves + layout.n_branching, len(score_BL)
    bound_CB = torch.full((n_places, n_users), -torch.inf, device=score_BL.device)
    bound_CB[: trie.n_leaves] = score_BL.T
    for child_E, owner_E in layout.levels:
        bound_CB.scatter_reduce_(0, owner_E[:, None].expand(-1, n_users), bound_CB[child_E], "amax")
    return NodeBounds(bound_CB, layout.place_N)


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Where the bounds of a trie's nodes are stored."""

    place_N: Tensor  # int32: of a leaf its number, of a branching node L + its number
    n_branching: int
    levels: tuple[tuple[Tensor, Tensor], ...]  # deepest first: places of children, of their parent


@functools.lru_cache(maxsize=1)
def lay_out_nodes(trie: Trie) -> NodeLayout:
    """The last trie's layout is remembered: a run decodes one catalogue again and again."""
    node_N = torch.arange(trie.n_nodes, device=trie.device)
    branches_N = trie.fan_out(node_N) > 1
    number_N = trie.n_leaves + branches_N.cumsum(0) - 1
    own_N = torch.where(branches_N, number_N, trie.leaf_of_node_N.long())
    place_N = own_N[forced_chains(trie).end(node_N)]
    levels = list[tuple[Tensor, Tensor]]()
    low, high = 0, 1  # nodes of one level; breadth first: a range
    while low < high:
        asked = node_N[low:high][branches_N[low:high]]
        if len(asked) > 0:
            edge_E, owner_E = edges_of(trie, asked)
            levels.append((place_N[edge_E + 1], place_N[asked][owner_E]))
        low, high = high, int(trie.edge_start_N1[high]) + 1
    return NodeLayout(place_N.int(), int(branches_N.sum()), tuple(levels[::-1]))
