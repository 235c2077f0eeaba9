"""Writing the rows of the splits, with dislikes; also for sources that come split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from llmrec_cli.config.data import DataSection, InteractionField
from llmrec_cli.data.audit import Finding
from llmrec_cli.data.backends.base import Engine
from llmrec_cli.data.catalog import EXAMPLES
from llmrec_cli.data.cleaning import MOMENT
from llmrec_cli.data.schema import (
    AS_READ,
    CHOSEN_FIRST,
    CUT_ITEMS,
    CUT_ROWS,
    DISLIKED,
    FINER,
    HISTORY,
    HISTORY_COLUMNS,
    ITEM,
    ITEM_ID,
    NEGATIVES,
    NO_TARGET,
    NO_TITLE,
    POSITION,
    PREFERENCE,
    ROW,
    SHORT_HISTORY,
    SPLITS,
    TARGET,
    TIMESTAMP,
    UNSAMPLED,
    USER,
    USER_ID,
    in_order,
    split_file,
)
from llmrec_cli.data.splitting import (
    ROW_COLUMNS,
    Ints,
    Moment,
    SplitBatch,
    SplitPlan,
    UserBatch,
    Windows,
    attach_badly_rated,
    batch_users,
    build_rows,
    count_training_items,
    draw_sample,
    draw_user_order,
    read_batches,
    sort_by_moment,
    split_users,
)
from llmrec_cli.data.table_files import TableFile, rows_schema
from llmrec_cli.errors import DataError

# Disliked items of each user: catalogue items that ``data.min_rating`` drops.
#
# The code works on a few whole users at a time. The engine has sorted the bad ratings.
#
# A row holds only bad ratings from before a moment of its user:
#
# valid, test:  before the row's own target
# train:        before the user's first valid or test target, even if ``data.sample`` drops it;
#               all ratings, if the user is not evaluated;
#               with ``global-time``, before the first valid or test target of any user
#
# An item that is also in the log up to that moment is not disliked. Moments are (TIMESTAMP,
# POSITION), so ties in time are broken by input order.


_BAD, _GOOD = "bad_", "good_"  # prefixes of the columns with a moment


def find_dislikes(bad: pl.DataFrame, log: pl.DataFrame) -> pl.DataFrame:
    """The moments when a user first rated an item badly, and first had it in the log.

    Args:
        bad: USER_ID, ITEM and moments of what was rated badly; other users may be among them.
        log: the encoded log of some users.

    Returns:
        USER, ITEM, and both moments; the log's are null where it does not have the pair.
    """
    theirs = bad.join(log.select(USER_ID, USER).unique(), on=USER_ID)
    return _first_moments(theirs, _BAD).join(
        _first_moments(log, _GOOD), on=(USER, ITEM), how="left"
    )


def add_disliked(
    splits: Mapping[str, pl.DataFrame],
    windows: Mapping[str, Windows],
    known: pl.DataFrame,
    log: pl.DataFrame,
    ends: pl.DataFrame,
) -> dict[str, pl.DataFrame]:
    """The rows of each split with DISLIKED, list<int32>: catalogue indices, ascending.

    Args:
        windows: of the rows.
        known: from ``find_dislikes``.
        log: the encoded log that the windows are slices of.
        ends: from ``find_training_ends``.
    """
    made = {}
    for name, rows in splits.items():
        if name == "train":
            users = rows.select(USER).unique().join(ends, on=USER, how="left")
            lists = users.with_columns(list_disliked(known, users)).select(USER, DISLIKED)
            made[name] = rows.join(lists, on=USER, how="left", maintain_order="left")
        else:
            targets = log[windows[name].target_R]
            made[name] = rows.with_columns(list_disliked(known, targets))
    return made


def find_training_ends(log: pl.DataFrame, held_R: Ints, end: Moment | None) -> pl.DataFrame:
    """USER and the moment at which training ends for the user; users without one have no row.

    Args:
        log: the encoded log of some users.
        held_R: their valid and test targets, before any sampling.
        end: of everybody's training, where there is one.
    """
    if end is not None:
        time, position = (pl.lit(at, pl.Int64).alias(n) for n, at in zip(MOMENT, end, strict=True))
        return log.select(USER).unique().with_columns(time, position)
    held = log[held_R].sort(MOMENT)
    return held.unique(USER, keep="first", maintain_order=True).select(USER, *MOMENT)


def list_disliked(known: pl.DataFrame, moments: pl.DataFrame) -> pl.Series:
    """For each user and moment (null: the end of time) the items that the user disliked by then.

    Args:
        known: from ``find_dislikes``.
        moments: USER, TIMESTAMP, POSITION.
    """
    numbered = moments.select(USER, *MOMENT).with_row_index(ROW)
    at = numbered.join(known, on=USER).filter(_is_before(_BAD) & ~_is_before(_GOOD))
    lists = at.group_by(ROW).agg(pl.col(ITEM).sort().alias(DISLIKED))
    every = numbered.join(lists, on=ROW, how="left", maintain_order="left")
    return every[DISLIKED].fill_null(pl.Series([[]], dtype=pl.List(pl.Int32)))


def _first_moments(log: pl.DataFrame, whose: str) -> pl.DataFrame:
    """USER, ITEM and the moment of the first interaction of each pair."""
    first = log.sort(MOMENT).unique((USER, ITEM), keep="first", maintain_order=True)
    return first.select(USER, ITEM, *(pl.col(name).alias(whose + name) for name in MOMENT))


def _is_before(whose: str) -> pl.Expr:
    time, position = (pl.col(whose + name) for name in MOMENT)
    until, tie = (pl.col(name) for name in MOMENT)
    earlier = (time < until) | ((time == until) & (position < tie))
    return time.is_not_null() & (until.is_null() | earlier)


# Rows from the ordered log: one pass over whole users, in bounded memory, into the split files.
#
# The pass runs in this process with every engine: a history is a slice of a contiguous sequence,
# and a file of fixed row groups has one writer. ``global-time`` writes its rows by user into
# temporary files. The engine sorts these by time, and the pass copies them.
#
# In memory: a batch of users (``splitting.BATCH`` interactions, and the longest sequence of one
# user), an unfinished row group of each split, and 8 bytes per item of the catalogue.


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What a split lost between its source and its file."""

    unsampled: int = 0  # rows before data.sample
    cut_rows: int = 0  # rows whose history was cut to data.history
    cut_items: int = 0  # history items that were cut off

    def plus(self, unsampled: int, cut_R: NDArray[Any]) -> SplitCounts:
        """The counts with further rows added.

        Args:
            unsampled: how many rows there were before any sampling.
            cut_R: history items that each kept row lost.
        """
        return SplitCounts(
            self.unsampled + unsampled,
            self.cut_rows + int((cut_R > 0).sum()),
            self.cut_items + int(cut_R.sum()),
        )

    def facts(self) -> dict[str, int]:
        """For the manifest."""
        return {
            UNSAMPLED: self.unsampled,
            CUT_ROWS: self.cut_rows,
            CUT_ITEMS: self.cut_items,
        }


