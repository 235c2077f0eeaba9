"""The other candidate of a validation or test pair, where the source has none: fixed, and uniform.

Shape suffixes: I items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.columns import HISTORY, ROW, TARGET, USER, USER_ID
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
    """One item per row, uniform over the entries that the row's user does not own.

    A pure function of the seed, the stream's name and the row's number, whatever other rows there
    are.

    Args:
        entry_I: catalogue entry of each item: items of one title are one entry.

    Raises:
        DataError: a user owns the whole catalogue.
    """
    representative = np.unique(entry_I, return_index=True)[1]
    chosen = []
    for row, user, name in zip(frame[ROW], frame[USER], frame[USER_ID], strict=True):
        banned = owned[int(user)]
        if len(banned) == len(representative):
            raise DataError(f"user {name!r}: owns every item, so no other candidate is left")
        chosen.append(int(representative[_draw(banned, len(representative), seed, stream, row)]))
    return chosen


def _draw(banned: frozenset[int], n: int, seed: int, stream: str, row: int) -> int:
    key = np.array([seed % 2**64, crc32(stream.encode())], np.uint64)
    raw = np.random.Philox(key=key, counter=np.array([0, 0, int(row), 0], np.uint64))
    while True:
        entry = int(raw.random_raw() % n)
        if entry not in banned:
            return entry
