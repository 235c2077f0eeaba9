"""Splits: which interactions are targets of training, validation and test rows.

A row is a window of one user's time-ordered interactions: a target and up to ``section.history``
interactions before it.  Windows are kept as slices of the ordered log, so a million of them costs
16 MB; histories are written out once, at the end.

Shape suffixes: N interactions, R rows, U users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from zlib import crc32

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from llmrec_cli.data.columns import (
    HISTORY,
    ITEM,
    ITEM_ID,
    POSITION,
    RATING,
    SPLITS,
    TARGET,
    TIMESTAMP,
    USER,
    USER_ID,
)
from llmrec_cli.errors import DataError
from llmrec_cli.recipe_data import DataSection

Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

ROW_COLUMNS = (USER, USER_ID, HISTORY, TARGET, TIMESTAMP, RATING)


@dataclass(frozen=True, slots=True)
class Windows:
    """Rows as slices of the log: history ``start .. target - 1``, then the target."""

    start_R: Ints
    target_R: Ints

    def take(self, chosen: Ints) -> Windows:
        """The rows at these indices, in this order."""
        return Windows(self.start_R[chosen], self.target_R[chosen])

    def __len__(self) -> int:
        return len(self.target_R)


def encode(ordered: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """The ordered log with dense USER and ITEM indices in place of item ids.

    Args:
        ordered: USER_ID, ITEM_ID, RATING, TIMESTAMP, POSITION, ordered by user, time and position.
        items: the catalogue; every item of the log is in it.
    """
    index = items.select(ITEM_ID, ITEM)
    return ordered.join(index, on=ITEM_ID, how="left", maintain_order="left").select(
        pl.col(USER_ID).rle_id().cast(pl.Int32).alias(USER),
        USER_ID,
        ITEM,
        RATING,
        TIMESTAMP,
        POSITION,
    )


def split_log(log: pl.DataFrame, section: DataSection, seed: int) -> dict[str, Windows]:
    """All windows of train, valid and test by ``section.split``; ``sampled`` may thin them.

    Raises:
        DataError: too few users or windows, or no times where the split needs them.
    """
    parts = _PROTOCOLS[section.split](log, section, seed)
    for name, part in parts.items():
        if not len(part):
            raise DataError(
                f'data.split = "{section.split}": no {name} row is left with data.min_history ='
                f" {section.min_history} (of {len(log):,} interactions)"
            )
    return parts


def sampled(parts: Mapping[str, Windows], section: DataSection, seed: int) -> dict[str, Windows]:
    """The windows of each split that ``section.sample`` keeps."""
    return {name: part.take(sample(len(part), section, seed, name)) for name, part in parts.items()}


def leave_one_out(log: pl.DataFrame, section: DataSection, _seed: int) -> dict[str, Windows]:
    """A user's last interaction is test, the one before valid, the earlier ones train.

    Every earlier interaction is the target of one training row (sliding prefixes).  Users with
    fewer than 3 interactions are training only.  Rows are ordered by user, then time.
    """
    place_N, size_N = _places(log)
    held_N = size_N >= 3
    test_N = held_N & (place_N == size_N - 1)
    valid_N = held_N & (place_N == size_N - 2)
    long_N = place_N >= section.min_history
    parts = {"train": ~(test_N | valid_N), "valid": valid_N, "test": test_N}
    return {
        name: _windows(np.flatnonzero(part_N & long_N), place_N, section.history)
        for name, part_N in parts.items()
    }


def global_time(log: pl.DataFrame, section: DataSection, _seed: int) -> dict[str, Windows]:
    """All windows of all users ordered by the target's time, cut 8:1:1 by count.

    MSL's protocol (arXiv:2504.04178; METHODS section 8): windows of 5..11 items are
    ``min_history = 4, history = 10``.  Ties in time break by input order.
    """
    if not has_clock(section):
        raise DataError(
            'data.split = "global-time": format "semantic-ids" has no times that compare across'
            ' users; use "leave-one-out" or "few-shot"'
        )
    place_N, _ = _places(log)
    target_R = np.flatnonzero(place_N >= section.min_history)
    time_N, position_N = log[TIMESTAMP].to_numpy(), log[POSITION].to_numpy()
    target_R = target_R[np.lexsort((position_N[target_R], time_N[target_R]))]
    cuts = [len(target_R) * 8 // 10, len(target_R) * 9 // 10]
    return {
        name: _windows(part_R, place_N, section.history)
        for name, part_R in zip(SPLITS, np.split(target_R, cuts), strict=True)
    }


def few_shot(log: pl.DataFrame, section: DataSection, seed: int) -> dict[str, Windows]:
    """One row per user (the last interaction); few users train, as many validate, the rest test.

    DMPO's protocol (arXiv:2405.16127): the split is by user.  Which users is drawn with the seed;
    rows are ordered by user.
    """
    place_N, size_N = _places(log)
    target_U = np.flatnonzero((place_N == size_N - 1) & (place_N >= section.min_history))
    few = section.few_shot_users
    if len(target_U) <= 2 * few:
        raise DataError(
            f"data.few_shot_users = {few}: training and validation take {few} users each, and"
            f" only {len(target_U):,} have {section.min_history + 1} or more interactions"
        )
    parts = np.split(target_U[shuffled(len(target_U), seed, "few-shot")], [few, 2 * few])
    return {
        name: _windows(np.sort(part_R), place_N, section.history)
        for name, part_R in zip(SPLITS, parts, strict=True)
    }


_PROTOCOLS: Mapping[str, Callable[[pl.DataFrame, DataSection, int], dict[str, Windows]]] = {
    "leave-one-out": leave_one_out,
    "global-time": global_time,
    "few-shot": few_shot,
}


def rows_of(log: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """Write windows out: ROW_COLUMNS, HISTORY as list<int32> of catalogue indices, oldest first."""
    length_R = windows.target_R - windows.start_R
    offset_R1 = np.concatenate([[0], np.cumsum(length_R)])
    inside = np.repeat(windows.start_R - offset_R1[:-1], length_R) + np.arange(offset_R1[-1])
    history = pa.LargeListArray.from_arrays(offset_R1, log[ITEM].to_numpy()[inside])
    rows = log[windows.target_R].rename({ITEM: TARGET})
    return rows.with_columns(pl.Series(HISTORY, history)).select(ROW_COLUMNS)


def has_clock(section: DataSection) -> bool:
    """Whether times compare across users: semantic-ID files have places in a user's list only."""
    return section.format not in ("semantic-ids", "rank-pairs")


