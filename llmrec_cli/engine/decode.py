"""From prompts to ranked lists: constrained decoding over the catalogue (docs/evaluation.md).

    rank_catalogue   the k best leaves: exact (proven), Hugging Face's beam, or by scoring all
    score_all        every leaf's score

The model is used as it is: its body and its output weights.  ``model.generate`` and the
``generation_config`` of a base model (sampling, top_k, repetition penalty) play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from llmrec_cli.engine.all_items import score_leaves
from llmrec_cli.engine.search import beam_search, exact_search
from llmrec_cli.engine.tree_cache import TreeCache
from llmrec_cli.errors import ArtefactError, DataError, RecipeError
from llmrec_cli.models.base import batches_by_length, distinct_exclusions
from llmrec_cli.models.policy import body, head_weights, inference
from llmrec_cli.recipe.model import TREE_ATTENTION
from llmrec_cli.tensors.beam import (
    NONE,
    Chains,
    Finished,
    best,
    cut_after_kth,
    forced_chains,
    kth_score,
)
from llmrec_cli.tensors.children import Scorer
from llmrec_cli.tensors.trie import Trie, paths

_SCORES_AT_ONCE = 1 << 25  # trie nodes x users of one batch when every item is scored: 128 MB
_TREE_TOKENS = 128  # tree tokens per user and call when every item is scored
_NO_LEAF = -2  # unlike the padding of a list
_EXTRA_WIDTH = 6  # prefixes expanded in a round beyond k; 16 at k = 10


@dataclass(frozen=True)
class DecodeOptions:
    """How to search.

    Raises:
        RecipeError: a value out of range, or a combination without meaning.
    """

    k: int  # length of the list, excluded leaves not counted
    search: Literal["exact", "beam", "all"] = "exact"
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
class Ranked:
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
) -> Ranked:
    """The best ``options.k`` leaves of each user.

    Args:
        model: any Hugging Face causal language model, also under PEFT, on any device.
        prompts: token ids, one non-empty list per user.
        exclude: for each user the leaves (the seen history) that do not count towards k.  They
            stay in the list, in their place, so that one search serves both protocols.
        advance: called after each batch with its number of users.

    Returns:
        lists of up to k + the number of excluded leaves, cut after the k-th that counts.  Equal
        scores are ordered by leaf index.

    Raises:
        ArtefactError: a model that cannot be searched.
        DataError: an empty prompt, an excluded leaf outside the catalogue, or not one list each.
        NumbersError: the model's output is NaN or infinite.
    """
    excluded_BQ = _pad_exclusions(exclude, len(prompts), trie.n_leaves)
    width = min(options.k + excluded_BQ.shape[1], trie.n_leaves)
    leaf_BK = torch.full((len(prompts), width), NONE)
    score_BK = torch.full((len(prompts), width), -torch.inf)
    proven_B = torch.zeros(len(prompts), dtype=torch.bool)
    with searchable(model):
        for rows_B, tree, scorer, chains in _make_batches(model, trie, prompts, options):
            excluded = _trim_exclusions(excluded_BQ[rows_B]).to(tree.hidden_BD.device)
            found, proven = _search_batch(tree, scorer, chains, options, excluded)
            found = cut_after_kth(found, excluded, options.k)
            n_found = min(width, found.leaf_BK.shape[1])
            leaf_BK[rows_B, :n_found] = found.leaf_BK[:, :n_found].cpu()
            score_BK[rows_B, :n_found] = found.score_BK[:, :n_found].cpu()
            proven_B[rows_B] = proven.cpu()
            advance(len(rows_B))
    return Ranked(leaf_BK, score_BK, proven_B)


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
        for rows_B, tree, scorer, _ in _make_batches(model, trie, prompts, options, whole=True):
            score_BL[rows_B] = _score_all_leaves(tree, scorer, options.length_penalty).cpu()
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
    decoder, scorer = body(model), _make_scorer(model, trie, options)
    chains = forced_chains(scorer.trie)
    at_once = options.batch
    if whole or options.search == "all":
        at_once = max(1, min(at_once, _SCORES_AT_ONCE // trie.n_nodes))
    for rows in batches_by_length(list(map(len, prompts)), at_once):
        tree = TreeCache(decoder, [prompts[row] for row in rows], scorer.weight_VD.device)
        yield torch.tensor(rows), tree, scorer, chains


def _search_batch(
    tree: TreeCache, scorer: Scorer, chains: Chains, options: DecodeOptions, excluded_BQ: Tensor
) -> tuple[Finished, Tensor]:
    """One batch's lists, and which of them are proven."""
    k, n_users = options.k, len(tree.hidden_BD)
    if options.search == "beam":
        found, lost_B = beam_search(tree, scorer, chains, options.beams, options.length_penalty)
        proven_B = (kth_score(found, excluded_BQ, k) > lost_B) | (lost_B == -torch.inf)
        return found, proven_B & (options.length_penalty == 0)
    proven_B = torch.ones(n_users, dtype=torch.bool)
    if options.search == "exact":
        return exact_search(tree, scorer, chains, k, excluded_BQ, k + _EXTRA_WIDTH), proven_B
    score_BL = _score_all_leaves(tree, scorer, options.length_penalty)
    leaf_BL = torch.arange(scorer.trie.n_leaves, device=score_BL.device).expand(n_users, -1)
    width = min(k + excluded_BQ.shape[1], scorer.trie.n_leaves)
    return Finished(*best(score_BL, leaf_BL, width)), proven_B


def _score_all_leaves(tree: TreeCache, scorer: Scorer, length_penalty: float) -> Tensor:
    score_BL = score_leaves(tree, scorer, _TREE_TOKENS)
    if length_penalty == 0:
        return score_BL
    _, _, length_L = paths(scorer.trie, torch.arange(score_BL.shape[1], device=score_BL.device))
    return score_BL / length_L**length_penalty


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
    decoder = body(model)
    attention = decoder.config._attn_implementation
    try:
        if attention not in TREE_ATTENTION:  # flash and flex kernels would ignore the mask
            decoder.set_attn_implementation("sdpa")
        with inference(model):
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
