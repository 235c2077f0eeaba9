"""How a query finds its item, and all items of a user."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray
from rapidfuzz import fuzz, process
from rapidfuzz.utils import default_process

from llmrec_cli.data.histories import InteractionHistory
from llmrec_cli.data.prepared import Prepared, translate_read_errors
from llmrec_cli.data.schema import (
    COUNT,
    HISTORY,
    HISTORY_COLUMNS,
    HISTORY_RATING,
    HISTORY_TIMESTAMP,
    ITEM_ID,
    RATING,
    TARGET,
    TIMESTAMP,
    TITLE,
    USER_ID,
    split_file,
)
from llmrec_cli.errors import DataError

# Finding the item of a query: an id, a title, or a similar title.
#
# An id must match exactly, because a similar id is another item. A title may be incomplete or
# misspelt.


ENOUGH: Final = 0.8  # similarity below which a query is not taken for a title
_REORDERED = 0.95  # similarity of the same words in another order
_PART = 0.9  # similarity of a part of a title,
_LETTERS = 4  # if it has at least so many letters
_SHOWN = 3  # nearest names in a message


@dataclass(frozen=True, slots=True)
class Match:
    """A query, and the item that it was taken for."""

    query: str
    item: int  # catalogue index
    similarity: float  # (0, 1]; 1: an id, or a title but for case and punctuation


class Finder:
    """The names of a catalogue, to find items by."""

    def __init__(self, items: pd.DataFrame, newer: Collection[str] = ()) -> None:
        """
        Args:
            items: the prepared items; ITEM_ID, TITLE (null where there is none) and COUNT are read.
            newer: ids and titles of items that the run does not know.
        """
        self._newer = newer
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
            DataError: no item has such a name; the message names the nearest titles or ids.  Or
                it is that of an item that the run does not know.
        """
        found = self._item_of_id.get(query, self._item_of_title.get(query))
        if found is not None:
            return Match(query, found, 1.0)
        if query in self._newer:
            raise DataError(f"{query!r}: this item is newer than the run, which does not know it")
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

        A title may be longer than the query.  A shorter one must resemble the whole query.
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
        near += [(fuzz.ratio(query, name) / 100, name) for name in find_nearest(query, self._ids)]
        near = sorted((found for found in near if found[0] > 0), key=lambda found: -found[0])
        shown = ", ".join(f"{name!r} ({similarity:.2f})" for similarity, name in near[:_SHOWN])
        title = "a title, or nearly one" if fuzzy else "a title"
        expected = f"an item id, {title}" if self._pool[0] else "an item id"
        return f"{query!r}: expected {expected}" + (f"; nearest: {shown}" if shown else "")


def find_nearest(name: str, known: Iterable[str]) -> Sequence[str]:
    """The names most like ``name``, best first; a few."""
    return [found for found, _, _ in process.extract(name, known, scorer=fuzz.ratio, limit=_SHOWN)]


# All items of a user of the prepared data, over all splits.


class _Interaction(NamedTuple):
    item: int
    rating: float | None
    time: int | None


def items_of_user(prepared: Prepared, user_id: str) -> Sequence[int]:
    """Catalogue indices of a user's items, oldest first; with ratings and times, where rows have
    those of their histories.

    The last ones are exactly the history and target of the user's latest row.  Further items of
    earlier rows come before them, each once.

    Raises:
        DataError: no such user; the message names the nearest ids.
        ArtefactError: a split cannot be read.
    """
    files = [prepared.folder / split_file(name) for name in prepared.splits]
    parts = [pl.scan_parquet(file, glob=False).filter(pl.col(USER_ID) == user_id) for file in files]
    with translate_read_errors(prepared.folder):
        # Times may be missing (given rows): then the order of splits and rows is that of time.
        known = [name for name in HISTORY_COLUMNS.values() if name in parts[0].collect_schema()]
        columns = (HISTORY, TARGET, RATING, TIMESTAMP, *known)
        rows = pl.concat([part.select(columns) for part in parts]).collect()
        rows = rows.sort(TIMESTAMP, maintain_order=True)
    if rows.is_empty():
        raise DataError(_describe_unknown(prepared, user_id))
    *before, latest = map(_list_interactions, rows.iter_rows(named=True))
    older: dict[int, _Interaction] = {}
    for interaction in (one for row in before for one in row):
        older.setdefault(interaction.item, interaction)
    last = {one.item for one in latest}
    found = [one for one in older.values() if one.item not in last] + latest
    if not known:
        return [one.item for one in found]
    ratings = [math.nan if one.rating is None else one.rating for one in found]
    return InteractionHistory(
        np.array([one.item for one in found], np.int32),
        np.array(ratings, np.float64) if HISTORY_RATING in known else None,
        np.array([one.time for one in found], np.int64) if HISTORY_TIMESTAMP in known else None,
    )


def _list_interactions(row: Mapping[str, Any]) -> list[_Interaction]:
    """Those of the history, as far as they are known, and that of the target."""
    items, none = row[HISTORY], repeat(None)
    ratings, times = row.get(HISTORY_RATING, none), row.get(HISTORY_TIMESTAMP, none)
    found = [_Interaction(*parts) for parts in zip(items, ratings, times, strict=False)]
    return [*found, _Interaction(row[TARGET], row[RATING], row[TIMESTAMP])]


def _describe_unknown(prepared: Prepared, user_id: str) -> str:
    files = [prepared.folder / split_file(name) for name in prepared.splits]
    parts = [pl.scan_parquet(file, glob=False).select(USER_ID) for file in files]
    known = pl.concat(parts).unique().collect()[USER_ID].sort().to_list()
    near = ", ".join(map(repr, find_nearest(user_id, known)))
    return f"user {user_id!r}: not among the {len(known):,} prepared ones; nearest: {near}"
