"""Search over the trie: exact top K with proof, beam search, and every entry's score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from llmrec_cli.config.model import TREE_ATTENTION
from llmrec_cli.decoding.guide import Guide, LeafScores, NodeScores, bound_nodes, sum_nodes
from llmrec_cli.decoding.sampling import GumbelNoise
from llmrec_cli.decoding.tree_cache import NO_SLOT, TreeCache
from llmrec_cli.errors import ArtefactError, DataError, NumbersError, RecipeError
from llmrec_cli.models.base import batches_by_length, distinct_exclusions
from llmrec_cli.models.language_model import find_body, head_weights, inference_mode, share_keys
from llmrec_cli.tensors.beam_search import (
    NONE,
    Chains,
    FinishedBeams,
    Open,
    add_finished,
    add_open,
    beam_step,
    chain_nodes,
    cut_after_kth,
    forced_chains,
    keep_best,
    kth_score,
    no_finished,
    no_open,
)
from llmrec_cli.tensors.trie import (
    ROOT,
    Scorer,
    Trie,
    child_log_probs,
    forced_log_probs,
    paths,
    tokens_to,
)

# The *opening* are the tokens that every answer begins with, such as a quotation mark: with mask
# "before" they are no choice, so they are read with the prompt, and a search starts behind them.


def find_start(scorer: Scorer, chains: Chains) -> int:
    """The node behind the opening; the root where forced tokens are paid for, or lead to a leaf."""
    end = int(chains.end_N[ROOT])
    is_free = not scorer.over_vocab and int(scorer.trie.leaf_of_node_N[end]) == NONE
    return end if is_free else ROOT


# Exact scores of all catalogue items, for full ranks and as a reference for the searches.
#
# Only nodes with a branching node below them are computed (the trie's *branching closure*). They
# are computed in depth-first order, a bounded number of tokens at a time, after the prompt's cache.
# The opening is in that cache.
#
# Shape suffixes: B users, T tokens of one call, L leaves, N trie nodes, E = N - 1 edges.


def score_leaves(tree: TreeCache, scorer: Scorer, start: int, tokens_at_once: int) -> Tensor:
    """Log-probability of every leaf, score_BL in fp32; with mask "before" they sum to 1.

    Raises:
        NumbersError: the model's hidden states are not finite.
    """
    trie = scorer.trie
    edge_BE = torch.zeros((len(tree.hidden_BD), trie.n_nodes - 1), device=trie.parent_N.device)
    asked_N = trie.fan_out(torch.arange(trie.n_nodes, device=trie.parent_N.device)) > (
        0 if scorer.over_vocab else 1
    )
    if bool(asked_N[start]):
        start_1 = torch.tensor([start], device=asked_N.device)
        _score_edges(edge_BE, scorer, tree.hidden_BD[:, None], start_1)
    for node_T, parent_T in _split_into_trees(trie, asked_N, start, tokens_at_once):
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
    edge_BE[:, child_TF[child_TF != NO_SLOT] - 1] = log_prob_BTF[:, child_TF != NO_SLOT]


def _split_into_trees(
    trie: Trie, asked_N: Tensor, start: int, tokens_at_once: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The nodes to read, in pieces that are trees of their own: (node_T, parent place_T).

    A piece repeats the ancestors of its first node, so that it needs nothing but the prompt.
    """
    node_M = _order_depth_first(trie, asked_N)
    node_M = node_M[node_M > start]  # numbers are breadth first: those of the opening lie below
    place_N = torch.full((trie.n_nodes,), NO_SLOT, device=asked_N.device)
    for piece in torch.split(node_M, tokens_at_once) if len(node_M) > 0 else ():
        above, at = [], int(trie.parent_N[piece[0]])
        while at != start:
            above.append(at)
            at = int(trie.parent_N[at])
        node_T = torch.cat([piece.new_tensor(above[::-1]), piece])
        place_N[node_T] = torch.arange(len(node_T), device=node_T.device)
        # The start's place stays NONE: its children follow the prompt.
        yield node_T, place_N[trie.parent_N[node_T].long()]


def _order_depth_first(trie: Trie, asked_N: Tensor) -> Tensor:
    """Nodes at or above an asked one, the root left out, parents before children, depth first."""
    leaf_L = torch.arange(trie.n_leaves, device=asked_N.device)
    node_LT, _, _ = paths(trie, leaf_L)
    asked_LT = asked_N[node_LT.clamp_min(0)] & (node_LT != NO_SLOT)
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


