"""Amazon 2014 (He & McAuley 2016): reviews are JSON lines, metadata lines are Python literals."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmrec_cli.data.readers.amazon import Generation, read_amazon
from llmrec_cli.data.readers.checks import Fields
from llmrec_cli.data.readers.json_lines import Shape
from llmrec_cli.data.readers.source import Locate, Source
from llmrec_cli.recipe.data import DataSection

FIELDS = Fields(user="reviewerID", item="asin", rating="overall", timestamp="unixReviewTime")


class Review(
    msgspec.Struct,
    gc=False,
    rename={
        "user_id": "reviewerID",
        "item_id": "asin",
        "rating": "overall",
        "timestamp": "unixReviewTime",
    },
):
    """A review; ``unixReviewTime`` is in seconds."""

    user_id: str
    item_id: str
    rating: float
    timestamp: int | float


class Item(msgspec.Struct, gc=False, rename={"item_id": "asin", "reviewer": "reviewerID"}):
    """A metadata line."""

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


METADATA = Shape(Item, "amazon2014 metadata", literals=True)


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read 2014 reviews and metadata; both may be JSON or Python literals, line by line."""
    form = Generation(
        reviews=Shape(Review, "an amazon2014 review", literals=True),
        metadata=METADATA,
        fields=FIELDS,
    )
    return read_amazon(section, locate, scratch, form)
