"""The fixed other candidate of a validation or test pair, for sources without pairs.

Shape suffixes: I items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.schema import DISLIKED, HISTORY, ROW, TARGET, USER, USER_ID
from llmrec_cli.errors import DataError

Owned = Mapping[int, frozenset[int]]


def owned_entries(frames: Sequence[pd.DataFrame], entry_I: NDArray[np.int64]) -> Owned:
    """Every catalogue entry that a user has in any row of ``frames``, as target or in a history."""
    owned: dict[int, set[int]] = {}
    for frame in frames:
        for user, history, target in zip(frame[USER], frame[HISTORY], frame[TARGET], strict=True):
            mine = owned.setdefault(int(user), set())
            mine.update(entry_I[np.asarray(history, dtype=np.int64)].tolist())
            mine.add(int(entry_I[target]))
    return {user: frozenset(entries) for user, entries in owned.items()}


def fixed_negatives(
    frame: pd.DataFrame, owned: Owned, entry_I: NDArray[np.int64], *, seed: int, stream: str
) -> list[int]:
    """Draw one item per row that its user does not own: a disliked one (DISLIKED), else any.

    It is uniform over the row's disliked entries where there are any, else over the catalogue's.
    It is a pure function of the seed, the stream's name, the row's number and these entries.

    Args:
        entry_I: catalogue entry of each item: items of one title are one entry.

    Raises:
        DataError: a user owns the whole catalogue.
    """
    representative = np.unique(entry_I, return_index=True)[1]
    chosen = []
    columns = zip(frame[ROW], frame[USER], frame[USER_ID], _disliked_lists(frame), strict=True)
    for row, user, name, disliked in columns:
        banned = owned[int(user)]
        if len(banned) == len(representative):
            raise DataError(f"user {name!r}: owns every item, so no other candidate is left")
        numbers = _draw_words(seed, stream, row)
        pool = {int(entry_I[item]): int(item) for item in disliked}
        pool = {entry: item for entry, item in pool.items() if entry not in banned}
        if pool:
            chosen.append(list(pool.values())[next(numbers) % len(pool)])
        else:
            entries = (number % len(representative) for number in numbers)
            chosen.append(int(representative[next(e for e in entries if e not in banned)]))
    return chosen


def count_disliked(frame: pd.DataFrame, negatives: Sequence[int]) -> int:
    """How many of the rows' fixed negatives their users disliked."""
    return sum(other in mine for other, mine in zip(negatives, _disliked_lists(frame), strict=True))


def _disliked_lists(frame: pd.DataFrame) -> Sequence[Sequence[int]]:
    if DISLIKED not in frame.columns:
        return [()] * len(frame)
    return [items.tolist() for items in frame[DISLIKED]]


def _draw_words(seed: int, stream: str, row: int) -> Iterator[int]:
    """Endless random 64-bit words."""
    key = np.array([seed % 2**64, crc32(stream.encode())], np.uint64)
    raw = np.random.Philox(key=key, counter=np.array([0, 0, int(row), 0], np.uint64))
    while True:
        yield int(raw.random_raw())
