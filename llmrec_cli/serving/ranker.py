"""One way to rank the catalogue for any history, for every kind of run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from llmrec_cli.data.leaves import Leaves
from llmrec_cli.engine.decode import rank_catalogue
from llmrec_cli.recipe.baseline import ItemknnOptions, PopOptions
from llmrec_cli.report.recommended import ScoredBy
from llmrec_cli.runs.run import Run
from llmrec_cli.stage.scorer import Score, load_scorer
from llmrec_cli.stage.trained import load_policy
from llmrec_cli.stage.workbench import Workbench, decode_options
from llmrec_cli.tensors.beam import NONE
from llmrec_cli.tensors.trie import Trie, paths

BATCH = 256  # histories that a conventional model scores together


@dataclass(frozen=True, slots=True)
class Place:
    """One entry of a list."""

    leaf: int
    score: float
    log_probability: float | None  # None: the model has none


Histories = Sequence[Sequence[int]]
Rank = Callable[[Histories, Histories, int], list[list[Place]]]
"""``rank(histories, exclude, k)``: for each history (catalogue indices, oldest first) the best
``k`` leaves outside its ``exclude`` (leaves), best first; fewer where fewer are left or found."""


@dataclass(frozen=True)
class Ranker:
    """A run, ready to rank."""

    rank: Rank
    scored_by: ScoredBy


def load_ranker(bench: Workbench, leaves: Leaves, run: Run) -> Ranker:
    """The ranker of a finished run; its lists are those of ``llmrec eval``.

    Raises:
        ArtefactError: the run is not finished, damaged, or does not fit its neighbours.
    """
    if run.is_language_model:
        model = load_policy(bench, run, train=False, packs=False)
        penalised = bench.recipe.eval.decode.length_penalty != 0
        scored_by = ScoredBy.PENALISED if penalised else ScoredBy.LOG_PROBABILITY
        return Ranker(_by_policy(bench, model), scored_by)
    options = bench.recipe.baseline[run.table].options
    if isinstance(options, PopOptions):
        count_L = leaves.count_L.astype(np.float32)
        return Ranker(_by_scores(lambda h: np.tile(count_L, (len(h), 1)), leaves), ScoredBy.COUNT)
    score = load_scorer(bench, run.table)
    if isinstance(options, ItemknnOptions):
        return Ranker(_by_scores(score, leaves), ScoredBy.SIMILARITY)
    rank = _by_scores(score, leaves, log_probabilities=True)
    return Ranker(rank, ScoredBy.LOG_PROBABILITY)


def _by_policy(bench: Workbench, model: Any) -> Rank:
    """Constrained decoding under the run's own ``[eval.decode]``."""
    section = bench.recipe.eval

    def rank(histories: Histories, exclude: Histories, k: int) -> list[list[Place]]:
        options = replace(decode_options(section.decode, k), batch=section.batch)
        prompts = [prompt.tolist() for prompt in bench.encoder.encode(histories)]
        found = rank_catalogue(model, bench.trie, prompts, options, exclude)
        # Without a penalty, a score is the log-probability itself.
        log_BK = (
            found.score_BK * _lengths(bench.trie, found.leaf_BK) ** section.decode.length_penalty
        )
        rows = zip(
            found.leaf_BK.tolist(), found.score_BK.tolist(), log_BK.tolist(), exclude, strict=True
        )
        return [
            _kept(map(Place, leaf_K, score_K, log_K), banned, k)
            for leaf_K, score_K, log_K, banned in rows
        ]

    return rank


def _lengths(trie: Trie, leaf_BK: torch.Tensor) -> torch.Tensor:
    """Tokens of each entry, EOS counted, as a penalty counts them."""
    leaf_P = leaf_BK.clamp_min(0).flatten().to(trie.device)
    return paths(trie, leaf_P)[2].view_as(leaf_BK).cpu()


def _by_scores(score: Score, leaves: Leaves, *, log_probabilities: bool = False) -> Rank:
    """Every entry's score, sorted; ties go to the more popular entry."""
    order_L = leaves.by_popularity_L

    def ranked(histories: Histories, exclude: Histories, k: int) -> Iterator[list[Place]]:
        score_BL = score(histories)[:, order_L]
        place_BL = np.argsort(-score_BL, axis=1, kind="stable")
        for score_L, place_L, banned in zip(score_BL, place_BL, exclude, strict=True):
            first_K = place_L[: k + len(banned)]
            found = zip(order_L[first_K].tolist(), score_L[first_K].tolist(), strict=True)
            places = (Place(leaf, s, s if log_probabilities else None) for leaf, s in found)
            yield _kept(places, banned, k)

    def rank(histories: Histories, exclude: Histories, k: int) -> list[list[Place]]:
        parts = (slice(start, start + BATCH) for start in range(0, len(histories), BATCH))
        return [found for part in parts for found in ranked(histories[part], exclude[part], k)]

    return rank


def _kept(places: Iterable[Place], banned: Sequence[int], k: int) -> list[Place]:
    """The first ``k`` places that are none of padding and none of ``banned``."""
    gone = {*banned, NONE}
    return list(islice((place for place in places if place.leaf not in gone), k))
