"""``llmrec sample``: synthetic data as raw Amazon files, with the defects of real files.

Titles with entities, stray spaces, markup fragments or none at all; items without metadata; tied
times; optional keys that come and go; ids that look like numbers; ``asin`` that differs from
``parent_asin``.  Records are plain dictionaries in the key order of the genuine files.
"""

from __future__ import annotations

import gzip
import html
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from llmrec_cli.sources import world as wordlists
from llmrec_cli.sources.oracle import build_histories, score_oracle, score_popularity
from llmrec_cli.sources.world import (
    Item,
    Purchase,
    Stream,
    World,
    build_world,
    draw_code,
    draw_purchases,
)
from llmrec_cli.utils.files import translate_os_errors, write_atomically

SampleFormat = Literal["2014", "2018", "2023"]
Record = dict[str, Any]

ORACLE_FILE: Final = "oracle.json"
_NOTE: Final = (
    "Synthetic data. 'oracle' ranks the whole catalogue by the generator's true next-item "
    "probabilities given the history, on the leave-one-out test targets after de-duplication "
    "(first), untitled items dropped and iterated 5-core; 'popularity' ranks by training counts."
)
CATEGORY: Final = "Synthetic_Toys"  # the name says that nothing in the files is genuine
_MARKUP: Final = ('<span class="a-size-medium', "<span ", '<div id="fallback')


@dataclass(frozen=True)
class SampleReport:
    """What was written."""

    reviews: Path
    metadata: Path
    oracle_file: Path
    counts: dict[str, int]  # review lines, users and items written and after the 5-core


def write_sample(
    out: Path, *, seed: int, users: int, items: int, format: SampleFormat
) -> SampleReport:
    """Write reviews, metadata and ``oracle.json`` into the folder ``out``.

    The files are a pure function of the arguments: same bytes on every run and machine.  Files of
    the same names are replaced.

    Raises:
        DataError: fewer than 40 items, no users, or a negative seed.
        MachineError: the folder cannot be written.
    """
    layout = FORMATS[format]
    world = build_world(seed, items)
    purchases = draw_purchases(world, seed, users)
    sequences = build_histories(world, purchases)
    report = SampleReport(
        reviews=out / layout.reviews,
        metadata=out / layout.metadata,
        oracle_file=out / ORACLE_FILE,
        counts={
            "reviews": len(purchases),
            "users": users,
            "items": items,
            "core_users": len(sequences),
            "core_items": len({item for sequence in sequences for item in sequence}),
            "core_interactions": sum(map(len, sequences)),
        },
    )
    scores = {
        "note": _NOTE,
        "arguments": {"seed": seed, "users": users, "items": items, "format": format},
        "counts": report.counts,
        "oracle": score_oracle(world, sequences),
        "popularity": score_popularity(world, sequences),
    }
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomically(report.reviews, _compress(format_reviews(world, purchases, seed, layout)))
    write_atomically(report.metadata, _compress(format_metadata(world, seed, layout)))
    write_atomically(report.oracle_file, (json.dumps(scores, indent=2) + "\n").encode())
    return report


