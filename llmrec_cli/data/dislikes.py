"""What each user disliked: catalogue items that ``data.min_rating`` drops, with nothing to come.

Everything is asked of a few whole users at a time; the engine has ordered what they rated badly.

A row may know what was rated badly before a moment of its user's time, never after it:

valid, test:  before the row's own target
train:        before the user's first valid or test target, whatever ``data.sample`` keeps; a user
              who is not evaluated has no such moment; with ``global-time``, before the first of all

An item that the log has too, up to that moment, is not disliked.  Moments are (TIMESTAMP, POSITION)
as everywhere: ties in time break by input order.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from llmrec_cli.data.columns import DISLIKED, ITEM, ROW, USER, USER_ID
from llmrec_cli.data.filters import MOMENT
from llmrec_cli.data.order import Ints
from llmrec_cli.data.split import Moment
from llmrec_cli.data.windows import Windows

_BAD, _GOOD = "bad_", "good_"  # whose moment a column has


def find_dislikes(bad: pl.DataFrame, log: pl.DataFrame) -> pl.DataFrame:
    """When each user first rated which catalogue item badly, and first had it in the log.

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
    """USER and the moment at which what training may know ends; of users without one, no row.

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
    """For each user and moment (null: the end of time) what he or she disliked by then.

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
