"""Rows of a source that comes already split: encoded, shortened and counted, never reshuffled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_cli.data.columns import (
    AS_READ,
    CHOSEN_FIRST,
    HISTORY,
    ITEM,
    ITEM_ID,
    NEGATIVES,
    NO_TARGET,
    NO_TITLE,
    PREFERENCE,
    ROW,
    SHORT_HISTORY,
    TARGET,
    USER,
    USER_ID,
    in_order,
)
from llmrec_cli.data.rows import SplitCounts
from llmrec_cli.data.split import draw_order, draw_sample
from llmrec_cli.data.windows import ROW_COLUMNS
from llmrec_cli.errors import DataError
from llmrec_cli.recipe.data import DataSection

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

    Items outside the catalogue leave histories, and take their row along where they are its
    target; then ``history``, ``min_history`` and ``sample`` apply.

    Args:
        rows: USER_ID, HISTORY list[str], TARGET str, TIMESTAMP ms, RATING, for each split; of
            pairs also NEGATIVES list[str] and CHOSEN_FIRST list[bool].
        items: the catalogue.

    Returns:
        The rows of each split with ROW_COLUMNS (and those of pairs); the rows and items that went,
        by reason; and what ``data.sample`` and ``data.history`` took.

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

    Which ones is drawn with the seed.  They leave ``train`` and ``preference``; their pairs to
    align on are validated on, or where they have none, those to train on.
    """
    parts = [rows[name] for name in (PREFERENCE, "train") if name in rows]
    users = pl.concat([part.select(USER_ID) for part in parts]).unique().sort(USER_ID)
    held = users[draw_order(len(users), seed, "valid")[: -(-len(users) // 10)]]
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

    Given rows do not say which of them show the same interaction, so a pair counts once.
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
    """ROW, and the catalogue indices of ``column``'s ids in their order; unknown ones leave."""
    flat = _explode_list(rows, column)
    known = flat.join(index, left_on=column, right_on=ITEM_ID, maintain_order="left")
    return known.group_by(ROW, maintain_order=True).agg(pl.col(ITEM).alias(column))


def _explode_list(frame: pl.DataFrame, column: str = HISTORY) -> pl.DataFrame:
    """One row per entry of a list column."""
    return frame.explode(column).drop_nulls(column)


def _user_index(rows: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    ids = pl.concat([frame.select(USER_ID) for frame in rows.values()]).unique().sort(USER_ID)
    return ids.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias(USER))
