"""Amazon reviews of three generations: reviews to interactions, metadata to items.

2014 (He & McAuley 2016): reviews are JSON lines, metadata lines are Python literals.  2018 (Ni et
al. 2019): JSON lines, fields named as in 2014.  2023 (Hou et al. 2024): JSON lines joined on
``parent_asin``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import polars as pl

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.base import (
    ItemRows,
    Locate,
    Notes,
    Sink,
    Source,
    gather_values,
    no_items,
    with_id,
    write_interactions,
)
from llmrec_cli.data.formats.checks import Fields, Interactions
from llmrec_cli.data.formats.parsing import (
    STRICT,
    BadLines,
    RecordBatch,
    Shape,
    make_fault,
    parse_object,
    read_records,
    recognize_other,
)
from llmrec_cli.data.formats.texts import in_dollars, is_blank
from llmrec_cli.data.schema import CATEGORY, DESCRIPTION, PRICE

INTERACTIONS_FILE = "interactions.parquet"


class ReviewLine(Protocol):
    """The fields of a review that interactions need."""

    user_id: str
    item_id: str
    rating: float
    timestamp: int | float


class ItemLine(Protocol):
    """The fields of a metadata line that items need."""

    item_id: str | None
    title: str | None
    reviewer: object  # present only where a review file was given as metadata

    @property
    def maker(self) -> str | None:
        """The brand, wherever the generation keeps it."""

    @property
    def unreadable(self) -> bool:
        """Whether a brand may stand where it cannot be read."""


@dataclass(frozen=True)
class Generation:
    """One generation of the Amazon data sets."""

    reviews: Shape[Any]  # of ReviewLine
    metadata: Shape[Any]  # of ItemLine
    fields: Fields
    categories: tuple[str, ...]  # keys of metadata, the first that has something counts

    @property
    def described_shape(self) -> Shape[Any]:
        """The shape of metadata whose lines are read with the fields of their items.

        Only asked for: the values may be of any kind, and reading them takes time.
        """
        names = (*self.categories, PRICE, DESCRIPTION)
        record = msgspec.defstruct(
            "DescribedItem", [(name, Any, None) for name in names], bases=(self.metadata.record,)
        )
        return replace(self.metadata, record=record)

    def values(self, row: Any) -> dict[str, object]:
        """The fields of an item beside its brand, as the file has them.

        Args:
            row: a record of ``described``.
        """
        found = [getattr(row, name) for name in self.categories]
        category = next((value for value in found if not is_blank(value)), None)
        return {
            CATEGORY: category,
            PRICE: in_dollars(row.price),
            DESCRIPTION: row.description,
        }


class Review2014(
    msgspec.Struct,
    gc=False,
    rename={
        "user_id": "reviewerID",
        "item_id": "asin",
        "rating": "overall",
        "timestamp": "unixReviewTime",
    },
):
    """A review of 2014 or 2018; ``unixReviewTime`` is in seconds."""

    user_id: str
    item_id: str
    rating: float
    timestamp: int | float


class Item2014(msgspec.Struct, gc=False, rename={"item_id": "asin", "reviewer": "reviewerID"}):
    """A metadata line of 2014 or 2018."""

    item_id: str | None = None
    title: str | None = None
    brand: str | None = None
    reviewer: str | None = None

    @property
    def maker(self) -> str | None:
        """The brand."""
        return self.brand

    @property
    def unreadable(self) -> bool:
        """Never: the brand is a field of its own."""
        return False


class Review2023(msgspec.Struct, gc=False, rename={"item_id": "parent_asin"}):
    """A review of 2023; ``timestamp`` is in milliseconds.  Its ``title`` is its own headline."""

    user_id: str
    item_id: str
    rating: float
    timestamp: int | float


class Details(msgspec.Struct, gc=False, rename={"brand": "Brand"}):
    """The one field of a product's details that matters here."""

    brand: str | None = None


class Item2023(msgspec.Struct, gc=False, rename={"item_id": "parent_asin", "reviewer": "user_id"}):
    """A metadata line of 2023."""

    item_id: str | None = None
    title: str | None = None
    store: str | None = None
    details: Details | str | None = None
    reviewer: str | None = None

    @property
    def maker(self) -> str | None:
        """The brand that the details state, or else the store."""
        details = _parse_details(self.details) if isinstance(self.details, str) else self.details
        return (details.brand if details else None) or self.store

    @property
    def unreadable(self) -> bool:
        """Whether the details are a text that is no JSON object."""
        return isinstance(self.details, str) and _parse_details(self.details) is None


def _parse_details(details: str) -> Details | None:
    """Details that stand in a string, as tables keep them; nothing in it is no details."""
    try:
        return msgspec.json.decode(details.strip() or "{}", type=Details)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return None