@dataclass(slots=True)
class SplitStatistics:
    """Counts over all users, made batch by batch."""

    count_I: NDArray[np.int64]  # of each item, its interactions inside training rows
    users: int = 0
    tied_users: int = 0  # who have interactions at one time
    tied_interactions: int = 0
    tied: list[str] = field(default_factory=list)  # ids of the first few of these users
    splits: dict[str, SplitCounts] = field(default_factory=dict)

    def add(self, split_batch: SplitBatch) -> None:
        """Count one more batch of users."""
        log = split_batch.users.log
        self.count_I += count_training_items(log, split_batch.windows["train"], len(self.count_I))
        for name, part in split_batch.windows.items():
            cut_R = split_batch.users.place_N[part.target_R] - (part.target_R - part.start_R)
            counts = self.splits.get(name, SplitCounts())
            self.splits[name] = counts.plus(split_batch.unsampled[name], cut_R)
        self.users += log[USER].n_unique()
        moment = pl.struct(USER, TIMESTAMP, pl.col(POSITION) // FINER)
        tied = log.filter(moment.is_duplicated())[USER_ID]
        ids = tied.unique(maintain_order=True)
        self.tied_users += len(ids)
        self.tied_interactions += len(tied)
        self.tied += ids.head(EXAMPLES - len(self.tied)).to_list()

    def summarize_ties(self) -> Finding:
        """The audit's finding about interactions that tie in time."""
        found = {"count": self.tied_users, "of": self.users, "examples": self.tied}
        return found | {"interactions": self.tied_interactions}


def write_rows(
    log: Path,
    bad: Path | None,
    plan: SplitPlan,
    history: int,
    n_items: int,
    engine: Engine,
    folder: Path,
    fields: Sequence[InteractionField] = (),
) -> SplitStatistics:
    """Write ``train|valid|test.parquet`` into ``folder``.

    Args:
        log: from ``sort_by_user``.
        bad: likewise, of what the rating threshold drops; None where there is none.
        history: longest history, items.
        n_items: size of the catalogue.
        fields: what the rows have of the interactions of their histories.
    """
    users = batch_users(read_batches(log))
    if bad is not None:
        users = attach_badly_rated(users, read_batches(bad))
    statistics = SplitStatistics(np.zeros(n_items, np.int64))
    further = [] if bad is None else [DISLIKED]
    schema = rows_schema([*further, *(HISTORY_COLUMNS[name] for name in fields)])
    if plan.end is None:
        _write_splits(users, plan, history, statistics, folder, schema, fields)
        return statistics
    scratch = log.parent
    ordered = schema.append(pa.field(POSITION, pa.int64()))
    _write_splits(users, plan, history, statistics, scratch, ordered, fields)
    for name in SPLITS:
        file = scratch / split_file(name)
        rows = sort_by_moment(file, engine, file.with_suffix(".by-moment.parquet"))
        with TableFile(folder / split_file(name), schema) as table:
            for batch in read_batches(rows):
                table.append(batch)
    return statistics


def _write_splits(
    users: Iterator[UserBatch],
    plan: SplitPlan,
    history: int,
    statistics: SplitStatistics,
    folder: Path,
    schema: pa.Schema,
    fields: Sequence[InteractionField],
) -> None:
    """All splits at once, rows by user."""
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(TableFile(folder / split_file(name), schema))
            for name in SPLITS
        }
        for split_batch in split_users(users, plan, history):
            statistics.add(split_batch)
            for name, rows in _build_split_rows(split_batch, plan.end, fields).items():
                files[name].append(rows)


