"""The output of a reader: a file of interactions, items with names, counts for the manifest."""

from __future__ import annotations

import html
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.data.formats.checks import (
    MISSING_WORDS,
    Checked,
    Fields,
    Interactions,
    check_interactions,
    count_missing_words,
    is_torn,
    torn,
)
from llmrec_cli.data.formats.parsing import STRICT, BadLines, make_fault, read_object
from llmrec_cli.data.schema import (
    BRAND,
    CHOSEN_FIRST,
    FINER,
    HISTORY,
    ITEM_ID,
    NEGATIVES,
    POSITION,
    RATING,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER_ID,
)
from llmrec_cli.errors import MachineError

# The output of a reader, for every format.


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


# Titles as people read them: entities decoded once, white space collapsed, fragments refused.


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_INVISIBLE: Final = " \u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero-width, and the soft hyphen
_MARKUP: Final = re.compile(r"<[A-Za-z/!][^<>]*(?:>|$)")


def clean_title(raw: str | None) -> str | None:
    """Make a raw title presentable, or return None where nothing usable is left.

    HTML entities are decoded once (``&amp;amp;`` becomes ``&amp;``), control characters and lone
    surrogates count as white space, and white space is collapsed and trimmed, zero-width signs at
    the ends too.  Unusable: absent, empty, nothing but markup (a lone ``<span ...``), a page script
    (Amazon 2018 has titles that are JavaScript; they mention ``getTime``), or a word that tables
    have for no value, such as ``NULL``, ``N/A`` or ``nan``, spelt exactly so.
    """
    if raw is None:
        return None
    text = html.unescape(raw) if "&" in raw else raw
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    text = " ".join(text.split())
    if text and not text.isprintable():
        text = text.strip(_INVISIBLE)
    if not text or text in MISSING_WORDS or "getTime()" in text:
        return None
    if "<" in text and not _MARKUP.sub("", text).strip():
        return None
    return text


# Item metadata collected into one row per item.


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


# Interactions on their way to parquet: checked, in milliseconds, in bounded memory.


SCHEMA: Final = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (RATING, pa.float64()),
        (TIMESTAMP, pa.int64()),
        (POSITION, pa.int64()),
    ]
)
ROW_GROUP: Final = 1 << 16  # rows


