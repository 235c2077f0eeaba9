"""The Ranker: the interface of every model that ranks, in validation, eval and elsewhere.

A Ranker knows the catalogue's entries by number (their leaf in the trie) and histories as catalogue
indices of items, oldest first.  Every model is one: the language model
(``decoding.ranker.LanguageModelRanker``), and the conventional ones (``models.baselines``).  No
torch here.

The one rule for ties: equal scores keep the order in which a Ranker numbers the entries.  A
conventional model goes through them by popularity (``CatalogueEntries.by_popularity_L``), a
language model in the order of the trie, where its search meets them.

Shape suffixes: B histories, K places of a list, C candidates, L catalogue entries (leaves).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.errors import DataError, NumbersError

Histories = Sequence[Sequence[int]]
"""Catalogue indices, oldest first.  Those of ``data.histories`` know more, which prompts show."""
Advance = Callable[[int], object]
ScoreAll = Callable[[Histories], NDArray[Any]]
"""Histories to the score of every entry, [B, L]: higher is better, finite."""

NO_LEAF: Final = -1
ROWS_AT_ONCE: Final = 256  # histories that a conventional model scores together


class ScoredBy(StrEnum):
    """What a score is."""

    LOG_PROBABILITY = "log-probability"  # nats
    PENALISED = "log-probability / length^penalty"
    SIMILARITY = "similarity"  # ItemKNN: no probability
    COUNT = "training count"  # Pop: no probability
    JOINED = "log-probability + weight * log-probability of the guide"  # no probability


@dataclass(frozen=True, slots=True)
class RankedLists:
    """A ranked list for every history, best first."""

    leaf_BK: NDArray[np.int64]  # NO_LEAF behind a list's end
    score_BK: NDArray[np.float32]  # never rising; -inf behind a list's end
    proven_B: NDArray[np.bool_]  # the list begins the true order of the whole catalogue

    def places_outside(self, exclude: Histories, k: int) -> list[NDArray[np.intp]]:
        """Of each list the first ``k`` places whose entry is not in its ``exclude``."""
        if not len(exclude):
            return [np.flatnonzero(leaf_K != NO_LEAF)[:k] for leaf_K in self.leaf_BK]
        return [
            np.flatnonzero((leaf_K != NO_LEAF) & ~np.isin(leaf_K, list(gone)))[:k]
            for leaf_K, gone in zip(self.leaf_BK, exclude, strict=True)
        ]


class Ranker(Protocol):
    """A model that is ready to rank the catalogue, in this process alone."""

    @property
    def scored_by(self) -> ScoredBy:
        """What its scores are."""
        ...

    def rank(
        self,
        histories: Histories,
        k: int,
        exclude: Histories = (),
        advance: Advance = lambda n: None,
    ) -> RankedLists:
        """The best entries for each history.

        Args:
            histories: may be empty; of a long one a model reads the last items.
            k: entries to find outside ``exclude``, at least 1.
            exclude: for each history the leaves that do not count towards ``k``.  They keep their
                places in the list, so that one list serves with and without them.  Empty: none.
            advance: called after each batch with its number of histories.

        Returns:
            Lists of at most ``k`` + the number of excluded leaves.  A list holds the first ``k``
            that count, in the model's own order; fewer where the catalogue has no more, or a beam
            found no more.  A history's list does not depend on its neighbours, save for the last
            bits of a score.

        Raises:
            DataError: an excluded leaf outside the catalogue, or not one list for each history.
            NumbersError: a score is NaN.
        """
        ...

    def score(
        self,
        histories: Histories,
        items: NDArray[np.int64],
        advance: Advance = lambda n: None,
    ) -> NDArray[np.float64]:
        """The score of chosen items, as ``[eval.decode]`` normalises it, without any penalty.

        Args:
            items: catalogue indices, [B, C].
            advance: as in ``rank``.

        Returns:
            [B, C]; items of one entry have one score.
        """
        ...

    def score_all(self, histories: Histories, /) -> NDArray[Any]:
        """The score of every entry, [B, L], finite; of few histories at a time, it is large."""
        ...


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of rows of like length together, the shortest first: little is padded.

    Args:
        lengths: of each row, in tokens; rows of equal length keep their order.
        size: rows of a batch.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]


def rank_scores(
    score_BL: NDArray[Any], order_L: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The best ``width`` entries of each row, and their scores: [B, K], best first.

    Args:
        order_L: leaves in the order that decides between equal scores.

    Raises:
        NumbersError: a score is NaN.
    """
    if np.isnan(score_BL).any():
        raise NumbersError("the model's output is NaN or infinite: no list can be ranked")
    ordered_BL = score_BL[:, order_L]
    place_BK = np.argsort(-ordered_BL, axis=1, kind="stable")[:, :width]
    return order_L[place_BK], np.take_along_axis(ordered_BL, place_BK, axis=1)


