"""Drives a model through the three searches of the catalogue, one batch of users at a time.

Shape suffixes: B users, X prefixes fed at once, J tokens of a forced chain, T tree tokens of a
call, F children of a node, K list width, Q excluded leaves, L leaves, E trie edges, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmrec_cli.engine.tree_cache import TreeCache
from llmrec_cli.errors import NumbersError
from llmrec_cli.tensors.beam import (
    NONE,
    Chains,
    Finished,
    Open,
    add_finished,
    add_open,
    beam_step,
    chain_nodes,
    kth_score,
    no_finished,
    no_open,
)
from llmrec_cli.tensors.children import Scorer, child_log_probs, forced_log_probs
from llmrec_cli.tensors.trie import ROOT

_COMPACT_BELOW = 0.75  # share of users still searching under which the others leave the batch


@dataclass(frozen=True, slots=True)
class Reached:
    """Prefixes that the model has read: where they stand and what it makes of them."""

    hidden_BXD: Tensor
    node_BX: Tensor  # NONE at padding
    slot_BX: Tensor
    score_BX: Tensor


def exact_search(
    tree: TreeCache, scorer: Scorer, chains: Chains, k: int, excluded_BQ: Tensor, width: int
) -> Finished:
    """Best first in rounds, until no open prefix can reach the k-th leaf that is not excluded.

    Returns:
        k + Q places; the first ones up to that k-th leaf are the true catalogue order.
    """
    n_users, device = len(tree.hidden_BD), tree.hidden_BD.device
    answer = no_finished(n_users, min(k + excluded_BQ.shape[1], scorer.trie.n_leaves), device)
    row_B = torch.arange(n_users, device=device)
    finished, open_ = answer, no_open(n_users, device)
    reached = _start_at_root(tree)
    while True:
        finished, new = _finish_items(finished, _expand_children(scorer, reached), scorer, chains)
        bound_B = kth_score(finished, excluded_BQ, k)
        open_ = add_open(open_, new, bound_B)
        busy_B = open_.score_BM.isfinite().any(1)
        n_busy = int(busy_B.sum())
        if n_busy < _COMPACT_BELOW * len(row_B):
            answer.score_BK[row_B], answer.leaf_BK[row_B] = finished.score_BK, finished.leaf_BK
            if n_busy == 0:
                return answer
            tree.keep(busy_B)
            row_B, excluded_BQ = row_B[busy_B], excluded_BQ[busy_B]
            finished, open_ = finished.rows(busy_B), open_.rows(busy_B)
        picked, open_ = open_.split(width)
        reached, finished = _read_prefixes(tree, scorer, chains, picked, finished)


def beam_search(
    tree: TreeCache, scorer: Scorer, chains: Chains, n_beams: int, length_penalty: float
) -> tuple[Finished, Tensor]:
    """Hugging Face's beam search, list for list (see ``tensors.beam.beam_step``).

    A beam on a forced chain costs nothing with mask "before": it advances in step with the others,
    and its tokens are fed only if it lives until its next choice.

    Returns:
        the finished lists, and lost_B, the best score of a prefix or leaf that was given up.  With
        penalty 0 a leaf outside the list scores at most that, or at most the list's last place.
    """
    n_users, device = len(tree.hidden_BD), tree.hidden_BD.device
    answer = no_finished(n_users, n_beams, device)
    lost_of_all_B = torch.full((n_users,), -torch.inf, device=device)
    row_B = torch.arange(n_users, device=device)
    finished, lost_B, length = answer, lost_of_all_B, 0
    reached = _start_at_root(tree)
    while True:
        length += 1
        new = _expand_children(scorer, reached)
        step = beam_step(finished, new, _find_leaves(scorer, new.node_BM), length, length_penalty)
        finished, lost_B = step.finished, torch.maximum(lost_B, step.lost_B)
        n_busy = int((~step.done_B).sum())
        if n_busy < len(row_B):
            answer.score_BK[row_B], answer.leaf_BK[row_B] = finished.score_BK, finished.leaf_BK
            lost_of_all_B[row_B] = lost_B
            if n_busy == 0:
                return answer, lost_of_all_B
            busy_B = ~step.done_B
            tree.keep(busy_B)
            row_B, finished, lost_B = row_B[busy_B], finished.rows(busy_B), lost_B[busy_B]
            running = step.running.rows(busy_B)
        else:
            running = step.running
        reached = _read_choices(tree, scorer, chains, running)


def _start_at_root(tree: TreeCache) -> Reached:
    """Where every search starts: the trie's root, read with the prompt."""
    node_BX = torch.full((len(tree.hidden_BD), 1), ROOT, device=tree.hidden_BD.device)
    score_BX = torch.zeros(node_BX.shape, device=node_BX.device)
    return Reached(tree.hidden_BD[:, None], node_BX, torch.full_like(node_BX, NONE), score_BX)


