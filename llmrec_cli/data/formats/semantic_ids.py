"""Item ids with a semantic-ID index, as TIGER, LC-Rec and ILRec exchange them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.amazon import INTERACTIONS_FILE
from llmrec_cli.data.formats.base import (
    ITEM_SCHEMA,
    Locate,
    Notes,
    Sink,
    Source,
    item_schema,
    read_names,
    write_interactions,
)
from llmrec_cli.data.formats.checks import Fields, Interactions
from llmrec_cli.data.formats.parsing import make_fault, read_object, show_text
from llmrec_cli.data.schema import ITEM_ID, TOKENS
from llmrec_cli.errors import DataError

FIELDS: Final = Fields(user="user", item="item", rating="", timestamp="position")
_USERS_AT_A_TIME: Final = 4096


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read users' ordered items (``*.inter.json``) and the index (``*.index.json``).

    The timestamp is the position in the user's list.  Titles are optional (``metadata``).

    Raises:
        DataError: anything wrong in a file, or a user who occurs in two files.
    """
    files: Notes = {}
    seen: set[str] = set()
    with Sink(scratch / INTERACTIONS_FILE) as sink:
        for name in section.reviews:
            path = locate(name)
            files[name] = write_interactions(
                path, _read_interactions(path, seen), FIELDS, sink, calendar=False
            )
            files[name]["timestamp"] = "position in the user's list"
    items, notes = _read_items(section, locate)
    return Source(sink.path, items, notes={"reviews": files, "index": notes})


def _read_interactions(path: Path, seen: set[str]) -> Iterator[Interactions]:
    what = "one JSON object: user id -> list of item ids, oldest first"
    histories: dict[str, list[str | int]] = read_object(path, dict[str, list[str | int]], what)
    repeated = seen & histories.keys()
    if repeated:
        raise DataError(f"{path}: user {show_text(min(repeated))} occurs in an earlier file, too")
    seen.update(histories)
    users = list(histories)
    for start in range(0, len(users), _USERS_AT_A_TIME):
        rows = [
            (user, str(item), position)
            for user in users[start : start + _USERS_AT_A_TIME]
            for position, item in enumerate(histories[user])
        ]
        yield Interactions(
            users=[user for user, _, _ in rows],
            items=[item for _, item, _ in rows],
            ratings=None,
            timestamps=[position for _, _, position in rows],
            line_of=lambda _: 1,  # one object has no lines of its own
        )


def _read_items(section: DataSection, locate: Locate) -> tuple[pl.DataFrame, Notes]:
    path = locate(section.index or "")  # the recipe requires it of this format
    what = "one JSON object: item id -> list of tokens"
    index: dict[str, list[str]] = read_object(path, dict[str, list[str]], what)
    for item, tokens in index.items():
        if not tokens or not all(tokens):
            raise make_fault(
                path, 1, f"item {show_text(item)} has the tokens {tokens}; expected {what}"
            )
    names, metadata = read_names(section.metadata, locate, section.item_fields)
    ids = pl.DataFrame(
        {ITEM_ID: list(index), TOKENS: list(index.values())},
        schema={ITEM_ID: ITEM_SCHEMA[ITEM_ID], TOKENS: ITEM_SCHEMA[TOKENS]},
    )
    items = ids.join(names.drop(TOKENS), on=ITEM_ID, how="left", maintain_order="left")
    shared = ids.height - ids[TOKENS].n_unique()
    notes = {"items": ids.height, "items_beyond_distinct_ids": shared, "titles": metadata}
    return items.select(list(item_schema(section.item_fields))), notes