def training_counts(log: pl.DataFrame, train: Windows, n_items: int) -> NDArray[np.int32]:
    """Interactions of each item inside training rows, each interaction once, not once per row."""
    edges_N1 = np.zeros(len(log) + 1, np.int64)
    np.add.at(edges_N1, train.start_R, 1)
    np.add.at(edges_N1, train.target_R + 1, -1)
    covered_N = np.cumsum(edges_N1[:-1]) > 0
    items = log[ITEM].to_numpy()[covered_N]
    return np.bincount(items, minlength=n_items).astype(np.int32)


def sample(n_rows: int, section: DataSection, seed: int, split: str) -> Ints:
    """Ascending indices of the rows that ``section.sample`` keeps, drawn with the seed."""
    size: int | None = getattr(section.sample, split, None)
    if size is None or size >= n_rows:
        return np.arange(n_rows)
    return np.sort(shuffled(n_rows, seed, split)[:size])


def shuffled(n: int, seed: int, stream: str) -> Ints:
    """0..n-1 in an order that the seed and the stream's name decide."""
    # Raw counter-based output is the one random stream that numpy promises never to change.
    key = np.array([seed % 2**64, crc32(stream.encode())], np.uint64)
    keys = np.random.Philox(key=key).random_raw(n)
    return np.argsort(keys, kind="stable")


def _places(log: pl.DataFrame) -> tuple[Ints, Ints]:
    """For each interaction its 0-based place in its user's sequence, and that one's length."""
    user_N = log[USER].to_numpy()
    size_U = np.bincount(user_N)
    start_U = np.cumsum(size_U) - size_U
    return np.arange(len(user_N)) - start_U[user_N], size_U[user_N]


def _windows(target_R: Ints, place_N: Ints, history: int) -> Windows:
    return Windows(target_R - np.minimum(place_N[target_R], history), target_R)
