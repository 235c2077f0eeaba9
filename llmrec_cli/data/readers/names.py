"""Item names in one JSON object, as MSL (id -> title) and LC-Rec (id -> fields) keep them."""

from __future__ import annotations

import msgspec
import polars as pl

from llmrec_cli.data.readers.items import ItemRows, no_items
from llmrec_cli.data.readers.json_lines import read_object
from llmrec_cli.data.readers.source import Locate, Notes


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
