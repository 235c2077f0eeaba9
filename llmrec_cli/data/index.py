"""The semantic IDs that ``tokenize`` makes, beside the prepared data of an experiment.

    tokens/index.json    item id -> its tokens, ["<a_12>", "<b_7>", "<c_255>"], as LC-Rec has it
    tokens/facts.json    what they were made from, and with which settings

A stage that reads the catalogue reads it through ``load_catalogue``, which gives the items these
IDs in place of none.  No torch.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from llmrec_cli.config.recipe import TOKENS_FOLDER, Recipe
from llmrec_cli.data.prepared import Manifest, Prepared, load_prepared
from llmrec_cli.data.schema import ITEM, ITEM_ID, ITEMS_FILE, TITLE, TOKENS
from llmrec_cli.errors import ArtefactError, DataError, MissingRunError
from llmrec_cli.utils.files import FACTS_FILE, check_folder, hash_file, hash_json, read_json

INDEX_FILE: Final = "index.json"
INDEX_HASH: Final = "index"  # among the hashes of a run's facts and of a report
ITEMS_FACT: Final = "items"  # SHA-256 of the catalogue that the IDs were made for
APPENDED_FACT: Final = "appended"  # oldest first: hash of the index before, and the new items
SETTINGS_FACT: Final = "settings"  # of [tokens], those that an ID depends on
COMMAND: Final = "llmrec tokenize RECIPE"
_ENCODER: Final = "encoder"
_TOKEN: Final = re.compile(r"<([a-z])_(\d{1,9})>")


@dataclass(frozen=True)
class Index:
    """A folder of semantic IDs, whole and as it was written."""

    folder: Path
    tokens: Mapping[str, list[str]]  # of each item id; of items that left the catalogue too
    facts: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What they were made with, of ``[tokens]``."""
        found: Mapping[str, Any] = self.facts[SETTINGS_FACT]
        return found

    @property
    def file(self) -> Path:
        """What others read."""
        return self.folder / INDEX_FILE

    def describe_append(self, items: Sequence[str]) -> dict[str, Any]:
        """A fact of the index that has further items: what it was before, and these items."""
        before: list[Any] = self.facts.get(APPENDED_FACT, [])
        return {APPENDED_FACT: [*before, {"index": hash_file(self.file), "items": sorted(items)}]}

    def find_earlier(self, wanted: str) -> Mapping[str, list[str]] | None:
        """The IDs before items were appended, as an index of this SHA-256 had them.

        None: this index was never so.
        """
        tokens = dict(self.tokens)
        for step in reversed(self.facts.get(APPENDED_FACT, [])):
            for name in step["items"]:
                tokens.pop(name, None)
            if step["index"] == wanted == hash_json(tokens):
                return tokens
        return None


def spell_code(level: int, code: int) -> str:
    """The token of a code: ``<a_12>`` at level 0."""
    return f"<{string.ascii_lowercase[level]}_{code}>"


def read_code(token: str, level: int) -> int | None:
    """The code of a token; None: it is none of this level."""
    found = _TOKEN.fullmatch(token)
    here = found is not None and found[1] == string.ascii_lowercase[level]
    return int(found[2]) if found is not None and here else None


def read_index(folder: Path) -> Index:
    """The semantic IDs of a folder.

    Raises:
        ArtefactError: a file is missing or damaged.
    """
    check_folder(folder)
    tokens, facts = read_json(folder / INDEX_FILE), read_json(folder / FACTS_FILE)
    sound = isinstance(tokens, dict) and isinstance(facts, dict) and ITEMS_FACT in facts
    if not sound or not isinstance(facts.get(SETTINGS_FACT), dict):
        raise ArtefactError(f"{folder}: not a folder of semantic IDs; remove it")
    return Index(folder, tokens, facts)


def load_catalogue(folder: Path) -> Prepared:
    """A prepared folder, its items with the semantic IDs of the experiment where it has some.

    Raises:
        ArtefactError: as ``load_prepared``; or the IDs are damaged, or of another catalogue.
    """
    prepared, tokens = load_prepared(folder), folder.parent / TOKENS_FOLDER
    if not tokens.is_dir():
        return prepared
    index = read_index(tokens)
    require_same_items(index, prepared.manifest)
    return replace(prepared, items=_name_by_ids(prepared.items, index), index=index.file)