def _build_split_rows(
    split_batch: SplitBatch, end: Moment | None, fields: Sequence[InteractionField]
) -> dict[str, pl.DataFrame]:
    users, windows = split_batch.users, split_batch.windows
    rows = {name: build_rows(users.log, part, fields) for name, part in windows.items()}
    if users.bad is None:
        return rows
    known = find_dislikes(users.bad, users.log)
    ends = find_training_ends(users.log, split_batch.held_R, end)
    return add_disliked(rows, windows, known, users.log, ends)


# Rows of a source that comes split: encoded, shortened and counted, in the same order.


_ITEM_TYPE = pl.List(pl.Int32)
_CUT = "cut"  # history items beyond data.history


def collect_items(rows: Mapping[str, pl.DataFrame], listed: pl.Series | None = None) -> pl.Series:
    """Distinct item ids of all rows (in whatever place), and of ``listed``, sorted."""
    parts = [] if listed is None else [listed]
    for frame in rows.values():
        lists = [name for name in (HISTORY, NEGATIVES) if name in frame.columns]
        parts += [frame[TARGET], *(_explode_list(frame, name)[name] for name in lists)]
    return pl.concat([part.rename(ITEM_ID) for part in parts]).unique().sort()


def encode_given_rows(
    rows: Mapping[str, pl.DataFrame], items: pl.DataFrame, section: DataSection, seed: int
) -> tuple[dict[str, pl.DataFrame], dict[str, dict[str, int]], dict[str, SplitCounts]]:
    """Encode the rows of each split, in the order of their file.

    Items outside the catalogue are removed from histories.  A row is dropped if its target is one.
    Then ``history``, ``min_history`` and ``sample`` apply.

    Args:
        rows: USER_ID, HISTORY list[str], TARGET str, TIMESTAMP ms, RATING, for each split; of
            pairs also NEGATIVES list[str] and CHOSEN_FIRST list[bool].
        items: the catalogue.

    Returns:
        The rows of each split with ROW_COLUMNS (and those of pairs); the numbers of dropped rows
        and items, by reason; and of those that ``data.sample`` and ``data.history`` dropped.

    Raises:
        DataError: a split has no row left.
    """
    users = _user_index(rows)
    made: dict[str, pl.DataFrame] = {}
    counts: dict[str, dict[str, int]] = {}
    shortened: dict[str, SplitCounts] = {}
    for name in in_order(rows):
        frame = rows[name]
        made[name], counts[name] = _encode_split(frame, users, items, section)
        if made[name].is_empty():
            raise DataError(
                f'data.split = "given": no {name} row of {len(frame):,} is left with'
                f" data.min_history = {section.min_history} and titled items"
            )
        unsampled = len(made[name])
        made[name] = made[name][draw_sample(unsampled, section, seed, name)]
        shortened[name] = SplitCounts().plus(unsampled, made[name][_CUT].to_numpy())
        made[name] = made[name].drop(_CUT)
    return made, counts, shortened