FIELDS_2014: Final = Fields(
    user="reviewerID", item="asin", rating="overall", timestamp="unixReviewTime"
)
FIELDS_2023: Final = Fields(
    user="user_id", item="parent_asin", rating="rating", timestamp="timestamp"
)
GENERATIONS: Final[dict[str, Generation]] = {
    "2014": Generation(  # either file may be JSON or Python literals, line by line
        reviews=Shape(Review2014, "an amazon2014 review", literals=True),
        metadata=Shape(Item2014, "amazon2014 metadata", literals=True),
        fields=FIELDS_2014,
        categories=("categories",),  # several paths
    ),
    "2018": Generation(
        reviews=Shape(Review2014, "an amazon2018 review"),
        metadata=Shape(Item2014, "amazon2018 metadata"),
        fields=FIELDS_2014,
        categories=("category", "main_cat"),
    ),
    "2023": Generation(  # joined on parent_asin, never on asin
        reviews=Shape(Review2023, "an amazon2023 review"),
        metadata=Shape(Item2023, "amazon2023 metadata"),
        fields=FIELDS_2023,
        categories=("categories", "main_category"),
    ),
}


def generation_of(section: DataSection) -> Generation:
    """The generation in a format's name: ``amazon2014``, ``ratings2023``."""
    return GENERATIONS[section.format[-4:]]


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read raw review and metadata files of one generation.

    Raises:
        DataError: anything wrong in a file, with file and line.
    """
    form = generation_of(section)
    files: Notes = {}
    bad = bad_lines(section)
    with Sink(scratch / INTERACTIONS_FILE) as sink:
        for name in section.reviews:
            path = locate(name)
            reviews = _read_reviews(path, form.reviews, bad)
            files[name] = write_interactions(path, reviews, form.fields, sink, bad=bad)
    items, notes = read_items(section, locate, form, bad)
    return Source(sink.path, items, notes={"reviews": files, "metadata": notes, **bad.notes()})


def bad_lines(section: DataSection) -> BadLines:
    """What the recipe wants of bad lines, counted over all files of a source."""
    if section.on_bad_line == "skip":
        return BadLines(section.bad_line_limit)
    return BadLines(advice='; fix the line or set data.on_bad_line = "skip"')


def _read_reviews(path: Path, shape: Shape[Any], bad: BadLines) -> Iterator[Interactions]:
    for batch in read_records(path, shape, bad):
        rows: list[ReviewLine] = batch.rows
        yield Interactions(
            users=[row.user_id for row in rows],
            items=[row.item_id for row in rows],
            ratings=[row.rating for row in rows],
            timestamps=[row.timestamp for row in rows],
            line_of=batch.block.line_of,
        )


def read_items(
    section: DataSection, locate: Locate, form: Generation, bad: BadLines = STRICT
) -> tuple[pl.DataFrame, Notes]:
    """Read the metadata files into one row per item, with the fields asked for, and counts.

    Raises:
        DataError: a line that is no metadata of this generation, or a file without any.
    """
    if not section.metadata:
        return no_items(section.item_fields), {}
    items = ItemRows(section.item_fields)
    shape = form.described_shape if section.item_fields else form.metadata
    for name in section.metadata:
        before = sum(frame.height for frame in items.frames) + items.without_id
        for batch in read_records(locate(name), shape, bad):
            _collect_items(batch, form, items, bad)
        if sum(frame.height for frame in items.frames) + items.without_id == before:
            raise make_fault(locate(name), 1, f"the file has no item; expected {shape.what}")
    frame = items.frame()
    return frame, {"files": list(section.metadata), **items.notes(frame)}


def _collect_items(
    batch: RecordBatch[Any], form: Generation, items: ItemRows, bad: BadLines
) -> None:
    rows: list[ItemLine] = batch.rows
    shape = form.metadata
    odd = [i for i, row in enumerate(rows) if row.item_id is None or row.reviewer is not None]
    if odd:
        _require_metadata(batch, odd, shape)
    block, ids = batch.block, [row.item_id for row in rows]
    names = shape.record.__struct_fields__, shape.record.__struct_encode_fields__
    name = dict(zip(*names, strict=True))["item_id"]
    known = [rows[index] for index in with_id(ids, name, block.path, block.line_of, bad)]
    items.without_id += sum(not item_id for item_id in ids)
    items.unreadable_details += sum(row.unreadable for row in known)
    items.add(
        [row.item_id or "" for row in known],
        [row.title for row in known],
        [row.maker for row in known],
        gather_values([form.values(row) for row in known] if items.fields else [], items.fields),
    )


def _require_metadata(batch: RecordBatch[Any], odd: Sequence[int], shape: Shape[Any]) -> None:
    """A line without an id is merely counted, unless it shows that the whole file is another."""
    lines = list(batch.block.lines())
    for number, line in (lines[index] for index in odd):
        fields = parse_object(batch.block.path, number, line, shape.what, shape.literals)
        other = recognize_other(fields, shape.what)
        if other:
            raise make_fault(batch.block.path, number, f"{other}; expected {shape.what}")