def select_earlier(whole: Prepared, trained_on: object) -> Prepared | None:
    """The items of a catalogue that had IDs before others were appended.

    Args:
        whole: from ``load_catalogue``.
        trained_on: SHA-256 of the index then.

    Returns:
        Their places in the folder's files are in ``place_I``; None: the index was never so, or is
        so now.

    Raises:
        ArtefactError: the IDs are damaged.
    """
    if whole.index is None or not isinstance(trained_on, str):
        return None
    tokens = read_index(whole.index.parent).find_earlier(trained_on)
    if tokens is None:
        return None
    known_I = whole.items[ITEM_ID].isin(tokens).to_numpy()
    place_I = np.where(known_I, known_I.cumsum() - 1, -1).astype(np.int32)
    items, newer = whole.items[known_I].reset_index(drop=True), whole.items[~known_I]
    return replace(
        whole,
        items=items.assign(**{ITEM: np.arange(len(items))}),
        place_I=place_I,
        newer=frozenset([*newer[ITEM_ID], *newer[TITLE].dropna()]),
    )


def require_same_items(index: Index, manifest: Manifest) -> None:
    """Refuse semantic IDs that were made for another catalogue.

    Args:
        manifest: of the prepared folder.

    Raises:
        ArtefactError: says what gives the new items IDs.
    """
    if index.facts[ITEMS_FACT] != manifest["files"][ITEMS_FILE]["sha256"]:
        raise ArtefactError(
            f"{index.folder}: its IDs were made for another catalogue than prepared now; give the "
            "new items IDs (llmrec tokenize RECIPE --append), or remove the folder and make all "
            f"IDs anew ({COMMAND})"
        )


def require_index(recipe: Recipe, prepared: Prepared) -> None:
    """Refuse a catalogue that is not named as the recipe says.

    Args:
        prepared: from ``load_catalogue``.

    Raises:
        MissingRunError: the recipe makes semantic IDs, and there are none yet.
        ArtefactError: there are some, but made with other settings, or not wanted.
    """
    tokens = recipe.id_tokens
    if tokens is None:
        if prepared.index is not None:
            raise ArtefactError(
                f"{prepared.index.parent}: the experiment's items have semantic IDs, and the "
                'recipe has no [tokens] with kind = "semantic-id"; choose another name (name=...)'
            )
        return
    if prepared.index is None:
        raise MissingRunError(
            f"{recipe.tokens_folder}: no semantic IDs yet ([tokens] kind = {tokens.kind!r})",
            COMMAND,
        )
    require_same_id_settings(recipe, read_index(prepared.index.parent).settings)


def list_settings(recipe: Recipe) -> dict[str, Any]:
    """What of ``[tokens]`` an ID depends on, as plain values."""
    plain = dict(recipe.every_value()["tokens"])
    source = recipe.id_tokens.source if recipe.id_tokens is not None else None
    unused = {"batch"}
    if source is not None and not source.texts:
        unused |= {_ENCODER, "revision", "text", "max_tokens"}
    if source is not None and not source.baseline:
        unused |= {"baseline"}
    return {key: value for key, value in plain.items() if key not in unused}


def require_same_id_settings(recipe: Recipe, recorded: Mapping[str, Any]) -> None:
    """Refuse semantic IDs that were made with other settings.

    Keys that only one of the two knows are of another version.  Two paths of one encoder are alike.

    Raises:
        ArtefactError: names the first key that differs, with both values.
    """
    now = list_settings(recipe)
    for key in sorted(now.keys() & recorded.keys()):
        before, after = recorded[key], now[key]
        if before != after and not (key == _ENCODER and _is_same_folder(before, after)):
            raise ArtefactError(
                f"{recipe.tokens_folder}: made with tokens.{key} = {before!r}, the recipe has "
                f"{after!r}; choose another name (name=...), or remove the folder"
            )


def _is_same_folder(first: object, second: object) -> bool:
    paths = [word for word in (first, second) if isinstance(word, str) and os.path.isdir(word)]
    return len(paths) == 2 and os.path.realpath(paths[0]) == os.path.realpath(paths[1])


def hash_index(prepared: Prepared) -> str | None:
    """SHA-256 of the index that names the items; None: none does, or it is the source's own."""
    return None if prepared.index is None else hash_file(prepared.index)


def _name_by_ids(items: pd.DataFrame, index: Index) -> pd.DataFrame:
    missing = [name for name in items[ITEM_ID] if name not in index.tokens]
    if missing:
        raise DataError(
            f"{index.file}: {len(missing):,} items of the catalogue, such as {missing[0]!r}, have "
            "no ID there; it is of another catalogue"
        )
    tokens: Sequence[list[str]] = [index.tokens[name] for name in items[ITEM_ID]]
    return items.assign(**{TOKENS: pd.Series(tokens, index=items.index, dtype=object)})