class Sink:
    """Context manager around the parquet file; it appears under its name only when complete."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for writing, under a temporary name beside it."""
        self.path = path
        self.count = 0
        self._part = path.with_name(path.name + ".part")
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        try:
            self._writer = pq.ParquetWriter(
                self._part, SCHEMA, compression="lz4", use_dictionary=False
            )
        except OSError as error:
            raise _write_error(path, error) from error

    def __enter__(self) -> Sink:
        """Nothing more to do: the file is open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish the file, or leave nothing behind."""
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                os.replace(self._part, self.path)
        except OSError as trouble:
            if kind is None:
                raise _write_error(self.path, trouble) from trouble
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, batch: Checked) -> None:
        """Append interactions; positions continue over all files, behind what is finer than ms."""
        rows = len(batch.users)
        position_N = np.arange(self.count, self.count + rows)
        time_N = position_N if batch.millisecond_N is None else batch.millisecond_N
        if batch.finer_N is not None:
            position_N = position_N + batch.finer_N * FINER
        if batch.rating_N is None:
            rating = pa.nulls(rows, pa.float64())
        else:  # NaN would count as the highest of all ratings
            rating = pa.array(batch.rating_N, from_pandas=True)
        columns = [batch.users, batch.items, rating, time_N, position_N]
        arrays = [pa.array(c, type_) for c, type_ in zip(columns, SCHEMA.types, strict=True)]
        self._pending.append(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self.count += rows
        self._pending_rows += rows
        if self._pending_rows >= ROW_GROUP:
            try:
                self._flush()
            except OSError as error:
                raise _write_error(self.path, error) from error

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
        self._pending, self._pending_rows = [], 0


def _write_error(path: Path, error: OSError) -> MachineError:
    return MachineError(f"{path}: cannot be written: {error.strerror or error}")


def write_interactions(
    path: Path,
    batches: Iterable[Interactions],
    fields: Fields,
    sink: Sink,
    calendar: bool = True,
    bad: BadLines = STRICT,
    may_be_empty: bool = False,
) -> Notes:
    """Check one file's interactions, bring their times to milliseconds and write them.

    Args:
        path: the file, for messages.
        batches: its interactions, in order.
        fields: what the file calls its columns, and the scale of its ratings.
        sink: where they go.
        calendar: timestamps are dates; False takes them as they are (an order, not a time).
        bad: what becomes of interactions that are wrong.
        may_be_empty: the file is a part of a folder, and other parts have interactions.

    Returns:
        Counts, the timestamp unit, of ratings without a promised scale what was found, and how many
        interactions have an id that tables write for no value.

    Raises:
        DataError: as ``check_interactions``, or no interactions at all.
    """
    clock, before, ratings = None, sink.count, _Ratings()
    words: dict[str, Counter[str]] = {fields.user: Counter(), fields.item: Counter()}
    for raw in batches:
        batch = raw if calendar else replace(raw, timestamps=None)
        checked = check_interactions(path, batch, fields, clock, bad)
        if not calendar:
            checked = replace(checked, millisecond_N=np.asarray(raw.timestamps, np.int64))
        clock = checked.clock
        ratings.add(checked)
        words[fields.user] += count_missing_words(checked.users)
        words[fields.item] += count_missing_words(checked.items)
        sink.write(checked)
    if sink.count == before:
        if may_be_empty:
            return {"interactions": 0}
        raise make_fault(path, 1, "the file has no interactions")
    notes: Notes = {
        "interactions": sink.count - before,
        "timestamp": clock.name if clock else "order in the file",
    }
    if fields.scale is None and ratings.seen:
        notes["ratings"] = ratings.notes()
    return notes | note_missing_words(words)


def note_missing_words(words: Mapping[str, Counter[str]]) -> Notes:
    """For the manifest: column of ids -> word for no value -> rows; nothing where there is none."""
    found = {name: dict(sorted(counts.items())) for name, counts in words.items() if counts}
    return {"ids_that_may_be_missing": found} if found else {}


@dataclass
class _Ratings:
    """What is known of the ratings of a file."""

    seen: bool = False  # whether there is a column of them
    lowest: float = math.inf
    highest: float = -math.inf
    absent: int = 0

    def add(self, batch: Checked) -> None:
        if batch.rating_N is None:
            return
        self.seen = True
        rated_N = batch.rating_N[~np.isnan(batch.rating_N)]
        self.absent += len(batch.rating_N) - len(rated_N)
        self.lowest = float(rated_N.min(initial=self.lowest))
        self.highest = float(rated_N.max(initial=self.highest))

    def notes(self) -> Notes:
        rated = self.lowest <= self.highest
        return {
            "lowest": self.lowest if rated else None,
            "highest": self.highest if rated else None,
            "absent": self.absent,
        }


# Item names in one JSON object, as MSL (id -> title) and LC-Rec (id -> fields) keep them.


class Name(msgspec.Struct):
    """What LC-Rec's ``*.item.json`` knows about an item, as far as it matters here."""

    title: str | None = None
    brand: str | None = None


def read_names(files: tuple[str, ...], locate: Locate) -> tuple[pl.DataFrame, Notes]:
    """Read ``{"id": "title", ...}`` or ``{"id": {"title": ..., "brand": ...}, ...}`` files.

    Returns:
        One row per item in order of first appearance, and counts.

    Raises:
        DataError: not such an object.
    """
    if not files:
        return no_items(), {}
    items = ItemRows()
    for name in files:
        found: dict[str, Name | str | None] = read_object(
            locate(name), dict[str, Name | str | None], "one JSON object: item id -> title"
        )
        names = [Name(n) if isinstance(n, str) or n is None else n for n in found.values()]
        items.add(list(found), [n.title for n in names], [n.brand for n in names])
    frame = items.frame()
    return frame, {"files": list(files), **items.notes(frame)}
