"""The `interactions` format: CSV, parquet or JSON lines, with columns named in the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from llmrec_cli.config.data import Columns, DataSection
from llmrec_cli.data.formats.amazon import INTERACTIONS_FILE, bad_lines
from llmrec_cli.data.formats.base import (
    ItemRows,
    Locate,
    Notes,
    Sink,
    Source,
    no_items,
    with_id,
    write_interactions,
)
from llmrec_cli.data.formats.checks import Fields, Interactions
from llmrec_cli.data.formats.delimited import Kinds
from llmrec_cli.data.formats.parsing import BadLines
from llmrec_cli.data.formats.tables import Table, find_index, find_tables, read_parts
from llmrec_cli.data.schema import BRAND
from llmrec_cli.errors import DataError, RecipeError


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read interactions and, where named, metadata with titles.

    With ``columns.timestamp = false`` the order of the lines is the order in time, over all files
    in the order in which the recipe lists them.

    Raises:
        DataError: anything wrong in a file.
        RecipeError: metadata files without ``columns.title``.
    """
    columns = section.columns
    fields = Fields(
        columns.user, columns.item, columns.rating or "", columns.timestamp or "", scale=None
    )
    files: Notes = {}
    bad = bad_lines(section)
    with Sink(scratch / INTERACTIONS_FILE) as sink:
        for name in section.reviews:
            found: Notes = {}
            path, before = locate(name), sink.count
            for table in find_tables(path):
                index = find_index(table, _list_columns(columns))
                rows = _read_interactions(table, columns, bad)
                of_folder = table.path != path
                notes = write_interactions(
                    table.path, rows, fields, sink, bad=bad, may_be_empty=of_folder
                )
                ignored = {} if index is None else {"ignored_index_column": index}
                found[_place_of(path, table)] = notes | ignored
            if sink.count == before:
                raise DataError(f"{path}: no file of the folder has interactions")
            files[name] = found.pop("", found)
    items, notes = _read_items(section, locate, bad)
    return Source(sink.path, items, notes={"reviews": files, "metadata": notes, **bad.notes()})


def _place_of(path: Path, table: Table) -> str:
    """Where in a folder a table lies; empty for a file alone."""
    return "" if table.path == path else table.path.relative_to(path).as_posix()


def _list_columns(columns: Columns) -> list[str]:
    names = (columns.user, columns.item, columns.timestamp, columns.rating)
    return [name for name in names if name]


def _read_interactions(table: Table, columns: Columns, bad: BadLines) -> Iterator[Interactions]:
    ids = (columns.user, columns.item)
    rating = () if columns.rating is None else (columns.rating,)
    time = (columns.timestamp,) if columns.timestamp else ()
    kinds = Kinds(numbers=rating, optional=rating, times=time, ids=ids)
    timeless = "timestamp = false there where file order is time order"
    absent = dict.fromkeys(time, timeless)
    for part in read_parts(table, ids, kinds, bad, absent):
        yield Interactions(
            users=part.texts[columns.user],
            items=part.texts[columns.item],
            ratings=None if columns.rating is None else part.numbers[columns.rating],
            timestamps=part.numbers[columns.timestamp] if columns.timestamp else None,
            line_of=part.line_of,
            clock=part.clock,
        )


def _read_items(section: DataSection, locate: Locate, bad: BadLines) -> tuple[pl.DataFrame, Notes]:
    columns, items = section.columns, ItemRows(section.item_fields)
    if not section.metadata:
        return no_items(section.item_fields), {}
    if columns.title is None:
        raise RecipeError("[data.columns] title is missing: which column of metadata has titles?")
    texts = [columns.item, columns.title] + ([columns.brand] if columns.brand else [])
    named: dict[str, str] = {
        name: columns.of_field(name) or "" for name in section.item_fields if name != BRAND
    }
    ignored = {}
    for name in section.metadata:
        for table in find_tables(locate(name)):
            if (index := find_index(table, [*texts, *named.values()])) is not None:
                ignored[name] = index
            _add_items(table, columns, texts, named, items, bad)
    frame = items.frame()
    notes = {"files": list(section.metadata), **items.notes(frame)}
    return frame, notes | ({"ignored_index_column": ignored} if ignored else {})


def _add_items(
    table: Table,
    columns: Columns,
    texts: list[str],
    named: Mapping[str, str],
    items: ItemRows,
    bad: BadLines,
) -> None:
    """Add the rows of a table.

    Args:
        named: field -> its column.
    """
    values = tuple(dict.fromkeys(named.values()))
    for part in read_parts(table, texts, Kinds(ids=(columns.item,), values=values), bad):
        ids = part.texts[columns.item]
        known = with_id(ids, columns.item, table.path, part.line_of, bad)
        brands = part.texts[columns.brand] if columns.brand else [None] * len(ids)
        items.without_id += sum(not item_id for item_id in ids)
        titles = part.texts[columns.title or ""]
        items.add(
            [ids[i] for i in known],
            [titles[i] for i in known],
            [brands[i] for i in known],
            {name: [part.values[column][i] for i in known] for name, column in named.items()},
        )
