"""Item metadata collected into one row per item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from llmrec_cli.data.columns import BRAND, ITEM_ID, TITLE, TOKENS
from llmrec_cli.data.readers.block import BadLines
from llmrec_cli.data.readers.checks import is_torn, torn
from llmrec_cli.data.readers.source import ITEM_SCHEMA, Notes
from llmrec_cli.data.readers.titles import clean_title

_TEXTS = {name: pl.String() for name in (ITEM_ID, TITLE, BRAND)}


@dataclass
class ItemRows:
    """Metadata rows as they come; ``frame`` keeps one per item_id."""

    frames: list[pl.DataFrame] = field(default_factory=list)
    without_id: int = 0
    missing: int = 0
    unusable: int = 0
    unreadable_details: int = 0  # of metadata of 2023, where the brand stands in them

    def add(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str | None],
        brands: Sequence[str | None],
    ) -> None:
        """Add rows with raw titles and brands; both are cleaned and counted here."""
        cleaned = [clean_title(title) for title in titles]
        blank = sum(not (title or "").strip() for title in titles)
        self.missing += blank
        self.unusable += cleaned.count(None) - blank
        columns = {ITEM_ID: item_ids, TITLE: cleaned, BRAND: [clean_title(b) for b in brands]}
        self.frames.append(pl.DataFrame(columns, schema=_TEXTS))

    def frame(self) -> pl.DataFrame:
        """One row per item_id in order of first appearance: its first usable title and brand."""
        rows = pl.concat(self.frames) if self.frames else pl.DataFrame(schema=_TEXTS)
        first = [pl.col(name).drop_nulls().first() for name in (TITLE, BRAND)]
        items = rows.group_by(ITEM_ID, maintain_order=True).agg(first)
        return items.with_columns(pl.lit(None, ITEM_SCHEMA[TOKENS]).alias(TOKENS))

    def notes(self, items: pl.DataFrame) -> Notes:
        """Counts for the manifest."""
        rows = sum(frame.height for frame in self.frames)
        unreadable = self.unreadable_details
        return {
            "rows": rows + self.without_id,
            "rows_without_id": self.without_id,
            "rows_repeating_an_id": rows - items.height,
            "rows_without_title": self.missing,
            "rows_with_unusable_title": self.unusable,
            "items": items.height,
            "items_with_title": items.height - items[TITLE].null_count(),
            **({"rows_with_unreadable_details": unreadable} if unreadable else {}),
        }


def with_id(
    ids: Sequence[str | None], name: str, path: Path, line_of: Callable[[int], int], bad: BadLines
) -> list[int]:
    """Indices of the rows that have an id.

    Args:
        ids: of consecutive rows of a file.
        name: of the field, for messages.
        path, line_of: the file, and its line of an index.
        bad: what becomes of an id that is not valid Unicode.
    """
    found = []
    for index, item_id in enumerate(ids):
        if item_id and is_torn(item_id):
            bad.skip(torn(path, line_of(index), name, item_id))
        elif item_id:
            found.append(index)
    return found


def no_items() -> pl.DataFrame:
    """The items of a source without metadata."""
    return pl.DataFrame(schema=ITEM_SCHEMA)
