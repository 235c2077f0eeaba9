"""Guided decoding: another model and a language model as one exact ranking.

    s(i | u) = log P_lm(i | u) + weight * log P_guide(i | u)

The sum is a product of experts.  Each search needs to know what the guide makes of a prefix:

* Exact: ``bound_nodes``, the best of the leaves below, ``weight * max log P_guide``.  It bounds
  what the guide can add below a node, so the proof holds.
* Beam: ``sum_nodes``, the mass below, ``weight * log sum P_guide``.  This is D3's guide, token by
  token (arXiv:2406.14900): ``P_guide(token | prefix)`` is the mass below the token over the mass
  below the prefix.  Over an item's tokens the masses cancel, so its score is the same ``s``.  Only
  what a beam keeps on the way depends on the form.

Neither rises on the way down.

Shape suffixes: B users, L leaves, N trie nodes, C = L + branching nodes, O branching nodes of one
depth, E edges, X nodes asked for.
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

    def ask(self, rows: Sequence[int], device: torch.device) -> LeafScores:
        """Its opinion of every leaf, for some prompts.

        Raises:
            NumbersError: a score is not finite.
        """
        found = LeafScores(self.log_probs(rows).to(device, torch.float32), self.weight)
        if not bool(found.weighted_BL.isfinite().all()):
            raise NumbersError("a score of the guide is NaN or infinite: no list can be ranked")
        return found


@dataclass(frozen=True, slots=True)
class LeafScores:
    """A guide's opinion of every leaf, for a batch of users."""

    log_prob_BL: Tensor  # fp32, nats
    weight: float

    @property
    def weighted_BL(self) -> Tensor:
        """What is added to the score of every leaf."""
        return self.log_prob_BL * self.weight


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
class NodeScores:
    """What a guide makes of every node of a trie, for each user of a batch.

    At a leaf it is what is added to the leaf's score; on the way down it never rises.  Nodes of a
    forced chain have that of its end, so that only leaves and branching nodes are stored.
    """

    score_CB: Tensor  # fp32
    place_N: Tensor  # int32, the row of each node

    def at(self, row_B: Tensor, node_BX: Tensor) -> Tensor:
        """Scores of nodes, in the shape of ``node_BX``; anything where it is NONE.

        Args:
            row_B: which user of the batch each row of ``node_BX`` is.
        """
        place_BX = self.place_N[node_BX.clamp_min(0)].long()
        return self.score_CB[place_BX, row_B[:, None]]


def bound_nodes(trie: Trie, guide: LeafScores) -> NodeScores:
    """``weight * max log P_guide`` of the leaves below each node, a level at a time, bottom up."""
    layout = lay_out_nodes(trie)
    score_CB = _store_leaves(layout, guide.weighted_BL)
    for level in layout.levels:
        _raise_to_best(score_CB, level)
    return NodeScores(score_CB, layout.place_N)


def sum_nodes(trie: Trie, guide: LeafScores) -> NodeScores:
    """``weight * log sum P_guide`` of the leaves below each node (D3, arXiv:2406.14900).

    A level at a time, bottom up, each sum relative to its largest term: no probability is too
    small, and no sum is below a term of it.
    """
    layout = lay_out_nodes(trie)
    score_CB = _store_leaves(layout, guide.log_prob_BL)
    for level in layout.levels:
        best_OB = _raise_to_best(score_CB, level)
        share_EB = (score_CB[level.child_E] - best_OB[level.owner_E]).double().exp()
        total_OB = torch.zeros(best_OB.shape, dtype=torch.float64, device=best_OB.device)
        best_OB += total_OB.index_add_(0, level.owner_E, share_EB).log().float()
    return NodeScores(score_CB * guide.weight, layout.place_N)


def _store_leaves(layout: NodeLayout, score_BL: Tensor) -> Tensor:
    """score_CB with the leaves' scores in their places, -inf elsewhere."""
    n_users, n_leaves = score_BL.shape
    shape = (n_leaves + layout.n_branching, n_users)
    score_CB = torch.full(shape, -torch.inf, device=score_BL.device)
    score_CB[:n_leaves] = score_BL.T
    return score_CB


def _raise_to_best(score_CB: Tensor, level: Level) -> Tensor:
    """Write the best of their children to a level's nodes; a view of theirs, [O, B]."""
    best_OB = score_CB[level.places]
    owner_EB = level.owner_E[:, None].expand(-1, score_CB.shape[1])
    return best_OB.scatter_reduce_(0, owner_EB, score_CB[level.child_E], "amax")


@dataclass(frozen=True, slots=True)
class Level:
    """The O branching nodes of one depth, and the E edges that leave them."""

    places: slice  # of the nodes, [O]
    child_E: Tensor  # places of the children
    owner_E: Tensor  # which of the O nodes each edge leaves


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Where the scores of a trie's nodes are stored."""

    place_N: Tensor  # int32: of a leaf its number, of a branching node L + its number
    n_branching: int
    levels: tuple[Level, ...]  # deepest first


@functools.lru_cache(maxsize=1)
def lay_out_nodes(trie: Trie) -> NodeLayout:
    """The last trie's layout is remembered: a run decodes one catalogue again and again."""
    node_N = torch.arange(trie.n_nodes, device=trie.device)
    branches_N = trie.fan_out(node_N) > 1
    number_N = trie.n_leaves + branches_N.cumsum(0) - 1
    own_N = torch.where(branches_N, number_N, trie.leaf_of_node_N.long())
    place_N = own_N[forced_chains(trie).end(node_N)]
    levels = list[Level]()
    low, high = 0, 1  # nodes of one level; breadth first: a range
    first = trie.n_leaves
    while low < high:
        asked = node_N[low:high][branches_N[low:high]]
        if len(asked) > 0:
            edge_E, owner_E = edges_of(trie, asked)
            places = slice(first, first + len(asked))  # they are numbered one after another
            levels.append(Level(places, place_N[edge_E + 1], owner_E))
            first = places.stop
        low, high = high, int(trie.edge_start_N1[high]) + 1
    return NodeLayout(place_N.int(), int(branches_N.sum()), tuple(levels[::-1]))
