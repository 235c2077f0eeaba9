"""Search over the catalogue trie: the pure steps, and the bound that proves exactness.

* Best first (exact).  A score is a sum of log-probabilities, so it only falls on the way down: a
  prefix bounds every item below it.  Finished items are kept best first, open prefixes that could
  still reach the k-th of them are expanded, and when none is left the list is proven.
* Beam (parity).  One token a step with the bookkeeping of Hugging Face: 2K candidates a step,
  the best K that go on, finished items divided by length ** penalty, ``early_stopping = False``.

Shape suffixes: B users, C candidates, M open prefixes, K list or beam width, Q excluded leaves,
N trie nodes.  Scores are fp32; a score of -inf is padding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from llmrec_cli.tensors.trie import ROOT, Trie

NONE = -1  # no node, no leaf, no cache slot


@dataclass(frozen=True, slots=True)
class Chains:
    """Forced chains of a trie: runs of nodes with one legal token."""

    end_N: Tensor  # int32, first node at or below with two or more children, else the leaf
    head_N: Tensor  # int32, last node at or above whose parent is the root or has a choice
    length_N: Tensor  # int32, nodes from here to the end, both counted

    def end(self, node: Tensor) -> Tensor:
        """End of the chain that a node lies on; any shape, int64, NONE at NONE."""
        return self.end_N[node.clamp_min(0)].long().where(node != NONE, NONE)

    def head(self, node: Tensor) -> Tensor:
        """Head of the chain that a node lies on; any shape, int64, NONE at NONE."""
        return self.head_N[node.clamp_min(0)].long().where(node != NONE, NONE)

    def length(self, node: Tensor) -> Tensor:
        """Nodes from here to the end of the chain; any shape, int64, 0 at NONE."""
        return self.length_N[node.clamp_min(0)].long().where(node != NONE, 0)


@functools.lru_cache(maxsize=1)
def forced_chains(trie: Trie) -> Chains:
    """Both ends of the forced chain that each node lies on, and the way down, by pointer doubling.

    The last trie's are remembered: a run decodes one catalogue again and again.
    """
    node_N = torch.arange(trie.n_nodes, dtype=torch.int32, device=trie.parent_N.device)
    only_child_N = trie.edge_start_N1[:-1] + 1
    parent_N = trie.parent_N.clamp_min(ROOT)
    follows_N = (trie.fan_out(parent_N) == 1) & (parent_N != ROOT)
    end_N, steps_N = _follow(torch.where(trie.fan_out(node_N) == 1, only_child_N, node_N))
    head_N, _ = _follow(torch.where(follows_N, parent_N, node_N))
    return Chains(end_N, head_N, length_N=steps_N + 1)


def _follow(next_N: Tensor) -> tuple[Tensor, Tensor]:
    """Where each node ends up when it goes to ``next_N`` until that changes nothing; the steps."""
    steps_N = (next_N != torch.arange(len(next_N), device=next_N.device)).int()
    while not torch.equal(further_N := next_N[next_N], next_N):
        steps_N, next_N = steps_N + steps_N[next_N], further_N
    return next_N, steps_N


def chain_nodes(trie: Trie, first_BX: Tensor, last_BX: Tensor) -> Tensor:
    """Nodes from ``first`` down the forced chain to ``last``; NONE past the end.

    Returns:
        node_BXJ: int64, J = the longest chain; ``first`` = ``last`` = NONE gives padding only.
    """
    at_BX, steps = first_BX, []
    while bool((at_BX != NONE).any()):
        steps.append(at_BX)
        only_child_BX = trie.edge_start_N1[at_BX.clamp_min(0)].long() + 1
        at_BX = torch.where((at_BX != NONE) & (at_BX != last_BX), only_child_BX, NONE)
    return torch.stack(steps, dim=2)


@dataclass(frozen=True, slots=True)
class FinishedBeams:
    """The best finished leaves of each user: score descending, equal scores by leaf index."""

    score_BK: Tensor
    leaf_BK: Tensor  # int64, NONE where the score is -inf

    def rows(self, rows_B: Tensor) -> FinishedBeams:
        return FinishedBeams(self.score_BK[rows_B], self.leaf_BK[rows_B])


def no_finished(n_users: int, width: int, device: torch.device) -> FinishedBeams:
    """An empty list of ``width`` places for each user."""
    shape = (n_users, width)
    return FinishedBeams(
        torch.full(shape, -torch.inf, device=device), torch.full(shape, NONE, device=device)
    )


def add_finished(finished: FinishedBeams, score_BC: Tensor, leaf_BC: Tensor) -> FinishedBeams:
    """Merge candidates (score -inf: none) and keep the best, as many as before."""
    width = finished.score_BK.shape[1]
    score_BC = torch.cat([finished.score_BK, score_BC], dim=1)
    leaf_BC = torch.cat([finished.leaf_BK, leaf_BC], dim=1)
    return FinishedBeams(*keep_best(score_BC, leaf_BC, width))


def keep_best(score_BC: Tensor, leaf_BC: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best ``width`` candidates: score descending, equal scores by ascending leaf index.

    ``topk`` alone breaks ties as it likes, also at its edge; so everything that ties with the
    last place is taken in before sorting.
    """
    last_B1 = score_BC.topk(width, dim=1).values[:, -1:]
    reaches_BC = (score_BC >= last_B1) & score_BC.isfinite()
    n_reaching = max(width, int(reaches_BC.sum(1).max()))
    score_BC, at_BC = score_BC.topk(n_reaching, dim=1)
    leaf_BC = leaf_BC.gather(1, at_BC)
    leaf_BC, by_leaf_BC = leaf_BC.sort(dim=1)
    score_BK, by_score_BC = score_BC.gather(1, by_leaf_BC).sort(dim=1, descending=True, stable=True)
    score_BK = score_BK[:, :width]
    leaf_BK = leaf_BC.gather(1, by_score_BC)[:, :width]
    return score_BK, torch.where(score_BK.isfinite(), leaf_BK, NONE)


