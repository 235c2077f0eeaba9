"""Splits: which interactions are targets of training, validation and test rows.

A row is a window of one user's time-ordered interactions: a target and up to ``section.history``
interactions before it.  A protocol first makes a ``SplitPlan`` from what is known of the whole log
(how many users have how many interactions; moments in order of time); then any batch of whole users
can be cut on its own.  What a cut holds in memory: nothing that grows for a plain
``leave-one-out`` or ``global-time``; 8 bytes per user for ``few-shot``; 8 bytes per kept row where
``section.sample`` thins a split.

Shape suffixes: N interactions of a batch, R rows, S as in ``Sizes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from zlib import crc32

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.data.columns import POSITION, SPLITS, TIMESTAMP
from llmrec_cli.data.engines.engine import Engine, Log, parts
from llmrec_cli.data.order import Ints, Sizes, count_sizes, read_rows_at, sort_moments
from llmrec_cli.data.users import UserBatch
from llmrec_cli.errors import DataError
from llmrec_cli.recipe.data import DataSection, clock_problem

Bools: TypeAlias = NDArray[np.bool_]
Moment: TypeAlias = tuple[int, int]  # time in ms, input position
Candidates: TypeAlias = Callable[[UserBatch], Mapping[str, Bools]]

_DRAWN = 1 << 20  # random keys that are in memory at a time


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Which interactions are the targets of which split.

    Attributes:
        candidates: of a batch of users, the mask of each split.
        part: ordinals of a split's rows among its candidates, counted over all users in order and
            ascending; a split that is not named has them all.
        kept: those of them that ``section.sample`` keeps; likewise.
        end: where training ends for everybody; None where it ends with each user's first valid or
            test target.
    """

    candidates: Candidates
    part: Mapping[str, Ints] = field(default_factory=dict)
    kept: Mapping[str, Ints] = field(default_factory=dict)
    end: Moment | None = None


def plan_split(
    log: Log, interactions: int, section: DataSection, seed: int, engine: Engine, scratch: Path
) -> SplitPlan:
    """The cut of a log by ``section.split``.

    Args:
        interactions: how many ``log`` has.
        scratch: a path where nothing is yet.

    Raises:
        DataError: a split would have no row, or few-shot too few users.
    """
    if section.split == "global-time":
        targets = sort_moments(log, section.min_history, engine, scratch)
        return plan_global_time(targets, interactions, section, seed)
    protocol = {"leave-one-out": plan_leave_one_out, "few-shot": plan_few_shot}[section.split]
    return protocol(count_sizes(log), section, seed)


def plan_leave_one_out(sizes: Sizes, section: DataSection, seed: int) -> SplitPlan:
    """A user's last interaction is test, the one before valid, the earlier ones train.

    Every earlier interaction is the target of one training row (sliding prefixes).  Users with
    fewer than 3 interactions are training only.  Rows are ordered by user, then time.

    Raises:
        DataError: a split has no row.
    """
    shortest = section.min_history

    def candidates(users: UserBatch) -> Mapping[str, Bools]:
        from_end_N = users.size_N - users.place_N
        held_N, long_N = users.size_N >= 3, users.place_N >= shortest
        test_N, valid_N = held_N & (from_end_N == 1), held_N & (from_end_N == 2)
        return {
            "train": long_N & ~(test_N | valid_N),
            "valid": long_N & valid_N,
            "test": long_N & test_N,
        }

    size_S, held_S = sizes.size_S, sizes.size_S >= 3
    each = {
        "train": np.maximum(0, size_S - 2 * held_S - shortest),
        "valid": held_S & (size_S - 2 >= shortest),
        "test": held_S & (size_S - 1 >= shortest),
    }
    n_rows = {name: sizes.total(each_S.astype(np.int64)) for name, each_S in each.items()}
    _require_rows(n_rows, sizes.total(size_S), section)
    return SplitPlan(candidates, kept=draw_samples(n_rows, section, seed))


def plan_few_shot(sizes: Sizes, section: DataSection, seed: int) -> SplitPlan:
    """One row per user (the last interaction); few users train, as many validate, the rest test.

    DMPO's protocol (arXiv:2405.16127): the split is by user.  Which users is drawn with the seed;
    rows are ordered by user.

    Raises:
        DataError: too few users.
    """

    def candidates(users: UserBatch) -> Mapping[str, Bools]:
        last_N = users.place_N == users.size_N - 1
        return dict.fromkeys(SPLITS, last_N & (users.place_N >= section.min_history))

    n_users = sizes.total((sizes.size_S > section.min_history).astype(np.int64))
    few = section.few_shot_users
    if n_users <= 2 * few:
        raise DataError(
            f"data.few_shot_users = {few}: training and validation take {few} users each, and"
            f" only {n_users:,} have {section.min_history + 1} or more interactions"
        )
    drawn = draw_first(n_users, 2 * few, seed, "few-shot")
    train, valid = np.sort(drawn[:few]), np.sort(drawn[few:])
    test = np.delete(np.arange(n_users), drawn)
    part = dict(zip(SPLITS, (train, valid, test), strict=True))
    thinned = draw_samples({name: len(users) for name, users in part.items()}, section, seed)
    return SplitPlan(
        candidates, part, part | {name: part[name][at] for name, at in thinned.items()}
    )


