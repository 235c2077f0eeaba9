"""A language model as a Ranker: constrained decoding over the catalogue's trie.

histories -> prompts -> the search of [eval.decode] -> lists
histories, items -> prompts with answers -> log-probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmrec_cli.engine.answer_scores import score_candidates
from llmrec_cli.engine.decode import DecodeOptions, rank_catalogue
from llmrec_cli.engine.rows import IntArray, Row
from llmrec_cli.models.base import Advance, Histories, RankedLists, ScoredBy
from llmrec_cli.models.policy import Policy, head_weights
from llmrec_cli.tensors.trie import Trie

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

    def searching(self, search: Literal["exact", "beam", "all"]) -> LanguageModelRanker:
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
    ) -> RankedLists:
        """``rank`` for prompts that are encoded already."""
        options = replace(self.options, k=k, beams=max(self.options.beams, k))
        ids = [prompt.tolist() for prompt in prompts]
        found = rank_catalogue(self.model, self.trie, ids, options, exclude, advance)
        return RankedLists(found.leaf_BK.numpy(), found.score_BK.numpy(), found.proven_B.numpy())

    def score(self, histories: Histories, items: NDArray[np.int64]) -> NDArray[np.float64]:
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
        )
        return score_BC.reshape(items.shape)
