"""The ordered log as a stream of whole users, with what they rated badly beside it.

Shape suffixes: N interactions of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from llmrec_cli.data.columns import ITEM, POSITION, RATING, TIMESTAMP, USER, USER_ID
from llmrec_cli.data.order import Ints

_NO_BAD = pl.DataFrame(
    schema={
        USER_ID: pl.String,
        ITEM: pl.Int32,
        RATING: pl.Float64,
        TIMESTAMP: pl.Int64,
        POSITION: pl.Int64,
    }
)


@dataclass(frozen=True, slots=True)
class UserBatch:
    """All interactions of some consecutive users."""

    log: pl.DataFrame  # USER, USER_ID, ITEM, RATING, TIMESTAMP, POSITION, in order
    place_N: Ints  # 0-based place of each interaction in its user's sequence
    size_N: Ints  # length of that sequence
    bad: pl.DataFrame | None = None  # USER_ID, ITEM, RATING, TIMESTAMP, POSITION; None: not asked


def batch_users(log: Iterator[pl.DataFrame]) -> Iterator[UserBatch]:
    """Batches of the ordered log, cut between users and numbered by them.

    Memory is bounded by a batch and the sequences that are longer than one.
    """
    first = 0
    rest: list[pl.DataFrame] = []  # from the last user so far on, who may not be complete
    for batch in log:
        begins = batch[USER_ID].rle_id()
        start = int(begins.search_sorted(begins[-1]))
        if start:
            users = _make_batch(pl.concat([*rest, batch[:start]]), first)
            yield users
            first = int(users.log[USER][-1]) + 1
            rest = []
        rest.append(batch[start:])
    if rest:
        yield _make_batch(pl.concat(rest), first)


def attach_badly_rated(
    users: Iterator[UserBatch], bad: Iterator[pl.DataFrame]
) -> Iterator[UserBatch]:
    """Each batch of users with what they rated badly.

    Args:
        bad: ordered by USER_ID as the log is; rows of users whom the log lacks come along.
    """
    rest = next(bad, _NO_BAD)
    for batch in users:
        last = batch.log[USER_ID][-1]
        theirs = []
        while len(rest) and rest[USER_ID][0] <= last:
            n = int((rest[USER_ID] <= last).sum())
            theirs.append(rest[:n])
            rest = rest[n:] if n < len(rest) else next(bad, _NO_BAD)
        yield replace(batch, bad=pl.concat([_NO_BAD, *theirs]))


def _make_batch(log: pl.DataFrame, first: int) -> UserBatch:
    user_N = log[USER_ID].rle_id().to_numpy().astype(np.int64)
    size_U = np.bincount(user_N)
    start_U = np.cumsum(size_U) - size_U
    numbered = log.with_columns(pl.Series(USER, first + user_N, pl.Int32))
    return UserBatch(numbered, np.arange(len(user_N)) - start_U[user_N], size_U[user_N])
