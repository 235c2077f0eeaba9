"""Windows: rows as slices of one user's sequence, histories written out.

Shape suffixes: N interactions of a batch, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from llmrec_cli.data.columns import (
    HISTORY,
    ITEM,
    POSITION,
    RATING,
    SPLITS,
    TARGET,
    TIMESTAMP,
    USER,
    USER_ID,
)
from llmrec_cli.data.order import Ints
from llmrec_cli.data.split import SplitPlan
from llmrec_cli.data.users import UserBatch

ROW_COLUMNS = (USER, USER_ID, HISTORY, TARGET, TIMESTAMP, RATING)


@dataclass(frozen=True, slots=True)
class Windows:
    """Rows as slices of a batch: history ``start .. target - 1``, then the target."""

    start_R: Ints
    target_R: Ints


@dataclass(frozen=True, slots=True)
class SplitBatch:
    """The rows of some consecutive users."""

    users: UserBatch
    windows: Mapping[str, Windows]  # of each split, in order of user and time
    unsampled: Mapping[str, int]  # rows of each split before any sampling
    held_R: Ints  # targets of valid and test before any sampling, in no order


def split_users(
    batches: Iterable[UserBatch], plan: SplitPlan, history: int
) -> Iterator[SplitBatch]:
    """Cut batch after batch.

    Args:
        batches: all users of the log, in order.
        history: longest history, items.
    """
    seen = dict.fromkeys(SPLITS, 0)  # candidates in the batches before
    for users in batches:
        windows, unsampled, held = {}, {}, []
        for name, mask_N in plan.candidates(users).items():
            found_R = np.flatnonzero(mask_N)
            all_R = _choose_ordinals(found_R, seen[name], plan.part.get(name))
            unsampled[name] = len(all_R)
            if name != "train":
                held.append(all_R)
            target_R = _choose_ordinals(found_R, seen[name], plan.kept.get(name))
            seen[name] += len(found_R)
            place_R = users.place_N[target_R]
            windows[name] = Windows(target_R - np.minimum(place_R, history), target_R)
        yield SplitBatch(users, windows, unsampled, np.concatenate(held))


def build_rows(log: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """Write windows out: ROW_COLUMNS and POSITION; HISTORY as list<int32>, oldest first."""
    length_R = windows.target_R - windows.start_R
    offset_R1 = np.concatenate([[0], np.cumsum(length_R)])
    inside = np.repeat(windows.start_R - offset_R1[:-1], length_R) + np.arange(offset_R1[-1])
    history = pa.LargeListArray.from_arrays(offset_R1, log[ITEM].to_numpy()[inside])
    rows = log[windows.target_R].rename({ITEM: TARGET})
    return rows.with_columns(pl.Series(HISTORY, history)).select(*ROW_COLUMNS, POSITION)


def count_training_items(log: pl.DataFrame, train: Windows, n_items: int) -> NDArray[np.int64]:
    """Interactions of each item inside training rows, each interaction once, not once per row."""
    edges_N1 = np.zeros(len(log) + 1, np.int64)
    np.add.at(edges_N1, train.start_R, 1)
    np.add.at(edges_N1, train.target_R + 1, -1)
    covered_N = np.cumsum(edges_N1[:-1]) > 0
    return np.bincount(log[ITEM].to_numpy()[covered_N], minlength=n_items)


def _choose_ordinals(found_R: Ints, seen: int, ordinals: Ints | None) -> Ints:
    """Of candidates that are the ``seen``-th and following ones, those at some ordinals."""
    if ordinals is None:
        return found_R
    low, high = np.searchsorted(ordinals, [seen, seen + len(found_R)])
    return found_R[ordinals[low:high] - seen]