def _find_leaves(scorer: Scorer, node: Tensor) -> Tensor:
    """Leaf index at a trie node, NONE at inner nodes and at NONE; any shape."""
    leaf = scorer.trie.leaf_of_node_N[node.clamp_min(0)].long()
    return torch.where(node == NONE, NONE, leaf)


def _expand_children(scorer: Scorer, reached: Reached) -> Open:
    """All children of the prefixes that were reached, as candidates in C = X x F columns.

    Raises:
        NumbersError: the model's hidden states are not finite.
    """
    real_BX = reached.node_BX != NONE
    log_prob_PF, child_PF = child_log_probs(
        scorer, reached.hidden_BXD[real_BX], reached.node_BX[real_BX]
    )
    if bool(log_prob_PF.isnan().any()):
        raise NumbersError("the model's output is NaN or infinite: no list can be ranked")
    n_users, n_fed = real_BX.shape
    shape, device = (n_users, n_fed, child_PF.shape[1]), child_PF.device
    score_BXF = torch.full(shape, -torch.inf, device=device)
    node_BXF = torch.full(shape, NONE, device=device)
    score_BXF[real_BX] = log_prob_PF + reached.score_BX[real_BX][:, None]
    node_BXF[real_BX] = child_PF
    slot_BXF = reached.slot_BX[:, :, None].expand(shape)
    return Open(score_BXF.flatten(1), node_BXF.flatten(1), slot_BXF.flatten(1))


def _finish_items(
    finished: Finished, new: Open, scorer: Scorer, chains: Chains
) -> tuple[Finished, Open]:
    """Move the candidates that are finished items to the finished list; the others stay open.

    With mask "before" a forced chain has probability 1: an item at its end is finished unread.
    """
    landing_BC = new.node_BM
    if not scorer.over_vocab:
        landing_BC = chains.end(new.node_BM)
    leaf_BC = _find_leaves(scorer, landing_BC)
    ends_BC = leaf_BC != NONE
    finished = add_finished(finished, new.score_BM.masked_fill(~ends_BC, -torch.inf), leaf_BC)
    return finished, Open(new.score_BM.masked_fill(ends_BC, -torch.inf), new.node_BM, new.slot_BM)


def _read_prefixes(
    tree: TreeCache, scorer: Scorer, chains: Chains, picked: Open, finished: Finished
) -> tuple[Reached, Finished]:
    """Feed open prefixes down to their next choice.

    With mask "after" forced tokens are paid for here, and an item at a chain's end is finished.
    """
    first_BX = picked.node_BM
    end_BX = chains.end(first_BX)
    leaf_BX = _find_leaves(scorer, end_BX)
    before_end_BX = scorer.trie.parent_N[end_BX.clamp_min(0)].long()
    last_BX = torch.where(leaf_BX != NONE, before_end_BX, end_BX)
    fed = _feed_chains(tree, scorer, first_BX, last_BX, picked.slot_BM)
    score_BX = picked.score_BM
    if scorer.over_vocab:
        score_BX = score_BX + _score_forced(scorer, fed)
        ended_BX = score_BX.masked_fill(leaf_BX == NONE, -torch.inf)
        finished = add_finished(finished, ended_BX, leaf_BX)
    node_BX = end_BX.where(leaf_BX == NONE, NONE)
    return Reached(fed.last_hidden(), node_BX, fed.slot_BX, score_BX), finished


