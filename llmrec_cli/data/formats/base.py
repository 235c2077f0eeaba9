"""The output of a reader: a file of interactions, items with names, counts for the manifest."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.data.formats.checks import (
    Checked,
    Fields,
    Interactions,
    check_interactions,
    count_missing_words,
    is_torn,
    torn,
)
from llmrec_cli.data.formats.parsing import STRICT, BadLines, make_fault, read_object, show_text
from llmrec_cli.data.formats.texts import clean_field, clean_title, is_blank
from llmrec_cli.data.schema import (
    BRAND,
    CATEGORY,
    CHOSEN_FIRST,
    DESCRIPTION,
    FINER,
    HISTORY,
    ITEM_FIELDS,
    ITEM_ID,
    NEGATIVES,
    POSITION,
    PRICE,
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
FIELD: Final = pl.String()  # of ``data.fields``, behind these where the recipe asks for them
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


def item_schema(fields: Sequence[str]) -> dict[str, pl.DataType]:
    """Columns of the items of a source that is asked for ``fields`` (``data.fields``)."""
    return ITEM_SCHEMA | {name: FIELD for name in ITEM_FIELDS if name in {*fields} - {BRAND}}


@dataclass(frozen=True)
class Source:
    """One raw source, read.

    Attributes:
        interactions: parquet file of (user_id, item_id, rating or null, timestamp in ms,
            position), in file order; None where the source comes already split.
        items: one row per item_id with metadata (``item_schema``), in order of first appearance;
            titles and fields are clean, null where unusable.
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


# Item metadata collected into one row per item.


Values = Mapping[str, Sequence[object]]
"""The raw values of ``data.fields``, by field: one of each row, in whatever form the file has."""


@dataclass
class _FieldCount:
    """What is known of a field over all rows."""

    absent: int = 0
    unusable: int = 0
    example: str = ""  # of an unusable value

    def notes(self) -> Notes:
        found: Notes = {"rows_without": self.absent, "rows_with_unusable": self.unusable}
        return found | ({"unusable_example": self.example} if self.unusable else {})


@dataclass
class ItemRows:
    """Metadata rows as they come; ``frame`` keeps one per item_id.

    Attributes:
        fields: of ``data.fields``; only these are kept, beside title and brand.
    """

    fields: tuple[str, ...] = ()
    frames: list[pl.DataFrame] = field(default_factory=list)
    without_id: int = 0
    missing: int = 0
    unusable: int = 0
    unreadable_details: int = 0  # of metadata of 2023, where the brand stands in them
    counts: dict[str, _FieldCount] = field(default_factory=dict)

    def add(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str | None],
        brands: Sequence[str | None],
        values: Values = MappingProxyType({}),
    ) -> None:
        """Add rows with raw titles, brands and values; all are cleaned and counted here.

        Args:
            values: of each of ``fields`` but the brand.
        """
        cleaned = [clean_title(title) for title in titles]
        blank = sum(not (title or "").strip() for title in titles)
        self.missing += blank
        self.unusable += cleaned.count(None) - blank
        columns = {ITEM_ID: item_ids, TITLE: cleaned, BRAND: [clean_title(b) for b in brands]}
        if BRAND in self.fields:
            self._count(BRAND, brands, columns[BRAND])
        for name in self._kept:
            columns[name] = [clean_field(name, value) for value in values[name]]
            self._count(name, values[name], columns[name])
        self.frames.append(pl.DataFrame(columns, schema=self._schema))

    def frame(self) -> pl.DataFrame:
        """One row per item_id in order of first appearance: the first usable one of each value."""
        schema = self._schema
        rows = pl.concat(self.frames) if self.frames else pl.DataFrame(schema=schema)
        first = [pl.col(name).drop_nulls().first() for name in schema if name != ITEM_ID]
        items = rows.group_by(ITEM_ID, maintain_order=True).agg(first)
        tokens = pl.lit(None, ITEM_SCHEMA[TOKENS]).alias(TOKENS)
        return items.with_columns(tokens).select(list(item_schema(self.fields)))

    def notes(self, items: pl.DataFrame) -> Notes:
        """Counts for the manifest."""
        rows = sum(frame.height for frame in self.frames)
        unreadable = self.unreadable_details
        fields = {name: self.counts[name].notes() for name in ITEM_FIELDS if name in self.counts}
        return {
            "rows": rows + self.without_id,
            "rows_without_id": self.without_id,
            "rows_repeating_an_id": rows - items.height,
            "rows_without_title": self.missing,
            "rows_with_unusable_title": self.unusable,
            "items": items.height,
            "items_with_title": items.height - items[TITLE].null_count(),
            **({"rows_with_unreadable_details": unreadable} if unreadable else {}),
            **({"fields": fields} if fields else {}),
        }

    @property
    def _kept(self) -> list[str]:
        """Columns beside the title and the brand, which is always kept."""
        return [name for name in ITEM_FIELDS if name in {*self.fields} - {BRAND}]

    @property
    def _schema(self) -> dict[str, pl.DataType]:
        return {name: pl.String() for name in (ITEM_ID, TITLE, BRAND, *self._kept)}

    def _count(self, name: str, raw: Sequence[object], cleaned: Sequence[str | None]) -> None:
        """Add a batch of a field to its counts."""
        counts = self.counts.setdefault(name, _FieldCount())
        for value, usable in zip(raw, cleaned, strict=True):
            if usable is None and is_blank(value):
                counts.absent += 1
            elif usable is None:
                counts.example = counts.example or show_text(value)
                counts.unusable += 1