def plan_global_time(
    targets: Path, interactions: int, section: DataSection, seed: int
) -> SplitPlan:
    """All windows of all users ordered by the target's time, cut 8:1:1 by count.

    MSL's protocol (arXiv:2504.04178; docs/evaluation.md): windows of 5..11 items are
    ``min_history = 4, history = 10``.  Ties in time break by input order.

    Args:
        targets: their moments, from ``order.sort_moments``.
        interactions: how many the log has, for the message.

    Raises:
        DataError: a split has no row.
    """
    n = sum(pq.read_metadata(part).num_rows for part in parts(targets))
    edges = [0, n * 8 // 10, n * 9 // 10, n]
    n_rows = {name: edges[at + 1] - edges[at] for at, name in enumerate(SPLITS)}
    _require_rows(n_rows, interactions, section)
    valid, test = ((int(t), int(p)) for t, p in read_rows_at(targets, np.array(edges[1:3])).rows())
    drawn = {
        name: np.sort(read_rows_at(targets, edges[SPLITS.index(name)] + at)[POSITION].to_numpy())
        for name, at in draw_samples(n_rows, section, seed).items()
    }

    def candidates(users: UserBatch) -> Mapping[str, Bools]:
        long_N = users.place_N >= section.min_history
        held_N, test_N = _is_at_or_after(valid, users), _is_at_or_after(test, users)
        masks = {"train": long_N & ~held_N, "valid": long_N & held_N & ~test_N}
        masks["test"] = long_N & test_N
        position_N = users.log[POSITION].to_numpy()
        return {
            name: mask_N & np.isin(position_N, drawn[name]) if name in drawn else mask_N
            for name, mask_N in masks.items()
        }

    return SplitPlan(candidates, end=valid)


def require_clock(section: DataSection) -> None:
    """Refuse what goes by the clock of a source without times.

    Raises:
        DataError: the source has none; the message says what to set instead.
    """
    if (problem := clock_problem(section)) is not None:
        raise DataError(f"data.{problem}")


def draw_samples(n_rows: Mapping[str, int], section: DataSection, seed: int) -> dict[str, Ints]:
    """For each split that ``section.sample`` thins, the ascending indices of the rows it keeps."""
    return {
        name: np.sort(draw_first(n, size, seed, name))
        for name, n in n_rows.items()
        if (size := getattr(section.sample, name, None)) is not None and size < n
    }


def draw_sample(n_rows: int, section: DataSection, seed: int, split: str) -> Ints:
    """Ascending indices of the rows that ``section.sample`` keeps, drawn with the seed."""
    return draw_samples({split: n_rows}, section, seed).get(split, np.arange(n_rows))


def draw_order(n: int, seed: int, stream: str) -> Ints:
    """0..n-1 in an order that the seed and the stream's name decide."""
    return draw_first(n, n, seed, stream)


def draw_first(n: int, size: int, seed: int, stream: str) -> Ints:
    """The first ``size`` of ``draw_order(n, ...)``, with no more than that many in memory."""
    # Raw counter-based output is the one random stream that numpy promises never to change.
    bits = np.random.Philox(key=np.array([seed % 2**64, crc32(stream.encode())], np.uint64))
    keys, kept = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    step = max(size, _DRAWN)
    for first in range(0, n, step):
        more = min(step, n - first)
        keys = np.concatenate([keys, bits.random_raw(more)])
        kept = np.concatenate([kept, np.arange(first, first + more)])
        best = np.argsort(keys, kind="stable")[:size]  # equal keys: the earlier, as if all at once
        keys, kept = keys[best], kept[best]
    return kept


def _require_rows(n_rows: Mapping[str, int], interactions: int, section: DataSection) -> None:
    for name, n in n_rows.items():
        if not n:
            raise DataError(
                f'data.split = "{section.split}": no {name} row is left with data.min_history ='
                f" {section.min_history} (of {interactions:,} interactions)"
            )


def _is_at_or_after(moment: Moment, users: UserBatch) -> Bools:
    """Interactions at ``moment`` or later."""
    time, position = moment
    time_N, position_N = users.log[TIMESTAMP].to_numpy(), users.log[POSITION].to_numpy()
    later_N: Bools = (time_N > time) | ((time_N == time) & (position_N >= position))
    return later_N
