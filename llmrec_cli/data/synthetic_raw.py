"""The synthetic shop as raw Amazon files of 2014, 2018 and 2023, with the dirt of genuine ones.

Titles with entities, stray spaces, markup fragments or none at all; items without metadata; tied
times; optional keys that come and go; ids that look like numbers; ``asin`` that differs from
``parent_asin``.  Records are plain dictionaries in the key order of the genuine files.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from llmrec_cli.data import synthetic_names as names
from llmrec_cli.data.synthetic import Item, Purchase, World, code
from llmrec_cli.data.synthetic_stream import Stream

SampleFormat = Literal["2014", "2018", "2023"]
Record = dict[str, Any]

CATEGORY: Final = "Synthetic_Toys"  # the name says that nothing in the files is genuine
_MARKUP: Final = ('<span class="a-size-medium', "<span ", '<div id="fallback')


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


def review_lines(
    world: World, purchases: Sequence[Purchase], seed: int, layout: RawFormat
) -> Iterator[str]:
    """JSON lines of the review file, in the order of ``purchases``."""
    stream = Stream(seed, purpose=2)
    users = 1 + max(purchase.user for purchase in purchases)
    shoppers = [_shopper(stream, layout) for _ in range(users)]
    shown = products(world, seed)
    for purchase in purchases:
        time = layout.epoch + timedelta(days=purchase.day)
        record = layout.review(
            purchase, shoppers[purchase.user], shown[purchase.item], time, stream
        )
        yield json.dumps(record) + "\n"


def metadata_lines(world: World, seed: int, layout: RawFormat) -> Iterator[str]:
    """Lines of the metadata file, in random order, without the unlisted items."""
    stream = Stream(seed, purpose=3)
    for product in stream.shuffled(products(world, seed)):
        if product.item.kind != "unlisted":
            record = layout.product(product, stream)
            yield (repr(record) if layout.literal else json.dumps(record)) + "\n"


def products(world: World, seed: int) -> list[Product]:
    """Every item, with its title as raw as the files have it."""
    stream = Stream(seed, purpose=4)
    return [_product(world, number, stream) for number in range(len(world.items))]


def _product(world: World, number: int, stream: Stream) -> Product:
    item = world.items[number]
    related: tuple[int, ...] = ()
    if number < len(world.popular):
        related = (world.following[number], world.complement[number])
    return Product(
        item=item,
        raw_title=_raw_title(item, stream),
        related=tuple(world.items[other].item_id for other in related),
        price=(499 + 100 * stream.below(40)) / 100,
        variant="B01" + code(stream, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", 7),
    )


def _raw_title(item: Item, stream: Stream) -> str | None:
    """The title with entities and stray spaces; None or a fragment where it is unusable."""
    spaced = stream.chance(6)
    if item.kind in ("untitled", "unlisted"):
        return None
    if item.kind == "markup":
        return stream.choice(_MARKUP)
    escaped = html.escape(item.title).replace("&#x27;", "&#39;")
    return f" {escaped}  " if spaced else escaped


def _shopper(stream: Stream, layout: RawFormat) -> Shopper:
    if layout is FORMATS["2023"]:
        user_id = "A" + code(stream, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 27)
    else:
        user_id = "A" + code(stream, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", 13)
    return Shopper(user_id, stream.choice(names.REVIEWERS) if stream.chance(90) else None)


def _text(purchase: Purchase, stream: Stream) -> str:
    return stream.choice(names.PRAISE if purchase.stars > 2 else names.COMPLAINTS)


def _summary(purchase: Purchase, stream: Stream) -> str:
    return stream.choice(names.SUMMARIES[purchase.stars])


def _seconds(time: datetime) -> int:
    return int(time.timestamp())


def _written_day(time: datetime) -> str:
    """Month padded, day not: "06 3, 2001"."""
    return f"{time.month:02d} {time.day}, {time.year}"


def _review_2014(
    purchase: Purchase, shopper: Shopper, product: Product, time: datetime, stream: Stream
) -> Record:
    votes = stream.below(8) if stream.chance(30) else 0
    return {
        "reviewerID": shopper.user_id,
        "asin": product.item.item_id,
        **({} if shopper.name is None else {"reviewerName": shopper.name}),
        "helpful": [votes // 2, votes],
        "reviewText": _text(purchase, stream),
        "overall": float(purchase.stars),
        "summary": _summary(purchase, stream),
        "unixReviewTime": _seconds(time),
        "reviewTime": _written_day(time),
    }


def _product_2014(product: Product, stream: Stream) -> Record:
    return {
        "asin": product.item.item_id,
        **({} if product.raw_title is None else {"title": product.raw_title}),
        **({"price": product.price} if stream.chance(80) else {}),
        **({"brand": product.item.brand} if stream.chance(90) else {}),
        **({"related": {"also_bought": list(product.related)}} if product.related else {}),
        "categories": [["Toys & Games", "Invented"]],
    }


def _review_2018(
    purchase: Purchase, shopper: Shopper, product: Product, time: datetime, stream: Stream
) -> Record:
    style = {"Color:": " " + stream.choice(("Red", "Blue"))} if stream.chance(20) else None
    text = _text(purchase, stream)
    return {
        "overall": float(purchase.stars),
        "verified": stream.chance(85),
        "reviewTime": _written_day(time),
        "reviewerID": shopper.user_id,
        "asin": product.item.item_id,
        **({} if style is None else {"style": style}),
        **({} if shopper.name is None else {"reviewerName": shopper.name}),
        **({} if stream.chance(3) else {"reviewText": text}),
        "summary": _summary(purchase, stream),
        "unixReviewTime": _seconds(time),
        **({"vote": str(2 + stream.below(40))} if stream.chance(10) else {}),
    }


def _product_2018(product: Product, stream: Stream) -> Record:
    return {
        "category": ["Toys & Games", "Invented"],
        "tech1": "",
        "description": ["An invented product."] if stream.chance(70) else [],
        "fit": "",
        "title": product.raw_title or "",
        "also_buy": list(product.related),
        "tech2": "",
        "brand": product.item.brand if stream.chance(90) else "",
        "feature": [],
        "rank": [f">#{1 + stream.below(90000):,} in Toys & Games"],
        "also_view": [],
        "details": {"ASIN: ": product.item.item_id},
        "main_cat": "Toys & Games",
        "similar_item": "",
        "date": "",
        "price": f"${product.price:.2f}" if stream.chance(80) else "",
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
        "title": _summary(purchase, stream),
        "text": _text(purchase, stream),
        "images": [],
        "asin": product.variant if stream.chance(10) else product.item.item_id,
        "parent_asin": product.item.item_id,
        "user_id": shopper.user_id,
        "timestamp": _seconds(time) * 1000 + moment,
        "helpful_vote": stream.below(5) if stream.chance(20) else 0,
        "verified_purchase": stream.chance(85),
    }


def _product_2023(product: Product, stream: Stream) -> Record:
    untitled = None if stream.chance(50) else ""
    return {
        "main_category": "Toys & Games",
        "title": untitled if product.raw_title is None else product.raw_title,
        "average_rating": (30 + stream.below(21)) / 10,
        "rating_number": 1 + stream.below(900),
        "features": [],
        "description": ["An invented product."] if stream.chance(70) else [],
        "price": product.price if stream.chance(80) else None,
        "images": [],
        "videos": [],
        "store": product.item.brand if stream.chance(90) else None,
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