def gather_values(rows: Sequence[Mapping[str, object]], fields: Sequence[str]) -> Values:
    """The values of ``fields`` but the brand, by field.

    Args:
        rows: the values of each row, by field.
    """
    return {name: [row[name] for row in rows] for name in fields if name != BRAND}


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


def no_items(fields: Sequence[str] = ()) -> pl.DataFrame:
    """The items of a source without metadata."""
    return pl.DataFrame(schema=item_schema(fields))


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


_NAME_KEYS: Final = ("categories", CATEGORY, PRICE, DESCRIPTION)  # of fields, in the same file
_DescribedName: Final[Any] = msgspec.defstruct(  # they may be of any kind
    "DescribedName", [(name, Any, None) for name in _NAME_KEYS], bases=(Name,)
)


def read_names(
    files: tuple[str, ...], locate: Locate, fields: tuple[str, ...] = ()
) -> tuple[pl.DataFrame, Notes]:
    """Read ``{"id": "title", ...}`` or ``{"id": {"title": ..., "brand": ...}, ...}`` files.

    Args:
        fields: ``data.fields``; other keys of an item are its fields.

    Returns:
        One row per item in order of first appearance, and counts.

    Raises:
        DataError: not such an object.
    """
    if not files:
        return no_items(fields), {}
    items, kind = ItemRows(fields), _DescribedName if fields else Name
    named: Any = dict[str, kind | str | None]  # type: ignore[valid-type]  # chosen above
    for name in files:
        found: dict[str, Any] = read_object(
            locate(name), named, "one JSON object: item id -> title"
        )
        names = [kind(n) if isinstance(n, str) or n is None else n for n in found.values()]
        items.add(
            list(found),
            [n.title for n in names],
            [n.brand for n in names],
            gather_values([_list_values(n) for n in names] if fields else [], fields),
        )
    frame = items.frame()
    return frame, {"files": list(files), **items.notes(frame)}


def _list_values(name: Any) -> dict[str, object]:
    """The fields of a ``_DescribedName`` beside the brand, as the file has them."""
    category = name.categories if name.category is None else name.category
    return {CATEGORY: category, PRICE: name.price, DESCRIPTION: name.description}