# Runs a model in the three searches of the catalogue, one batch of users at a time.
#
# Shape suffixes: B users, X prefixes fed at once, J tokens of a forced chain, T tree tokens of a
# call, F children of a node, K list width, Q excluded leaves, L leaves, E trie edges, D model
# width.


_EXTRA_TOKENS, _FEW_USERS = 6, 32  # see _count_tokens
_COMPACT_BELOW = 0.75  # share of users still searching under which the others leave the batch


@dataclass(frozen=True, slots=True)
class Reached:
    """Prefixes that the model has read: where they stand and what it makes of them."""

    hidden_BXD: Tensor
    node_BX: Tensor  # NONE at padding
    slot_BX: Tensor
    score_BX: Tensor


def exact_search(
    tree: TreeCache,
    scorer: Scorer,
    chains: Chains,
    k: int,
    excluded_BQ: Tensor,
    bounds: NodeScores | None = None,
    noise: GumbelNoise | None = None,
) -> FinishedBeams:
    """Best first in rounds, until no open prefix can reach the k-th leaf that is not excluded.

    Args:
        bounds: what a guide adds at most below each node; a prefix has it in its score.
        noise: for draws in place of the best; scores are then log-probabilities with noise.

    Returns:
        k + Q places; the first ones up to that k-th leaf are the true catalogue order.
    """
    n_users, device = len(tree.hidden_BD), tree.hidden_BD.device
    answer = no_finished(n_users, min(k + excluded_BQ.shape[1], scorer.trie.n_leaves), device)
    row_B = torch.arange(n_users, device=device)
    finished, open_ = answer, no_open(n_users, device)
    reached = _start_behind_prompt(tree, find_start(scorer, chains))
    if bounds is not None:
        reached = replace(reached, score_BX=bounds.at(row_B, reached.node_BX))
    if noise is not None:
        reached = replace(reached, score_BX=noise.draw(row_B, reached.node_BX).float())
    while True:
        if noise is not None:
            new = _draw_children(scorer, reached, noise, row_B)
        else:
            new = _expand_children(scorer, reached)
        if bounds is not None:
            new = _add_guide(new, reached, bounds, row_B)
        finished, new = _finish_items(finished, new, scorer, chains)
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
        budget = _count_tokens(k, len(row_B))
        picked, open_ = open_.split(chains.length(open_.node_BM), budget)
        reached, finished = _read_prefixes(tree, scorer, chains, picked, finished)


