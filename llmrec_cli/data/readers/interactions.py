"""Anybody's interactions: CSV, parquet or JSON lines with columns named in the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from llmrec_cli.data.readers.amazon import INTERACTIONS_FILE, bad_lines
from llmrec_cli.data.readers.block import BadLines
from llmrec_cli.data.readers.checks import Fields, Interactions
from llmrec_cli.data.readers.items import ItemRows, no_items, with_id
from llmrec_cli.data.readers.sink import Sink, deliver
from llmrec_cli.data.readers.source import Locate, Notes, Source
from llmrec_cli.data.readers.tables import read_parts
from llmrec_cli.errors import RecipeError
from llmrec_cli.recipe.data import Columns, DataSection


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read interactions and, where named, metadata with titles.

    With ``columns.timestamp = false`` the order of the lines is the order in time, over all files
    in the order in which the recipe lists them.

    Raises:
        DataError: anything wrong in a file.
        RecipeError: metadata files without ``columns.title``.
    """
    columns = section.columns
    fields = Fields(columns.user, columns.item, columns.rating or "", columns.timestamp or "")
    files: Notes = {}
    bad = bad_lines(section)
    with Sink(scratch / INTERACTIONS_FILE) as sink:
        for name in section.reviews:
            path = locate(name)
            files[name] = deliver(path, _interactions(path, columns, bad), fields, sink, bad=bad)
    items, notes = _items(section, locate, bad)
    return Source(sink.path, items, notes={"reviews": files, "metadata": notes, **bad.notes()})


def _interactions(path: Path, columns: Columns, bad: BadLines) -> Iterator[Interactions]:
    numbers = [name for name in (columns.timestamp, columns.rating) if name]
    timeless = {columns.timestamp: "timestamp = false there where file order is time order"}
    absent = {name: advice for name, advice in timeless.items() if name}
    for part in read_parts(path, [columns.user, columns.item], numbers, bad, absent):
        yield Interactions(
            users=part.texts[columns.user],
            items=part.texts[columns.item],
            ratings=None if columns.rating is None else part.numbers[columns.rating],
            timestamps=part.numbers[columns.timestamp] if columns.timestamp else None,
            line_of=part.line_of,
        )


def _items(section: DataSection, locate: Locate, bad: BadLines) -> tuple[pl.DataFrame, Notes]:
    columns, items = section.columns, ItemRows()
    if not section.metadata:
        return no_items(), {}
    if columns.title is None:
        raise RecipeError("[data.columns] title is missing: which column of metadata has titles?")
    texts = [columns.item, columns.title] + ([columns.brand] if columns.brand else [])
    for path in map(locate, section.metadata):
        for part in read_parts(path, texts, bad=bad):
            ids = part.texts[columns.item]
            known = with_id(ids, columns.item, path, part.line_of, bad)
            brands = part.texts[columns.brand] if columns.brand else [None] * len(ids)
            items.without_id += sum(not item_id for item_id in ids)
            titles = part.texts[columns.title]
            items.add(
                [ids[i] for i in known], [titles[i] for i in known], [brands[i] for i in known]
            )
    frame = items.frame()
    return frame, {"files": list(section.metadata), **items.notes(frame)}