def _compress(lines: Iterable[str]) -> bytes:
    """Gzip without a name and a time in its header, so that equal lines give equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as packed:
        for line in lines:
            packed.write(line.encode())
    return buffer.getvalue()


@dataclass(frozen=True)
class RawFormat:
    """File names and record layouts of one generation of the Amazon data."""

    reviews: str
    metadata: str
    epoch: datetime  # first day of the shop, UTC
    review: Callable[[Purchase, Shopper, Product, datetime, Stream], Record]
    product: Callable[[Product, Stream], Record]
    literal: bool = False  # metadata lines are Python literals, not JSON


@dataclass(frozen=True)
class Shopper:
    """A user as the files show one."""

    user_id: str
    name: str | None


@dataclass(frozen=True)
class Product:
    """An item as the files show one."""

    item: Item
    raw_title: str | None
    related: tuple[str, ...]  # ids of the next volume and the complement
    price: float
    variant: str  # an asin beside the parent's


def format_reviews(
    world: World, purchases: Sequence[Purchase], seed: int, layout: RawFormat
) -> Iterator[str]:
    """JSON lines of the review file, in the order of ``purchases``."""
    stream = Stream(seed, purpose=2)
    users = 1 + max(purchase.user for purchase in purchases)
    shoppers = [_make_shopper(stream, layout) for _ in range(users)]
    shown = _describe_products(world, seed)
    for purchase in purchases:
        time = layout.epoch + timedelta(days=purchase.day)
        record = layout.review(
            purchase, shoppers[purchase.user], shown[purchase.item], time, stream
        )
        yield json.dumps(record) + "\n"


def format_metadata(world: World, seed: int, layout: RawFormat) -> Iterator[str]:
    """Lines of the metadata file, in random order, without the unlisted items."""
    stream = Stream(seed, purpose=3)
    for product in stream.shuffle_values(_describe_products(world, seed)):
        if product.item.kind != "unlisted":
            record = layout.product(product, stream)
            yield (repr(record) if layout.literal else json.dumps(record)) + "\n"


def _describe_products(world: World, seed: int) -> list[Product]:
    """Every item, with its title as raw as the files have it."""
    stream = Stream(seed, purpose=4)
    return [_describe_product(world, number, stream) for number in range(len(world.items))]


def _describe_product(world: World, number: int, stream: Stream) -> Product:
    item = world.items[number]
    related: tuple[int, ...] = ()
    if number < len(world.popular):
        related = (world.following[number], world.complement[number])
    return Product(
        item=item,
        raw_title=_make_raw_title(item, stream),
        related=tuple(world.items[other].item_id for other in related),
        price=(499 + 100 * stream.draw_below(40)) / 100,
        variant="B01" + draw_code(stream, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", 7),
    )


def _make_raw_title(item: Item, stream: Stream) -> str | None:
    """The title with entities and stray spaces; None or a fragment where it is unusable."""
    spaced = stream.draw_chance(6)
    if item.kind in ("untitled", "unlisted"):
        return None
    if item.kind == "markup":
        return stream.draw_choice(_MARKUP)
    escaped = html.escape(item.title).replace("&#x27;", "&#39;")
    return f" {escaped}  " if spaced else escaped


def _make_shopper(stream: Stream, layout: RawFormat) -> Shopper:
    if layout is FORMATS["2023"]:
        user_id = "A" + draw_code(stream, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 27)
    else:
        user_id = "A" + draw_code(stream, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", 13)
    return Shopper(
        user_id, stream.draw_choice(wordlists.REVIEWERS) if stream.draw_chance(90) else None
    )


def _draw_text(purchase: Purchase, stream: Stream) -> str:
    return stream.draw_choice(wordlists.PRAISE if purchase.stars > 2 else wordlists.COMPLAINTS)


def _draw_summary(purchase: Purchase, stream: Stream) -> str:
    return stream.draw_choice(wordlists.SUMMARIES[purchase.stars])


def _to_seconds(time: datetime) -> int:
    return int(time.timestamp())


def _format_day(time: datetime) -> str:
    """Month padded, day not: "06 3, 2001"."""
    return f"{time.month:02d} {time.day}, {time.year}"


def _review_2014(
    purchase: Purchase, shopper: Shopper, product: Product, time: datetime, stream: Stream
) -> Record:
    votes = stream.draw_below(8) if stream.draw_chance(30) else 0
    return {
        "reviewerID": shopper.user_id,
        "asin": product.item.item_id,
        **({} if shopper.name is None else {"reviewerName": shopper.name}),
        "helpful": [votes // 2, votes],
        "reviewText": _draw_text(purchase, stream),
        "overall": float(purchase.stars),
        "summary": _draw_summary(purchase, stream),
        "unixReviewTime": _to_seconds(time),
        "reviewTime": _format_day(time),
    }


def _product_2014(product: Product, stream: Stream) -> Record:
    return {
        "asin": product.item.item_id,
        **({} if product.raw_title is None else {"title": product.raw_title}),
        **({"price": product.price} if stream.draw_chance(80) else {}),
        **({"brand": product.item.brand} if stream.draw_chance(90) else {}),
        **({"related": {"also_bought": list(product.related)}} if product.related else {}),
        "categories": [["Toys & Games", "Invented"]],
    }


def _review_2018(
    purchase: Purchase, shopper: Shopper, product: Product, time: datetime, stream: Stream
) -> Record:
    style = (
        {"Color:": " " + stream.draw_choice(("Red", "Blue"))} if stream.draw_chance(20) else None
    )
    text = _draw_text(purchase, stream)
    return {
        "overall": float(purchase.stars),
        "verified": stream.draw_chance(85),
        "reviewTime": _format_day(time),
        "reviewerID": shopper.user_id,
        "asin": product.item.item_id,
        **({} if style is None else {"style": style}),
        **({} if shopper.name is None else {"reviewerName": shopper.name}),
        **({} if stream.draw_chance(3) else {"reviewText": text}),
        "summary": _draw_summary(purchase, stream),
        "unixReviewTime": _to_seconds(time),
        **({"vote": str(2 + stream.draw_below(40))} if stream.draw_chance(10) else {}),
    }


def _product_2018(product: Product, stream: Stream) -> Record:
    return {
        "category": ["Toys & Games", "Invented"],
        "tech1": "",
        "description": ["An invented product."] if stream.draw_chance(70) else [],
        "fit": "",
        "title": product.raw_title or "",
        "also_buy": list(product.related),
        "tech2": "",
        "brand": product.item.brand if stream.draw_chance(90) else "",
        "feature": [],
        "rank": [f">#{1 + stream.draw_below(90000):,} in Toys & Games"],
        "also_view": [],
        "details": {"ASIN: ": product.item.item_id},
        "main_cat": "Toys & Games",
        "similar_item": "",
        "date": "",
        "price": f"${product.price:.2f}" if stream.draw_chance(80) else "",
        "asin": product.item.item_id,
        "imageURL": [],
        "imageURLHighRes": [],
    }


def _review_2023(
    purchase: Purchase, shopper: Shopper, product: Product, time: datetime, stream: Stream
) -> Record:
    # One moment per user and day: ties stay ties in milliseconds.
    moment = (purchase.user * 7919 + purchase.day * 104_729) * 1_000_003 % 86_400_000
    return {
        "rating": float(purchase.stars),
        "title": _draw_summary(purchase, stream),
        "text": _draw_text(purchase, stream),
        "images": [],
        "asin": product.variant if stream.draw_chance(10) else product.item.item_id,
        "parent_asin": product.item.item_id,
        "user_id": shopper.user_id,
        "timestamp": _to_seconds(time) * 1000 + moment,
        "helpful_vote": stream.draw_below(5) if stream.draw_chance(20) else 0,
        "verified_purchase": stream.draw_chance(85),
    }


def _product_2023(product: Product, stream: Stream) -> Record:
    untitled = None if stream.draw_chance(50) else ""
    return {
        "main_category": "Toys & Games",
        "title": untitled if product.raw_title is None else product.raw_title,
        "average_rating": (30 + stream.draw_below(21)) / 10,
        "rating_number": 1 + stream.draw_below(900),
        "features": [],
        "description": ["An invented product."] if stream.draw_chance(70) else [],
        "price": product.price if stream.draw_chance(80) else None,
        "images": [],
        "videos": [],
        "store": product.item.brand if stream.draw_chance(90) else None,
        "categories": ["Toys & Games", "Invented"],
        "details": {"Brand": product.item.brand},
        "bought_together": None,
        "parent_asin": product.item.item_id,
    }


FORMATS: Final[dict[SampleFormat, RawFormat]] = {
    "2014": RawFormat(
        reviews=f"reviews_{CATEGORY}.json.gz",
        metadata=f"meta_{CATEGORY}.json.gz",
        epoch=datetime(2007, 9, 1, tzinfo=UTC),
        review=_review_2014,
        product=_product_2014,
        literal=True,
    ),
    "2018": RawFormat(
        reviews=f"{CATEGORY}.json.gz",
        metadata=f"meta_{CATEGORY}.json.gz",
        epoch=datetime(2011, 11, 1, tzinfo=UTC),
        review=_review_2018,
        product=_product_2018,
    ),
    "2023": RawFormat(
        reviews=f"{CATEGORY}.jsonl.gz",
        metadata=f"meta_{CATEGORY}.jsonl.gz",
        epoch=datetime(2016, 10, 1, tzinfo=UTC),
        review=_review_2023,
        product=_product_2023,
    ),
}
"""The three generations; 2500 days after the epoch their genuine files end, too."""
