"""Splitting: from cleaned interactions to targets of training, validation and test rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias
from zlib import crc32

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.config.data import DataSection, InteractionField, find_clock_problem
from llmrec_cli.data.backends.base import Engine, Log, list_parts
from llmrec_cli.data.cleaning import MOMENT, upload_frame
from llmrec_cli.data.schema import (
    GAP,
    HISTORY,
    HISTORY_COLUMNS,
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

# Ordering: the relations that rows are made from, sorted by user or by time.
#
# It is relational like ``cleaning.py``, and runs on the same engine. The result is a written
# relation, whose files are read once in order. So everything that depends only on order needs no
# window function and no second shuffle: dense user numbers, positions in a user's sequence,
# windows.


Ints: TypeAlias = NDArray[np.int64]

BATCH = 1 << 17  # rows of a written relation that are in memory at a time
_SIZE, _USERS = "size", "users"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many users have how many interactions; one entry per number that occurs."""

    size_S: Ints
    users_S: Ints

    def total(self, each_S: Ints) -> int:
        """Sum over all users of what a user of each size has."""
        return int((each_S * self.users_S).sum())


def sort_by_user(log: Log, items: pl.DataFrame, engine: Engine, path: Path) -> Path:
    """The log with ITEM in place of item ids, by user, time and position, written to ``path``.

    Args:
        log: USER_ID, ITEM_ID, RATING, TIMESTAMP, POSITION; other items are dropped.
        items: the catalogue.
    """
    index = upload_frame(items.select(ITEM_ID, ITEM), path.with_suffix(".items.parquet"), engine)
    encoded = log.join(index, on=ITEM_ID, how="inner")
    columns = (USER_ID, ITEM, RATING, TIMESTAMP, POSITION)
    engine.written(encoded.select(columns).sort(USER_ID, *MOMENT), path)
    return path


def count_sizes(log: Log) -> Sizes:
    """How many users have how many interactions."""
    per_user = log.group_by(USER_ID).agg(nw.len().alias(_SIZE))
    counted = per_user.group_by(_SIZE).agg(nw.len().alias(_USERS)).sort(_SIZE)
    found: pl.DataFrame = counted.collect("polars").to_native()
    size_S, users_S = (found[name].cast(pl.Int64).to_numpy() for name in (_SIZE, _USERS))
    return Sizes(size_S, users_S)


def sort_moments(log: Log, after: int, engine: Engine, path: Path) -> Path:
    """The moments of all interactions but each user's first ``after``, ascending, at ``path``."""
    if after:
        place = nw.col(POSITION).cum_count().over(USER_ID, order_by=MOMENT)
        log = log.filter(place > after)
    engine.written(log.select(*MOMENT).sort(*MOMENT), path)
    return path


def sort_by_moment(rows: Path, engine: Engine, path: Path) -> Path:
    """A relation with MOMENT ordered by it, written to ``path``."""
    engine.written(engine.scan(rows).sort(*MOMENT), path)
    return path


def read_batches(relation: Path) -> Iterator[pl.DataFrame]:
    """The rows of a written relation in their order, at most ``BATCH`` at a time."""
    for part in list_parts(relation):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(BATCH):
                yield _to_frame(batch)


def _to_frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame: pl.DataFrame = pl.DataFrame(pl.from_arrow(batch))
    return frame


def read_rows_at(relation: Path, rank_R: Ints) -> pl.DataFrame:
    """The rows at some ranks of a written relation, counted from 0 and ascending."""
    found, first = [], 0
    for batch in read_batches(relation):
        low, high = np.searchsorted(rank_R, [first, first + len(batch)])
        found.append(batch[rank_R[low:high] - first])
        first += len(batch)
    return pl.concat(found)


# The sorted log as a stream of whole users, with their bad ratings.
#
# Shape suffixes: N interactions of a batch.


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
    """Batches of the ordered log, cut between users, with users numbered.

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
        bad: ordered by USER_ID as the log is; it may have users that the log lacks.
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


# Splits: which interactions are targets of training, validation and test rows.
#
# A row is a window of one user's interactions in time order: a target and up to ``section.history``
# interactions before it. A protocol first makes a ``SplitPlan`` from counts over the whole log
# (interactions per user, moments in time order). Then each batch of whole users is split on its
# own. Memory is constant for ``leave-one-out`` and ``global-time``, 8 bytes per user for
# ``few-shot``, and 8 bytes per kept row with ``section.sample``.
#
# Shape suffixes: N interactions of a batch, R rows, S as in ``Sizes``.


Bools: TypeAlias = NDArray[np.bool_]
Moment: TypeAlias = tuple[int, int]  # time in ms, input position
Candidates: TypeAlias = Callable[[UserBatch], Mapping[str, Bools]]

_DRAWN = 1 << 20  # random keys that are in memory at a time


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Which interactions are the targets of which split.

    Attributes:
        candidates: of a batch of users, the mask of each split.
        part: ordinals of a split's rows among its candidates, ascending, counted over all users in
            order; a split that is absent has all candidates.
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
    """Plan the split of a log by ``section.split``.

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

    DMPO's protocol (arXiv:2405.16127): the split is by user.  The users are drawn with the seed.
    Rows are ordered by user.

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
        targets: their moments, from ``sort_moments``.
        interactions: how many the log has, for the message.

    Raises:
        DataError: a split has no row.
    """
    n = sum(pq.read_metadata(part).num_rows for part in list_parts(targets))
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
    """Refuse options that need times, for a source without them.

    Raises:
        DataError: the source has none; the message says what to set instead.
    """
    if (problem := find_clock_problem(section)) is not None:
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


def draw_user_order(n: int, seed: int, stream: str) -> Ints:
    """0..n-1 in an order that depends on the seed and the stream's name."""
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


# Windows: rows as slices of one user's sequence, with their histories.
#
# Shape suffixes: N interactions of a batch, R rows.


ROW_COLUMNS = (USER, USER_ID, HISTORY, TARGET, TIMESTAMP, RATING)
_FIELD_COLUMNS = {RATING: RATING, GAP: TIMESTAMP}  # of the log, by interaction field


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


def build_rows(
    log: pl.DataFrame, windows: Windows, fields: Sequence[InteractionField] = ()
) -> pl.DataFrame:
    """Write windows out: ROW_COLUMNS and POSITION; HISTORY as list<int32>, oldest first.

    Args:
        fields: of the interactions of a history; each adds its column of ``HISTORY_COLUMNS``.
    """
    length_R = windows.target_R - windows.start_R
    offset_R1 = np.concatenate([[0], np.cumsum(length_R)])
    inside = np.repeat(windows.start_R - offset_R1[:-1], length_R) + np.arange(offset_R1[-1])
    history = pa.LargeListArray.from_arrays(offset_R1, log[ITEM].to_numpy()[inside])
    rows = log[windows.target_R].rename({ITEM: TARGET}).with_columns(pl.Series(HISTORY, history))
    for name in fields:
        values = log[_FIELD_COLUMNS[name]][inside].to_arrow()
        lists = pa.LargeListArray.from_arrays(offset_R1, values)
        rows = rows.with_columns(pl.Series(HISTORY_COLUMNS[name], lists))
    return rows.select(*ROW_COLUMNS, *(HISTORY_COLUMNS[name] for name in fields), POSITION)


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