def distinct_exclusions(exclude: Histories, n_rows: int, n_leaves: int) -> list[list[int]]:
    """Excluded leaves of each row, each once, ascending; empty lists where ``exclude`` is empty.

    Raises:
        DataError: a leaf outside the catalogue, or not one list for each row.
    """
    if len(exclude) not in (0, n_rows):
        raise DataError(f"exclude has {len(exclude)} rows: expected one for each of {n_rows}")
    distinct = [sorted(set(leaves)) for leaves in exclude] or [[] for _ in range(n_rows)]
    for row, leaves in enumerate(distinct):
        if leaves and not 0 <= leaves[0] <= leaves[-1] < n_leaves:
            wrong = leaves[0] if leaves[0] < 0 else leaves[-1]
            raise DataError(f"exclude row {row}: leaf {wrong}, expected 0 .. {n_leaves - 1}")
    return distinct


def list_lengths(n_rows: int, k: int, exclude: Histories, n_leaves: int) -> NDArray[np.int64]:
    """How long each row's list is where every entry has a score: k and the excluded ones.

    Raises:
        DataError: as ``distinct_exclusions``.
    """
    gone_B = [len(leaves) for leaves in distinct_exclusions(exclude, n_rows, n_leaves)]
    return np.minimum(k + np.array(gone_B, dtype=np.int64), n_leaves)


def cut_lists(
    leaf_BK: NDArray[np.int64], score_BK: NDArray[Any], length_B: NDArray[np.int64]
) -> RankedLists:
    """Lists of the whole catalogue's order, each blank behind its own length."""
    beyond_BK = np.arange(leaf_BK.shape[1]) >= length_B[:, None]
    return RankedLists(
        np.where(beyond_BK, NO_LEAF, leaf_BK),
        np.where(beyond_BK, -np.inf, score_BK).astype(np.float32),
        np.ones(len(leaf_BK), dtype=bool),
    )


@dataclass(frozen=True)
class FullScoreRanker:
    """A Ranker that scores every entry; its lists are as long as ``rank`` allows."""

    score_all: ScoreAll
    leaves: CatalogueEntries
    scored_by: ScoredBy

    def rank(
        self,
        histories: Histories,
        k: int,
        exclude: Histories = (),
        advance: Advance = lambda n: None,
    ) -> RankedLists:
        """As ``Ranker``; equal scores go to the more popular entry."""
        length_B = list_lengths(len(histories), k, exclude, self.leaves.n_leaves)
        width = int(length_B.max(initial=0))
        leaf_BK = np.empty((len(histories), width), np.int64)
        score_BK = np.empty((len(histories), width), np.float32)
        for part, score_PL in self._parts(histories):
            found = rank_scores(score_PL, self.leaves.by_popularity_L, width)
            leaf_BK[part], score_BK[part] = found
            advance(len(score_PL))
        return cut_lists(leaf_BK, score_BK, length_B)

    def score(
        self,
        histories: Histories,
        items: NDArray[np.int64],
        advance: Advance = lambda n: None,
    ) -> NDArray[np.float64]:
        """As ``Ranker``."""
        score_BC = np.empty(items.shape, np.float64)
        leaf_BC = self.leaves.leaf_of_item_I[items]
        for part, score_PL in self._parts(histories):
            score_BC[part] = np.take_along_axis(score_PL, leaf_BC[part], axis=1)
            advance(len(score_PL))
        return score_BC

    def _parts(self, histories: Histories) -> Iterator[tuple[slice, NDArray[Any]]]:
        for start in range(0, len(histories), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            yield part, np.asarray(self.score_all(histories[part]))
