"""Amazon 2023 (Hou et al. 2024): JSON lines joined on ``parent_asin``, never on ``asin``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmrec_cli.data.readers.amazon import Generation, read_amazon
from llmrec_cli.data.readers.checks import Fields
from llmrec_cli.data.readers.json_lines import Shape
from llmrec_cli.data.readers.source import Locate, Source
from llmrec_cli.recipe.data import DataSection

FIELDS = Fields(user="user_id", item="parent_asin", rating="rating", timestamp="timestamp")


class Review(msgspec.Struct, gc=False, rename={"item_id": "parent_asin"}):
    """A review; ``timestamp`` is in milliseconds.  Its ``title`` is the review's own headline."""

    user_id: str
    item_id: str
    rating: float
    timestamp: int | float


class Details(msgspec.Struct, gc=False, rename={"brand": "Brand"}):
    """The one field of a product's details that matters here."""

    brand: str | None = None


class Item(msgspec.Struct, gc=False, rename={"item_id": "parent_asin", "reviewer": "user_id"}):
    """A metadata line."""

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


METADATA = Shape(Item, "amazon2023 metadata")


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read 2023 reviews and metadata."""
    form = Generation(
        reviews=Shape(Review, "an amazon2023 review"),
        metadata=METADATA,
        fields=FIELDS,
    )
    return read_amazon(section, locate, scratch, form)