def hold_out_users(rows: Mapping[str, pl.DataFrame], seed: int) -> dict[str, pl.DataFrame]:
    """Rows of pairs with a tenth of the training users (rounded up) moved to validation.

    The users are drawn with the seed and removed from ``train`` and ``preference``.  Validation
    uses their pairs to align on, or where they have none, those to train on.
    """
    parts = [rows[name] for name in (PREFERENCE, "train") if name in rows]
    users = pl.concat([part.select(USER_ID) for part in parts]).unique().sort(USER_ID)
    held = users[draw_user_order(len(users), seed, "valid")[: -(-len(users) // 10)]]
    theirs = pl.concat([part.join(held, on=USER_ID, how="semi") for part in parts])
    best = theirs.unique((USER_ID, TARGET), keep="first", maintain_order=True)
    kept = {
        name: frame.join(held, on=USER_ID, how="anti", maintain_order="left")
        for name, frame in rows.items()
        if name != "test"
    }
    return {"train": kept.pop("train"), "valid": best, "test": rows["test"], **kept}


def count_pairs(train: pl.DataFrame, n_items: int) -> NDArray[np.int32]:
    """Distinct (user, item) pairs of each item in training rows.

    It is unknown which given rows show the same interaction, so a pair counts once.
    """
    in_history = train.select(USER, pl.col(HISTORY).alias(ITEM)).explode(ITEM).drop_nulls()
    pairs = pl.concat([in_history, train.select(USER, pl.col(TARGET).alias(ITEM))]).unique()
    return np.bincount(pairs[ITEM].to_numpy(), minlength=n_items).astype(np.int32)


def _encode_split(
    frame: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, section: DataSection
) -> tuple[pl.DataFrame, dict[str, int]]:
    index = items.select(ITEM_ID, ITEM)
    rows = frame.with_row_index(ROW)
    histories = _look_up_items(rows, HISTORY, index)
    encoded = (
        rows.drop(HISTORY)
        .join(histories, on=ROW, how="left", maintain_order="left")
        .join(users, on=USER_ID, how="left", maintain_order="left")
        .join(index, left_on=TARGET, right_on=ITEM_ID, how="left", maintain_order="left")
        .with_columns(pl.col(HISTORY).fill_null(pl.lit([], dtype=_ITEM_TYPE)))
        .with_columns(
            pl.col(HISTORY).list.tail(section.history),
            (pl.col(HISTORY).list.len().cast(pl.Int64) - section.history)
            .clip(lower_bound=0)
            .alias(_CUT),
            pl.col(ITEM).alias(TARGET),
        )
    )
    known = encoded.filter(pl.col(TARGET).is_not_null())
    kept = known.filter(pl.col(HISTORY).list.len() >= section.min_history)
    counts = {
        AS_READ: len(frame),
        NO_TARGET: len(encoded) - len(known),
        SHORT_HISTORY: len(known) - len(kept),
        NO_TITLE: len(_explode_list(rows)) - int(histories[HISTORY].list.len().sum()),
    }
    if NEGATIVES not in rows.columns:
        return kept.select(*ROW_COLUMNS, _CUT), counts
    negatives = _look_up_items(rows, NEGATIVES, index)
    pairs = kept.drop(NEGATIVES).join(negatives, on=ROW, how="left", maintain_order="left")
    return pairs.select(*ROW_COLUMNS, NEGATIVES, CHOSEN_FIRST, _CUT), counts


def _look_up_items(rows: pl.DataFrame, column: str, index: pl.DataFrame) -> pl.DataFrame:
    """ROW, and the catalogue indices of ``column``'s ids in order; unknown ones are dropped."""
    flat = _explode_list(rows, column)
    known = flat.join(index, left_on=column, right_on=ITEM_ID, maintain_order="left")
    return known.group_by(ROW, maintain_order=True).agg(pl.col(ITEM).alias(column))


def _explode_list(frame: pl.DataFrame, column: str = HISTORY) -> pl.DataFrame:
    """One row per entry of a list column."""
    return frame.explode(column).drop_nulls(column)


def _user_index(rows: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    ids = pl.concat([frame.select(USER_ID) for frame in rows.values()]).unique().sort(USER_ID)
    return ids.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias(USER))
