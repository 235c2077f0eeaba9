"""What a reader hands on, whatever the raw files were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from llmrec_cli.data.columns import (
    BRAND,
    CHOSEN_FIRST,
    HISTORY,
    ITEM_ID,
    NEGATIVES,
    RATING,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER_ID,
)

Locate = Callable[[str], Path]
Notes = dict[str, Any]

ITEM_SCHEMA: Final[dict[str, pl.DataType]] = {
    ITEM_ID: pl.String(),
    TITLE: pl.String(),
    BRAND: pl.String(),
    TOKENS: pl.List(pl.String),
}
ROW_SCHEMA: Final[dict[str, pl.DataType]] = {
    USER_ID: pl.String(),
    HISTORY: pl.List(pl.String),
    TARGET: pl.String(),
    TIMESTAMP: pl.Int64(),
    RATING: pl.Float64(),
}

PAIR_SCHEMA: Final[dict[str, pl.DataType]] = {
    **ROW_SCHEMA,
    NEGATIVES: pl.List(pl.String),
    CHOSEN_FIRST: pl.List(pl.Boolean),
}


@dataclass(frozen=True)
class Source:
    """One raw source, read.

    Attributes:
        interactions: parquet file of (user_id, item_id, rating or null, timestamp in ms,
            position), in file order; None where the source comes already split.
        items: one row per item_id with metadata (``ITEM_SCHEMA``), in order of first appearance;
            titles are clean, null where unusable.
        rows: split name -> rows with ids (``ROW_SCHEMA``, or ``PAIR_SCHEMA`` where the source
            consists of pairs), in file order; None unless the source comes already split.
        notes: JSON-able counts and decisions for the manifest.
        lists_catalogue: all of ``items`` are the catalogue's, whether a row has them or not (other
            metadata lists a whole shop).
    """

    interactions: Path | None
    items: pl.DataFrame
    rows: dict[str, pl.DataFrame] | None = None
    notes: Notes = field(default_factory=dict)
    lists_catalogue: bool = False