def count_found(leaf_BK: Tensor, excluded_BQ: Tensor) -> Tensor:
    """True where a place of the list counts towards k: a leaf that is not excluded."""
    return (leaf_BK != NONE) & ~(leaf_BK[:, :, None] == excluded_BQ[:, None, :]).any(2)


def kth_score(finished: FinishedBeams, excluded_BQ: Tensor, k: int) -> Tensor:
    """Score of the k-th finished leaf that is not excluded, -inf while there are fewer.

    An open prefix below this score cannot change the first k: the proof of exactness.
    """
    rank_BK = count_found(finished.leaf_BK, excluded_BQ).cumsum(1)
    reached_BK = rank_BK >= k
    place_B1 = reached_BK.int().argmax(1, keepdim=True)
    score_B = finished.score_BK.gather(1, place_B1)[:, 0]
    return torch.where(reached_BK.any(1), score_B, -torch.inf)


def cut_after_kth(finished: FinishedBeams, excluded_BQ: Tensor, k: int) -> FinishedBeams:
    """Blank everything after the k-th leaf that is not excluded."""
    counted_BK = count_found(finished.leaf_BK, excluded_BQ)
    beyond_BK = counted_BK.cumsum(1) - counted_BK.long() >= k
    return FinishedBeams(
        finished.score_BK.masked_fill(beyond_BK, -torch.inf),
        finished.leaf_BK.masked_fill(beyond_BK, NONE),
    )


@dataclass(frozen=True, slots=True)
class Open:
    """Prefixes still to be fed to the model, best first; padding has score -inf and node NONE."""

    score_BM: Tensor  # exact score, or with mask "after" the bound before a forced chain is paid
    node_BM: Tensor  # int64, first trie node not yet in the cache
    slot_BM: Tensor  # int64, cache slot of its parent, NONE for the prompt

    def rows(self, rows_B: Tensor) -> Open:
        return Open(self.score_BM[rows_B], self.node_BM[rows_B], self.slot_BM[rows_B])

    def split(self, cost_BM: Tensor, budget: int) -> tuple[Open, Open]:
        """The best prefixes that ``budget`` pays for, at least one of each user, and the others.

        One call reads them for all users, so it is as long as its longest row.  Where a user's best
        prefix costs more than the budget, all users may spend as much.
        """
        spent_BM = cost_BM.cumsum(1)
        at_most = max(budget, int(spent_BM[:, 0].max()))
        picked_BM = (spent_BM <= at_most) & (self.node_BM != NONE)
        width = int(picked_BM.sum(1).max())
        picked = self.where(picked_BM)
        first = Open(*(p[:, :width] for p in (picked.score_BM, picked.node_BM, picked.slot_BM)))
        return first, self.where(~picked_BM)

    def where(self, wanted_BM: Tensor) -> Open:
        """These prefixes; padding in the place of the others."""
        return Open(
            self.score_BM.masked_fill(~wanted_BM, -torch.inf),
            self.node_BM.where(wanted_BM, NONE),
            self.slot_BM.where(wanted_BM, NONE),
        )


