"""Rows of a source that comes already split: encoded, shortened and counted, never reshuffled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_cli.data.columns import (
    HISTORY,
    ITEM,
    ITEM_ID,
    ROW,
    SPLITS,
    TARGET,
    USER,
    USER_ID,
)
from llmrec_cli.data.split import ROW_COLUMNS, sample
from llmrec_cli.errors import DataError
from llmrec_cli.recipe_data import DataSection

_ITEM_TYPE = pl.List(pl.Int32)


def occurring(rows: Mapping[str, pl.DataFrame], listed: pl.Series | None = None) -> pl.Series:
    """Distinct item ids of all rows, as history or target, and of ``listed``, sorted."""
    parts = [] if listed is None else [listed]
    parts += [part for frame in rows.values() for part in (_flat(frame)[HISTORY], frame[TARGET])]
    return pl.concat([part.rename(ITEM_ID) for part in parts]).unique().sort()


def given_rows(
    rows: Mapping[str, pl.DataFrame], items: pl.DataFrame, section: DataSection, seed: int
) -> tuple[dict[str, pl.DataFrame], dict[str, dict[str, int]]]:
    """Encode the rows of each split, in the order of their file.

    Items outside the catalogue leave histories, and take their row along where they are its
    target; then ``history``, ``min_history`` and ``sample`` apply.

    Args:
        rows: USER_ID, HISTORY list[str], TARGET str, TIMESTAMP ms, RATING, for each of SPLITS.
        items: the catalogue.

    Returns:
        The rows of each split with ROW_COLUMNS, and the counts of what went.

    Raises:
        DataError: a split has no row left.
    """
    users = _user_index(rows)
    made: dict[str, pl.DataFrame] = {}
    counts: dict[str, dict[str, int]] = {}
    for name in SPLITS:
        made[name], counts[name] = _encode(rows[name], users, items, section)
        if made[name].is_empty():
            raise DataError(
                f'data.split = "given": no {name} row of {len(rows[name]):,} is left with'
                f" data.min_history = {section.min_history} and titled items"
            )
        made[name] = made[name][sample(len(made[name]), section, seed, name)]
    return made, counts


def pair_counts(train: pl.DataFrame, n_items: int) -> NDArray[np.int32]:
    """Distinct (user, item) pairs of each item in training rows.

    Given rows do not say which of them show the same interaction, so a pair counts once.
    """
    in_history = train.select(USER, pl.col(HISTORY).alias(ITEM)).explode(ITEM).drop_nulls()
    pairs = pl.concat([in_history, train.select(USER, pl.col(TARGET).alias(ITEM))]).unique()
    return np.bincount(pairs[ITEM].to_numpy(), minlength=n_items).astype(np.int32)


def _encode(
    frame: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, section: DataSection
) -> tuple[pl.DataFrame, dict[str, int]]:
    index = items.select(ITEM_ID, ITEM)
    rows = frame.with_row_index(ROW)
    flat = _flat(rows).join(index, left_on=HISTORY, right_on=ITEM_ID, maintain_order="left")
    histories = flat.group_by(ROW, maintain_order=True).agg(pl.col(ITEM).alias(HISTORY))
    encoded = (
        rows.drop(HISTORY)
        .join(histories, on=ROW, how="left", maintain_order="left")
        .join(users, on=USER_ID, how="left", maintain_order="left")
        .join(index, left_on=TARGET, right_on=ITEM_ID, how="left", maintain_order="left")
        .with_columns(
            pl.col(HISTORY).fill_null(pl.lit([], dtype=_ITEM_TYPE)).list.tail(section.history),
            pl.col(ITEM).alias(TARGET),
        )
    )
    known = encoded.filter(pl.col(TARGET).is_not_null())
    kept = known.filter(pl.col(HISTORY).list.len() >= section.min_history)
    counts = {
        "rows as read": len(frame),
        "rows whose target has no usable title": len(encoded) - len(known),
        "rows with a history below data.min_history": len(known) - len(kept),
        "history items without a usable title": len(_flat(rows)) - len(flat),
    }
    return kept.select(ROW_COLUMNS), counts


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per history item."""
    return frame.explode(HISTORY).drop_nulls(HISTORY)


def _user_index(rows: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    ids = pl.concat([frame.select(USER_ID) for frame in rows.values()]).unique().sort(USER_ID)
    return ids.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias(USER))
