"""Histories: a user's items, oldest first, and where it is known what each interaction has.

review -> history_rating, history_timestamp of the split files -> InteractionHistory -> words

``Histories`` everywhere are sequences of catalogue indices.  Whoever ranks by items alone reads no
more.  An ``InteractionHistory`` is such a sequence that also knows ratings and times; only the
prompt encoder asks it for their words.  Nothing of a target is in a history: its own rating and
time are known only when it has happened.

Shape suffixes: H items of a history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, Final, NamedTuple, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.schema import GAP, HISTORY, HISTORY_RATING, HISTORY_TIMESTAMP, RATING

_DAY: Final = 86_400_000  # ms


class InteractionWords(NamedTuple):
    """What a prompt can say of an interaction beside its item; None: it has no such thing."""

    rating: str | None  # such as "4.5"
    gap: str | None  # such as "5 days later"

    def values(self) -> Mapping[str, str]:
        """By field, without what is absent."""
        values = {RATING: self.rating, GAP: self.gap}
        return {name: value for name, value in values.items() if value is not None}

    def without_gap(self) -> InteractionWords:
        """Of the same interaction, where a prompt shows nothing before it."""
        return self._replace(gap=None)


NOTHING: Final = InteractionWords(None, None)


@dataclass(frozen=True, eq=False, slots=True)
class InteractionHistory(Sequence[int]):
    """Catalogue indices of a user's items, oldest first, with what is known of each interaction."""

    item_H: NDArray[np.int32]
    rating_H: NDArray[np.float64] | None = None  # NaN: unrated; None: nothing is known
    time_H: NDArray[np.int64] | None = None  # ms since 1970, never falling; None: not known

    def __len__(self) -> int:
        return len(self.item_H)

    def __iter__(self) -> Iterator[int]:
        return iter(self.item_H.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.item_H.astype(self.item_H.dtype if dtype is None else dtype, copy=bool(copy))

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> InteractionHistory: ...
    def __getitem__(self, at: int | slice) -> int | InteractionHistory:
        if not isinstance(at, slice):
            return int(self.item_H[at])
        rating_H = None if self.rating_H is None else self.rating_H[at]
        time_H = None if self.time_H is None else self.time_H[at]
        return InteractionHistory(self.item_H[at], rating_H, time_H)

    def select(self, kept_H: NDArray[np.bool_], place_H: NDArray[np.int32]) -> InteractionHistory:
        """Some of the interactions, their items by other numbers.

        Args:
            place_H: the number of each item.
        """
        rating_H = None if self.rating_H is None else self.rating_H[kept_H]
        time_H = None if self.time_H is None else self.time_H[kept_H]
        return InteractionHistory(place_H[kept_H], rating_H, time_H)

    def list_words(self) -> list[InteractionWords]:
        """What a prompt of exactly this history can say of each interaction.

        The first one has no gap: the prompt shows nothing before it.
        """
        rated = repeat(None) if self.rating_H is None else map(word_rating, self.rating_H.tolist())
        gaps = repeat(None) if self.time_H is None else _list_gaps(self.time_H)
        found = zip(range(len(self)), rated, gaps, strict=False)
        return [InteractionWords(rating, gap) for _, rating, gap in found]


def _list_gaps(time_H: NDArray[np.int64]) -> list[str | None]:
    days_H = np.diff(time_H // _DAY)  # of the calendar, UTC
    return [None, *map(word_gap, days_H.tolist())]


@lru_cache(1 << 10)
def word_rating(rating: float) -> str | None:
    """A rating as people write it: ``5``, ``4.5``; None for NaN."""
    return None if np.isnan(rating) else np.format_float_positional(rating, trim="-")


@lru_cache(1 << 12)
def word_gap(days: int) -> str:
    """The time since the interaction before, in words.

    Below two months it is a number of days, below two years a number of months, then of years.  A
    year has 365.25 days and a month its twelfth; what is left over is dropped.

    Args:
        days: of the calendar, UTC, from 0 on.
    """
    months, years = days * 48 // 1461, days * 4 // 1461
    if years >= 2:
        return f"{years} years later"
    if months >= 2:
        return f"{months} months later"
    return "the same day" if days == 0 else f"{days} day{'s' * (days > 1)} later"


EXAMPLES: Final = tuple(
    InteractionWords(str(1 + at % 5), word_gap(days))
    for at, days in enumerate((*range(61), *range(61, 731, 30), *range(731, 4000, 365)))
)
"""Words of every kind, for a tokenizer that is trained on them."""


def read_histories(frame: pd.DataFrame) -> Sequence[Sequence[int]]:
    """The histories of the rows of a split, with ratings and times where it has them.

    Args:
        frame: HISTORY is read, and HISTORY_RATING and HISTORY_TIMESTAMP where they are there.
    """
    items: list[Any] = frame[HISTORY].tolist()  # int32 arrays
    found = [
        frame[name].tolist() if name in frame.columns else None
        for name in (HISTORY_RATING, HISTORY_TIMESTAMP)
    ]
    if found == [None, None]:
        return items
    columns = (repeat(None) if values is None else values for values in found)
    return list(map(InteractionHistory, items, *columns))