def no_open(n_users: int, device: torch.device) -> Open:
    """No open prefix for any user."""
    nodes = torch.empty((n_users, 0), dtype=torch.int64, device=device)
    return Open(torch.empty((n_users, 0), device=device), nodes, nodes)


def add_open(open_: Open, new: Open, bound_B: Tensor) -> Open:
    """Merge prefixes and drop those below ``bound_B``; an equal score may still win its tie."""
    score_BM = torch.cat([open_.score_BM, new.score_BM], dim=1)
    alive_BM = (score_BM >= bound_B[:, None]) & score_BM.isfinite()
    width = int(alive_BM.sum(1).max())
    score_BM, at_BM = score_BM.masked_fill(~alive_BM, -torch.inf).topk(width, dim=1)
    node_BM = torch.cat([open_.node_BM, new.node_BM], dim=1).gather(1, at_BM)
    slot_BM = torch.cat([open_.slot_BM, new.slot_BM], dim=1).gather(1, at_BM)
    return Open(score_BM, node_BM, slot_BM).where(score_BM.isfinite())


@dataclass(frozen=True, slots=True)
class BeamStep:
    """What one token-synchronous step decides."""

    running: Open  # the best K candidates that go on; node = the candidate's node
    finished: FinishedBeams
    lost_B: Tensor  # best score that was given up, -inf if none
    done_B: Tensor  # Hugging Face would add nothing more to this user's list


def beam_step(
    finished: FinishedBeams, new: Open, leaf_BC: Tensor, length: int, length_penalty: float
) -> BeamStep:
    """One step of Hugging Face's beam search, ``early_stopping = False``.

    Args:
        finished: lists so far, K places; scores already divided by length ** penalty.
        new: all candidates of this step, with the sum of their log-probabilities.
        leaf_BC: the leaf that a candidate finishes, NONE if it goes on.
        length: tokens of the response so far, this one included.
    """
    n_beams = finished.score_BK.shape[1]
    n_kept = min(2 * n_beams, new.score_BM.shape[1])
    score_BC, at_BC = new.score_BM.topk(min(n_kept + 1, new.score_BM.shape[1]), dim=1)
    below_BC = torch.arange(score_BC.shape[1], device=score_BC.device) >= n_kept
    leaf_BC = leaf_BC.gather(1, at_BC)
    ends_BC = leaf_BC != NONE

    # A leaf counts only among the first K candidates; the other K only keep the beam full.
    counts_BC = ends_BC & (torch.arange(score_BC.shape[1], device=score_BC.device) < n_beams)
    final_BC = (score_BC / length**length_penalty).masked_fill(~counts_BC, -torch.inf)
    merged = add_finished(finished, final_BC, leaf_BC)

    going_BC = score_BC.masked_fill(ends_BC | below_BC, -torch.inf)
    run_score_BK, run_BK = going_BC.topk(min(n_beams, going_BC.shape[1]), dim=1)
    alive_BK = run_score_BK.isfinite()
    run_at_BK = at_BC.gather(1, run_BK)
    running = Open(
        run_score_BK,
        new.node_BM.gather(1, run_at_BK).where(alive_BK, NONE),
        new.slot_BM.gather(1, run_at_BK).where(alive_BK, NONE),
    )
    kept_BC = torch.zeros_like(ends_BC).scatter_(1, run_BK, alive_BK) | counts_BC
    lost_B = score_BC.masked_fill(kept_BC, -torch.inf).amax(1)

    # Running scores can at best stay where they are: compare with the worst of a full list.
    worst_B = merged.score_BK[:, -1]
    best_B = run_score_BK[:, 0] / length**length_penalty
    return BeamStep(running, merged, lost_B, ~(best_B > worst_B))