def _read_choices(tree: TreeCache, scorer: Scorer, chains: Chains, running: Open) -> Reached:
    """Feed the beams that face a choice (mask "after": all of them); the others stay unread."""
    node_BX = running.node_BM
    faces_BX = (node_BX != NONE) & (
        (scorer.trie.fan_out(node_BX.clamp_min(0)) > 1) | scorer.over_vocab
    )
    if not bool(faces_BX.any()):
        hidden_BXD = tree.hidden_BD[:, None].expand(-1, node_BX.shape[1], -1)
        return Reached(hidden_BXD, node_BX, running.slot_BM, running.score_BM)
    first_BX = node_BX if scorer.over_vocab else chains.head(node_BX)
    fed = _feed_chains(
        tree, scorer, first_BX.where(faces_BX, NONE), node_BX.where(faces_BX, NONE), running.slot_BM
    )
    slot_BX = torch.where(faces_BX, fed.slot_BX, running.slot_BM)
    return Reached(fed.last_hidden(), node_BX, slot_BX, running.score_BM)


@dataclass(frozen=True, slots=True)
class Fed:
    """Tokens that one model call read, and where each prefix's tokens lie among them."""

    hidden_BTD: Tensor
    node_BXJ: Tensor  # nodes fed for each prefix, NONE past the end
    place_BXJ: Tensor  # their places among the T tokens
    slot_BX: Tensor  # cache slot of the last token of each prefix, of any token at padding

    def last_hidden(self) -> Tensor:
        """hidden_BXD after the last token of each prefix."""
        place_BX = self.place_BXJ.amax(2)
        row_B1 = torch.arange(len(place_BX), device=place_BX.device)[:, None]
        return self.hidden_BTD[row_B1, place_BX]


def _feed_chains(
    tree: TreeCache, scorer: Scorer, first_BX: Tensor, last_BX: Tensor, slot_BX: Tensor
) -> Fed:
    """Feed the forced chain ``first`` .. ``last`` behind cache slot ``slot``, for all at once."""
    node_BXJ = chain_nodes(scorer.trie, first_BX, last_BX)
    fed_BXJ = node_BXJ != NONE
    place_BXJ = (fed_BXJ.flatten(1).cumsum(1) - 1).view_as(fed_BXJ)
    n_tokens = int(place_BXJ.max()) + 1
    place_BXJ = place_BXJ.where(fed_BXJ, 0)
    slot_before_BXJ = torch.where(fed_BXJ, tree.n_slots + place_BXJ - 1, NONE)
    slot_before_BXJ[:, :, 0] = slot_BX

    row_P, place_P = fed_BXJ.nonzero()[:, 0], place_BXJ[fed_BXJ]
    token_BT = torch.zeros((len(first_BX), n_tokens), dtype=torch.int64, device=first_BX.device)
    parent_BT = torch.full_like(token_BT, NONE)
    token_BT[row_P, place_P] = scorer.trie.edge_token_E[node_BXJ[fed_BXJ] - 1].long()
    parent_BT[row_P, place_P] = slot_before_BXJ[fed_BXJ]
    last_slot_BX = tree.n_slots + place_BXJ.amax(2)
    return Fed(tree.extend(token_BT, parent_BT), node_BXJ, place_BXJ, last_slot_BX)


def _score_forced(scorer: Scorer, fed: Fed) -> Tensor:
    """Mask "after": log-probability of the forced tokens that follow each prefix's tokens."""
    forced_BXJ = (fed.node_BXJ != NONE) & (scorer.trie.fan_out(fed.node_BXJ.clamp_min(0)) == 1)
    score_BXJ = torch.zeros(forced_BXJ.shape, device=forced_BXJ.device)
    if bool(forced_BXJ.any()):
        row_P = forced_BXJ.nonzero()[:, 0]
        hidden_PD = fed.hidden_BTD[row_P, fed.place_BXJ[forced_BXJ]]
        score_BXJ[forced_BXJ] = forced_log_probs(scorer, hidden_PD, fed.node_BXJ[forced_BXJ])
    return score_BXJ.sum(2)
