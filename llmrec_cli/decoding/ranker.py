"""A language model as a Ranker: lists by search, scores as log-probabilities of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrec_cli.decoding.guide import Guide, log_probabilities
from llmrec_cli.decoding.search import DecodeOptions, Search, rank_catalogue, score_all
from llmrec_cli.models.base import (
    ROWS_AT_ONCE,
    Advance,
    Histories,
    RankedLists,
    Ranker,
    ScoredBy,
    batches_by_length,
)
from llmrec_cli.models.language_model import Policy, head_weights, inference_mode
from llmrec_cli.tensors.losses import score_answers
from llmrec_cli.tensors.trie import Trie
from llmrec_cli.training.collator import Collator, MicroBatch
from llmrec_cli.training.rows import IntArray, Row

# Log-probabilities of given answers: ``log pi(y | x)``, without gradients.


def score_micro_batch(
    policy: Any, micro: MicroBatch, *, legal: bool, temperature: float = 1.0
) -> Tensor:
    """``log pi(y | x)`` of each answer of a micro-batch, [A], nats, summed over its tokens.

    Args:
        policy: called like ``models.language_model.Policy``, with its ``head()``.
        legal: normalised over legal tokens, else over the vocabulary.
        temperature: divides the logits; 1 over the vocabulary.
    """
    batch, head = micro.batch, policy.head()
    return score_answers(
        policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)[0],
        head,
        batch.trie,
        batch.node_P,
        batch.target_P,
        batch.answer_P,
        batch.answers,
        legal=legal,
        temperature=temperature,
    )


def score_candidates(
    policy: Any,
    rows: Sequence[Row],
    trie: Trie,
    *,
    legal: bool,
    temperature: float,
    batch: int,
    device: torch.device,
    advance: Advance = lambda n: None,
) -> NDArray[np.float64]:
    """``log pi`` of each row's target and of its negatives, [rows, 1 + negatives], nats.

    Args:
        policy: called like ``models.language_model.Policy``, with its ``head()``.
        rows: windows with one target and equally many negatives.
        batch: rows of a forward pass.
    """
    collate = Collator(trie, cut_forced=legal)
    score_RC = np.empty((len(rows), 1 + (len(rows[0].negatives[0]) if rows else 0)))
    with inference_mode(policy):
        for part in batches_by_length([len(row.prompt) for row in rows], batch):
            micro = collate([rows[at] for at in part]).to(device)
            log_prob_A = score_micro_batch(policy, micro, legal=legal, temperature=temperature)
            score_RC[part] = log_prob_A.double().cpu().numpy().reshape(len(part), -1)
            advance(len(part))
    return score_RC


# A language model as a Ranker: constrained decoding over the catalogue's trie.
#
# histories -> prompts -> the search of [eval.decode] -> lists
# histories, items -> prompts with answers -> log-probabilities


EncodeHistories = Callable[[Histories], Sequence[IntArray]]
"""Histories to prompt ids."""


@dataclass(frozen=True)
class LanguageModelRanker:
    """A causal language model that ranks the entries of a trie; equal scores go by leaf."""

    model: Any
    trie: Trie
    encode: EncodeHistories
    options: DecodeOptions  # a list's length is asked for each time, and widens ``beams``

    @property
    def scored_by(self) -> ScoredBy:
        """A log-probability, with the recipe's penalty for length."""
        return ScoredBy.PENALISED if self.options.length_penalty else ScoredBy.LOG_PROBABILITY

    def searching(self, search: Search) -> LanguageModelRanker:
        """The same model under another search.

        Raises:
            RecipeError: a length penalty, which cannot be searched exactly.
        """
        return replace(self, options=replace(self.options, search=search))

    def rank(
        self,
        histories: Histories,
        k: int,
        exclude: Histories = (),
        advance: Advance = lambda n: None,
    ) -> RankedLists:
        """As ``Ranker``; a list ends with the k-th entry that counts."""
        return self.rank_prompts(self.encode(histories), k, exclude, advance)

    def rank_prompts(
        self,
        prompts: Sequence[IntArray],
        k: int,
        exclude: Histories = (),
        advance: Advance = lambda n: None,
        guide: Guide | None = None,
        keys: Sequence[int] = (),
    ) -> RankedLists:
        """``rank`` for prompts that are encoded already, with what a guide adds to the scores.

        Args:
            keys: for draws in place of the best entries, as in ``rank_catalogue``.
        """
        options = replace(self.options, k=k, beams=max(self.options.beams, k))
        ids = [prompt.tolist() for prompt in prompts]
        found = rank_catalogue(self.model, self.trie, ids, options, exclude, advance, guide, keys)
        return RankedLists(found.leaf_BK.numpy(), found.score_BK.numpy(), found.proven_B.numpy())

    def score(
        self,
        histories: Histories,
        items: NDArray[np.int64],
        advance: Advance = lambda n: None,
    ) -> NDArray[np.float64]:
        """As ``Ranker``: log-probabilities, nats, summed over an item's tokens."""
        prompts = self.encode(histories)
        rows = [
            Row(prompt, (first,), negatives=(tuple(others),))
            for prompt, (first, *others) in zip(prompts, items.tolist(), strict=True)
        ]
        score_BC = score_candidates(
            Policy(self.model),
            rows,
            self.trie,
            legal=self.options.mask == "before",
            temperature=self.options.temperature,
            batch=self.options.batch,
            device=head_weights(self.model).weight_VD.device,
            advance=advance,
        )
        return score_BC.reshape(items.shape)

    def score_all(self, histories: Histories, /) -> NDArray[np.float32]:
        """As ``Ranker``: log-probabilities, nats, or what the penalty makes of them."""
        ids = [prompt.tolist() for prompt in self.encode(histories)]
        scored: NDArray[np.float32] = score_all(self.model, self.trie, ids, self.options).numpy()
        return scored


