"""Which item somebody means: an id, a title, or something like a title.

An id is taken as it stands or not at all: a neighbour of an id is another item.  A title may be
typed in part or with mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rapidfuzz import fuzz, process
from rapidfuzz.utils import default_process

from llmrec_cli.data.columns import COUNT, ITEM_ID, TITLE
from llmrec_cli.errors import DataError

ENOUGH: Final = 0.8  # similarity below which a title is not taken for another one
_REORDERED = 0.95  # what the same words in another order are worth
_PART = 0.9  # what a part of a title is worth,
_LETTERS = 4  # if it has at least so many letters
_SHOWN = 3  # nearest names in a message


@dataclass(frozen=True, slots=True)
class Match:
    """What somebody typed, and the item that it was taken for."""

    query: str
    item: int  # catalogue index
    similarity: float  # (0, 1]; 1: an id, or a title but for case and punctuation


class Finder:
    """The names of a catalogue, to find items by."""

    def __init__(self, items: pd.DataFrame) -> None:
        """
        Args:
            items: the prepared items; ITEM_ID, TITLE (null where there is none) and COUNT are read.
        """
        self._ids = items[ITEM_ID].tolist()
        titles = items[TITLE].astype(object).where(items[TITLE].notna(), None).tolist()
        popular_first = np.argsort(-items[COUNT].to_numpy(np.int64), kind="stable").tolist()
        self._item_of_id = {name: item for item, name in enumerate(self._ids)}
        self._item_of_title: dict[str, int] = {}
        for item in popular_first:  # of equal titles, the most popular item
            if titles[item] is not None:
                self._item_of_title.setdefault(titles[item], item)

    def find(self, query: str, *, fuzzy: bool = True) -> Match:
        """The item of an id, else of a title, else, where ``fuzzy``, of the title most like it.

        Equal similarity: the more popular item.

        Raises:
            DataError: nothing is called so; the message names the nearest titles or ids.
        """
        found = self._item_of_id.get(query, self._item_of_title.get(query))
        if found is not None:
            return Match(query, found, 1.0)
        similarity_P = self._similarities(query)
        if fuzzy and len(similarity_P) and similarity_P.max() >= ENOUGH:
            best = int(similarity_P.argmax())
            title = self._pool[0][best]
            return Match(query, self._item_of_title[title], float(similarity_P[best]))
        raise DataError(self._unknown(query, similarity_P, fuzzy=fuzzy))

    @cached_property
    def _pool(self) -> tuple[list[str], list[str]]:
        """Titles that can be recognised, the most popular first; and their words for comparison."""
        cleaned = [
            (title, default_process(title))
            for title, item in self._item_of_title.items()
            if title != self._ids[item]  # an id that stands in for a title is still an id
        ]
        kept = [(title, words) for title, words in cleaned if words]
        return [title for title, _ in kept], [words for _, words in kept]

    def _similarities(self, query: str) -> NDArray[np.float64]:
        """Similarity of the query to every title of the pool, 0..1.

        A title may be longer than what was typed; one that is shorter must resemble all of it.
        """
        titles = self._pool[1]
        typed = default_process(query)
        if not titles or not typed:
            return np.zeros(len(titles), np.float64)
        whole, reordered, part = (
            process.cdist([typed], titles, scorer=scorer, dtype=np.float64)[0] / 100
            for scorer in (fuzz.ratio, fuzz.token_sort_ratio, fuzz.partial_ratio)
        )
        is_part = len(typed) >= _LETTERS
        longer = np.array([is_part and len(title) > len(typed) for title in titles])
        best: NDArray[np.float64] = np.maximum(whole, _REORDERED * reordered)
        best = np.maximum(best, _PART * part * longer)
        return best

    def _unknown(self, query: str, similarity_P: NDArray[np.float64], *, fuzzy: bool) -> str:
        best = np.argsort(-similarity_P, kind="stable")[:_SHOWN]
        near = [(float(similarity_P[at]), self._pool[0][at]) for at in best]
        near += [(fuzz.ratio(query, name) / 100, name) for name in nearest(query, self._ids)]
        near = sorted((found for found in near if found[0] > 0), key=lambda found: -found[0])
        shown = ", ".join(f"{name!r} ({similarity:.2f})" for similarity, name in near[:_SHOWN])
        title = "a title, or nearly one" if fuzzy else "a title"
        expected = f"an item id, {title}" if self._pool[0] else "an item id"
        return f"{query!r}: expected {expected}" + (f"; nearest: {shown}" if shown else "")


def nearest(name: str, known: Iterable[str]) -> Sequence[str]:
    """The names most like ``name``, best first; a few."""
    return [found for found, _, _ in process.extract(name, known, scorer=fuzz.ratio, limit=_SHOWN)]