def _count_tokens(k: int, n_users: int) -> int:
    """Tokens of each user that a round of exact search reads.

    A round cannot know what its prefixes will find, so a wide one reads more in vain; narrow ones
    are more calls, whose cost counts where few users share it.  Measured on catalogues of titles
    (benchmarks/results/2026-11-30-exact-search.md).
    """
    return k + min(_EXTRA_TOKENS, _FEW_USERS // n_users)


def beam_search(
    tree: TreeCache,
    scorer: Scorer,
    chains: Chains,
    n_beams: int,
    length_penalty: float,
    masses: NodeScores | None = None,
) -> tuple[FinishedBeams, Tensor]:
    """Hugging Face's beam search, list for list (see ``tensors.beam_search.beam_step``).

    A beam on a forced chain costs nothing with mask "before": it advances in step with the others,
    and its tokens are fed only if it lives until its next choice.

    Args:
        masses: what a guide makes of each node; a beam has it in its score, so every token adds
            what it changes: ``weight * log P_guide(token | prefix)``.

    Returns:
        the finished lists, and lost_B, the best score of a prefix or leaf that was given up.  With
        penalty 0 a leaf outside the list scores at most that, or at most the list's last place.
    """
    n_users, device = len(tree.hidden_BD), tree.hidden_BD.device
    answer = no_finished(n_users, n_beams, device)
    lost_of_all_B = torch.full((n_users,), -torch.inf, device=device)
    row_B = torch.arange(n_users, device=device)
    start = find_start(scorer, chains)
    finished, lost_B = answer, lost_of_all_B
    length = start  # one node a level: its number is its depth
    reached = _start_behind_prompt(tree, start)
    if masses is not None:
        reached = replace(reached, score_BX=masses.at(row_B, reached.node_BX))
    while True:
        length += 1
        new = _expand_children(scorer, reached)
        if masses is not None:
            new = _add_guide(new, reached, masses, row_B)
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


def _start_behind_prompt(tree: TreeCache, start: int) -> Reached:
    """Where every search starts: the node that was read with the prompt."""
    node_BX = torch.full((len(tree.hidden_BD), 1), start, device=tree.hidden_BD.device)
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


def _add_guide(new: Open, reached: Reached, guide: NodeScores, row_B: Tensor) -> Open:
    """Candidates with what the guide makes of their own node in place of their parent's."""
    parent_BX, n_children = guide.at(row_B, reached.node_BX), new.node_BM.shape[1]
    parent_BC = parent_BX.repeat_interleave(n_children // parent_BX.shape[1], dim=1)
    change_BC = guide.at(row_B, new.node_BM) - parent_BC  # at most 0: scores still only fall
    return replace(new, score_BM=new.score_BM + change_BC)


def _draw_children(scorer: Scorer, reached: Reached, noise: GumbelNoise, row_B: Tensor) -> Open:
    """All children of the prefixes that were reached, with noise in their scores."""
    log_prob_BX = noise.find_log_probs(row_B, reached.node_BX)
    new = _expand_children(scorer, replace(reached, score_BX=log_prob_BX))
    score_BC = noise.perturb(row_B, new.node_BM, new.score_BM, reached.score_BX)
    return replace(new, score_BM=score_BC)


def _finish_items(
    finished: FinishedBeams, new: Open, scorer: Scorer, chains: Chains
) -> tuple[FinishedBeams, Open]:
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
    tree: TreeCache, scorer: Scorer, chains: Chains, picked: Open, finished: FinishedBeams
) -> tuple[Reached, FinishedBeams]:
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


# From prompts to ranked lists: constrained decoding over the catalogue (docs/evaluation.md).
#
#     rank_catalogue   the k best leaves: exact (proven), Hugging Face's beam, or by scoring all
#     score_all        every leaf's score
#
# ``model.generate`` is not used. The ``generation_config`` of a base model (sampling, top_k,
# repetition penalty) has no effect.


_SCORES_AT_ONCE = 1 << 25  # trie nodes x users of one batch when every item is scored: 128 MB
_TREE_TOKENS = 128  # tree tokens per user and call when every item is scored
_NO_LEAF = -2  # unlike the padding of a list


Search = Literal["exact", "beam", "all"]


@dataclass(frozen=True)
class DecodeOptions:
    """How to search.

    Raises:
        RecipeError: a value out of range, or a combination without meaning.
    """

    k: int  # length of the list, excluded leaves not counted
    search: Search = "exact"
    mask: Literal["before", "after"] = "before"  # normalise over legal tokens, or the vocabulary
    temperature: float = 1.0  # > 0, divides the logits
    length_penalty: float = 0.0  # score / tokens ** penalty, EOS counted
    beams: int = 20  # width of search = "beam"
    batch: int = 128  # users at once

    def __post_init__(self) -> None:
        for name in ("k", "beams", "batch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not self.temperature > 0:
            raise RecipeError(f"temperature = {self.temperature}: must be > 0")
        if self.search == "exact" and self.length_penalty != 0:
            raise RecipeError(
                f"length_penalty = {self.length_penalty}: must be 0 with search = 'exact', whose "
                "proof needs scores that only fall; use search = 'beam' or 'all'"
            )
        if self.search == "beam" and self.beams < self.k:
            raise RecipeError(f"beams = {self.beams}: must be at least k = {self.k}")


@dataclass(frozen=True)
class DecodedLists:
    """Ranked lists, in the order of the prompts; on the CPU."""

    leaf_BK: Tensor  # int64 leaf indices, best first, -1 padding
    score_BK: Tensor  # fp32 log-probability (or length-penalised score), -inf padding
    proven_B: Tensor  # bool: the list is the true catalogue top k

    @property
    def proven(self) -> bool:
        """Every list is the true catalogue top k."""
        return bool(self.proven_B.all())


def rank_catalogue(
    model: nn.Module,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    exclude: Sequence[Sequence[int]] = (),
    advance: Callable[[int], object] = lambda n: None,
    guide: Guide | None = None,
    keys: Sequence[int] = (),
) -> DecodedLists:
    """The best ``options.k`` leaves of each user, or as many draws.

    Args:
        model: any Hugging Face causal language model, also under PEFT, on any device.
        prompts: token ids, one non-empty list per user.
        exclude: for each user the leaves (the seen history) that do not count towards k.  They
            stay in the list, in their place, so that one search serves both protocols.
        advance: called after each batch with its number of users.
        guide: added to the score of every leaf; None, or a weight of 0: the language model alone.
            A beam adds it token by token.
        keys: of each user a number >= 0, for leaves drawn without replacement by their
            probabilities: a list is in the order drawn, and scores have noise (``decoding.
            sampling``).  The same key draws the same leaves.  Empty: the best leaves.

    Returns:
        lists of up to k + the number of excluded leaves, cut after the k-th that counts.  Equal
        scores are ordered by leaf index.

    Raises:
        ArtefactError: a model that cannot be searched.
        DataError: an empty prompt, an excluded leaf outside the catalogue, or not one list each.
        NumbersError: the model's output, or the guide's, is NaN or infinite.
        RecipeError: a guide with a length penalty, or keys with a search that they cannot serve.
    """
    guide = guide if guide is not None and guide.weight != 0 else None
    if guide is not None:
        _require_guidable(options)
    if keys:
        _require_distribution(options, guide)
    excluded_BQ = _pad_exclusions(exclude, len(prompts), trie.n_leaves)
    width = min(options.k + excluded_BQ.shape[1], trie.n_leaves)
    leaf_BK = torch.full((len(prompts), width), NONE)
    score_BK = torch.full((len(prompts), width), -torch.inf)
    proven_B = torch.zeros(len(prompts), dtype=torch.bool)
    with searchable(model):
        for rows_B, tree, scorer, chains in _make_batches(
            model, trie, prompts, options, whole=bool(keys)
        ):
            excluded = _trim_exclusions(excluded_BQ[rows_B]).to(tree.hidden_BD.device)
            opinion = None
            if guide is not None:
                opinion = guide.ask(rows_B.tolist(), tree.hidden_BD.device)
            noise = None
            if keys:
                noise = GumbelNoise(scorer.trie, [keys[row] for row in rows_B.tolist()])
            found, proven = _search_batch(tree, scorer, chains, options, excluded, opinion, noise)
            found = cut_after_kth(found, excluded, options.k)
            n_found = min(width, found.leaf_BK.shape[1])
            leaf_BK[rows_B, :n_found] = found.leaf_BK[:, :n_found].cpu()
            score_BK[rows_B, :n_found] = found.score_BK[:, :n_found].cpu()
            proven_B[rows_B] = proven.cpu()
            advance(len(rows_B))
    return DecodedLists(leaf_BK, score_BK, proven_B)


def score_all(
    model: nn.Module, trie: Trie, prompts: Sequence[Sequence[int]], options: DecodeOptions
) -> Tensor:
    """Every leaf's score for every user, score_BL in fp32 on the CPU.

    Uses ``mask``, ``temperature``, ``length_penalty`` and ``batch`` of the options.  With mask
    "before" and penalty 0 these are log-probabilities that sum to 1 over the catalogue.

    Raises:
        ArtefactError, DataError, NumbersError: as ``rank_catalogue``.
    """
    score_BL = torch.empty((len(prompts), trie.n_leaves))
    with searchable(model):
        for rows_B, tree, scorer, chains in _make_batches(
            model, trie, prompts, options, whole=True
        ):
            score_BL[rows_B] = _score_all_leaves(tree, scorer, chains, options.length_penalty).cpu()
    return score_BL


Batch = tuple[Tensor, TreeCache, Scorer, Chains]


def _make_batches(
    model: nn.Module,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    whole: bool = False,
) -> Iterator[Batch]:
    """Users of similar prompt length together: (rows_B, their cache, scorer, forced chains)."""
    empty = next((row for row, prompt in enumerate(prompts) if len(prompt) == 0), None)
    if empty is not None:
        raise DataError(f"prompt {empty}: no tokens, expected at least one (BOS)")
    decoder, scorer = find_body(model), _make_scorer(model, trie, options)
    chains = forced_chains(scorer.trie)
    at_once = options.batch
    if whole or options.search == "all":
        at_once = max(1, min(at_once, _SCORES_AT_ONCE // trie.n_nodes))
    opening = tokens_to(scorer.trie, find_start(scorer, chains))
    for rows in batches_by_length(list(map(len, prompts)), at_once):
        opened = [[*prompts[row], *opening] for row in rows]
        tree = TreeCache(decoder, opened, scorer.weight_VD.device)
        yield torch.tensor(rows), tree, scorer, chains


def _search_batch(
    tree: TreeCache,
    scorer: Scorer,
    chains: Chains,
    options: DecodeOptions,
    excluded_BQ: Tensor,
    guide: LeafScores | None,
    noise: GumbelNoise | None,
) -> tuple[FinishedBeams, Tensor]:
    """One batch's lists, and which of them are proven.

    Args:
        guide: to be added to the score of every leaf.
        noise: of exact search; None: the best leaves.
    """
    k, n_users = options.k, len(tree.hidden_BD)
    if options.search == "beam":
        masses = None if guide is None else sum_nodes(scorer.trie, guide)
        found, lost_B = beam_search(
            tree, scorer, chains, options.beams, options.length_penalty, masses
        )
        proven_B = (kth_score(found, excluded_BQ, k) > lost_B) | (lost_B == -torch.inf)
        return found, proven_B & (options.length_penalty == 0)
    proven_B = torch.ones(n_users, dtype=torch.bool)
    if options.search == "exact":
        bounds = None if guide is None else bound_nodes(scorer.trie, guide)
        return exact_search(tree, scorer, chains, k, excluded_BQ, bounds, noise), proven_B
    score_BL = _score_all_leaves(tree, scorer, chains, options.length_penalty)
    if guide is not None:
        score_BL = score_BL + guide.weighted_BL
    leaf_BL = torch.arange(scorer.trie.n_leaves, device=score_BL.device).expand(n_users, -1)
    width = min(k + excluded_BQ.shape[1], scorer.trie.n_leaves)
    return FinishedBeams(*keep_best(score_BL, leaf_BL, width)), proven_B


def _score_all_leaves(
    tree: TreeCache, scorer: Scorer, chains: Chains, length_penalty: float
) -> Tensor:
    score_BL = score_leaves(tree, scorer, find_start(scorer, chains), _TREE_TOKENS)
    if length_penalty == 0:
        return score_BL
    _, _, length_L = paths(scorer.trie, torch.arange(score_BL.shape[1], device=score_BL.device))
    return score_BL / length_L**length_penalty


def _require_guidable(options: DecodeOptions) -> None:
    if options.length_penalty != 0:
        raise RecipeError(f"length_penalty = {options.length_penalty}: must be 0 with a guide")


def _require_distribution(options: DecodeOptions, guide: Guide | None) -> None:
    if options.search != "exact" or options.mask != "before" or guide is not None:
        raise RecipeError(
            "draws need search = 'exact' and mask = 'before', whose probabilities sum to 1 over "
            "the catalogue, and no guide"
        )


def _make_scorer(model: nn.Module, trie: Trie, options: DecodeOptions) -> Scorer:
    head = head_weights(model)
    largest = int(trie.edge_token_E.max())
    if largest >= len(head.weight_VD):
        raise ArtefactError(
            f"the catalogue has token {largest}, the model a vocabulary of {len(head.weight_VD)}: "
            "expected the tokenizer that the model was trained with"
        )
    on_device = trie.to(head.weight_VD.device)
    over_vocab = options.mask == "after"
    return Scorer(on_device, head.weight_VD, head.bias_V, options.temperature, over_vocab)


@contextmanager
def searchable(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, an attention that takes a tree's mask; afterwards as it was."""
    decoder = find_body(model)
    attention = decoder.config._attn_implementation
    try:
        if attention not in TREE_ATTENTION:  # flash and flex kernels would ignore the mask
            decoder.set_attn_implementation("sdpa")
        with inference_mode(model), share_keys(next(decoder.parameters()).device):
            yield
    finally:
        if attention not in TREE_ATTENTION:
            decoder.set_attn_implementation(attention)


def _trim_exclusions(excluded_BQ: Tensor) -> Tensor:
    """The same exclusions, as wide as these users need."""
    return excluded_BQ[:, : int((excluded_BQ != _NO_LEAF).sum(1).amax())]


def _pad_exclusions(exclude: Sequence[Sequence[int]], n_users: int, n_leaves: int) -> Tensor:
    """Excluded leaves, each once, as excluded_BQ; _NO_LEAF elsewhere."""
    distinct = distinct_exclusions(exclude, n_users, n_leaves)
    width = max(map(len, distinct), default=0)
    padded = [leaves + [_NO_LEAF] * (width - len(leaves)) for leaves in distinct]
    return torch.tensor(padded, dtype=torch.int64).view(n_users, width)