@dataclass(frozen=True)
class GuidedRanker:
    """A language model and a guide as one ranking (``decoding.guide``)."""

    language: LanguageModelRanker
    guide: Ranker  # of the same entries: a conventional model, or another language model
    weight: float  # of the guide's log-probabilities, at least 0; 0: the language model's own lists
    scored_by: ScoredBy = ScoredBy.JOINED

    def searching(self, search: Search) -> GuidedRanker:
        """The same two models under another search."""
        return replace(self, language=self.language.searching(search))

    def rank(
        self,
        histories: Histories,
        k: int,
        exclude: Histories = (),
        advance: Advance = lambda n: None,
    ) -> RankedLists:
        """As ``Ranker``; a list ends with the k-th entry that counts, in order of the joined score.

        Raises:
            RecipeError: a length penalty.
        """
        prompts = self.language.encode(histories)
        guide = Guide(
            lambda rows: self._find_log_probs([histories[row] for row in rows]), self.weight
        )
        return self.language.rank_prompts(prompts, k, exclude, advance, guide)

    def score(
        self,
        histories: Histories,
        items: NDArray[np.int64],
        advance: Advance = lambda n: None,
    ) -> NDArray[np.float64]:
        """As ``Ranker``: joined scores, nats."""
        score_BC = self.language.score(histories, items, advance)
        leaf_BC = self.language.trie.leaf_of_item_I.cpu().long()[torch.from_numpy(items)]
        for start in range(0, len(histories), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            log_prob_BC = self._find_log_probs(histories[part]).gather(1, leaf_BC[part])
            score_BC[part] += self.weight * log_prob_BC.double().numpy()
        return score_BC

    def score_all(self, histories: Histories, /) -> NDArray[np.float32]:
        """As ``Ranker``: joined scores, nats."""
        language_BL = torch.from_numpy(self.language.score_all(histories))
        joined: NDArray[np.float32] = language_BL.add(
            self._find_log_probs(histories), alpha=self.weight
        ).numpy()
        return joined

    def _find_log_probs(self, histories: Histories) -> Tensor:
        return log_probabilities(self.guide.score_all(histories), self.guide.scored_by)
