"""Amazon 2018 (Ni et al. 2019): reviews and metadata are JSON lines, fields named as in 2014."""

from __future__ import annotations

from pathlib import Path

from llmrec_cli.data.readers.amazon import Generation, read_amazon
from llmrec_cli.data.readers.amazon2014 import FIELDS, Item, Review
from llmrec_cli.data.readers.json_lines import Shape
from llmrec_cli.data.readers.source import Locate, Source
from llmrec_cli.recipe.data import DataSection

METADATA = Shape(Item, "amazon2018 metadata")


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read 2018 reviews (``overall``, ``unixReviewTime`` in seconds, ``asin``) and metadata."""
    form = Generation(
        reviews=Shape(Review, "an amazon2018 review"),
        metadata=METADATA,
        fields=FIELDS,
    )
    return read_amazon(section, locate, scratch, form)
