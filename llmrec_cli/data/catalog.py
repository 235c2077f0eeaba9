"""The catalogue: items, and the entries that they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import ArrayLike, NDArray

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.base import item_schema
from llmrec_cli.data.schema import (
    BRAND,
    COUNT,
    ITEM,
    ITEM_ID,
    TITLE,
    TOKENS,
)
from llmrec_cli.errors import ArtefactError, DataError

# Catalogue entries: items with equal token sequences share one leaf of the trie and are one entry.
#
# Pure numpy, so that ranking by popularity and reporting agree on what an entry is.
# Shape suffixes: I items, L entries (leaves).


@dataclass(frozen=True, slots=True)
class CatalogueEntries:
    """The distinct entries of a catalogue and how popular each one is."""

    leaf_of_item_I: NDArray[np.int64]
    count_L: NDArray[np.int64]  # training interactions of an entry's items together
    item_of_leaf_L: NDArray[np.int64]  # its most popular item; ties: the lowest index
    by_popularity_L: NDArray[np.int64]  # entries by falling count; ties: lowest item_of_leaf first

    @property
    def n_items(self) -> int:
        return len(self.leaf_of_item_I)

    @property
    def n_leaves(self) -> int:
        return len(self.count_L)


def has_tokens(items: pl.DataFrame | pd.DataFrame) -> bool:
    """Whether items are known by semantic IDs rather than by titles.

    A catalogue that has both is known by its semantic IDs; titles are shown to
    people, and rows of new tokens start from them.
    """
    tokens = items[TOKENS]
    named = tokens.is_not_null() if isinstance(tokens, pl.Series) else tokens.notna()
    return bool(named.any())


def gather_entries(items: pd.DataFrame, leaf_of_item: ArrayLike) -> CatalogueEntries:
    """Count and order the entries of a catalogue, and find an item that stands for each.

    Args:
        items: the prepared items, in catalogue order; only ``count`` is read.
        leaf_of_item: entry of each item, 0..n_leaves-1, all of them used; from the trie or from
            ``leaf_of_equal_titles``.

    Raises:
        ArtefactError: the two do not describe the same catalogue.
    """
    leaf_I = np.asarray(leaf_of_item, dtype=np.int64)
    count_I = items[COUNT].to_numpy(dtype=np.int64)
    if len(leaf_I) != len(count_I):
        raise ArtefactError(
            f"leaf index of {len(leaf_I)} items, but the catalogue has {len(count_I)}"
        )
    used = np.unique(leaf_I)
    if len(used) == 0 or used[0] != 0 or used[-1] != len(used) - 1:
        raise ArtefactError(f"leaf index must use every number from 0 on; {len(used)} in use")
    best_first_I = np.lexsort((-count_I, leaf_I))  # stable: equal counts stay in item order
    item_L = best_first_I[np.unique(leaf_I[best_first_I], return_index=True)[1]]
    count_L = np.zeros(len(used), dtype=np.int64)
    np.add.at(count_L, leaf_I, count_I)
    return CatalogueEntries(leaf_I, count_L, item_L, np.lexsort((item_L, -count_L)))


def leaf_of_equal_titles(items: pd.DataFrame) -> NDArray[np.int64]:
    """Entry of each item where no tokenizer is at hand, by equal semantic IDs or equal titles.

    Entries are numbered in order of first appearance.

    Raises:
        ArtefactError: an item has neither tokens nor a title.
    """
    named = [
        _identity_of(tokens, title)
        for tokens, title in zip(items[TOKENS], items[TITLE], strict=True)
    ]
    if None in named:
        raise ArtefactError(f"item {named.index(None)} has neither tokens nor a title")
    first: dict[object, int] = {}
    return np.array([first.setdefault(name, len(first)) for name in named], dtype=np.int64)


def _identity_of(tokens: object, title: object) -> tuple[str, ...] | str | None:
    if isinstance(tokens, list | tuple | np.ndarray):
        return tuple(tokens)
    return title if isinstance(title, str) else None


# The catalogue: which items can be named, and how.
#
# An item is known by its title or by its semantic ID (a list of tokens). Items whose titles or
# tokens are equal get different titles (``disambiguate``) or later share one leaf of the trie
# (``merge``). In both cases each stays one row of the catalogue.


_BREAKS = r"[\s\x00-\x1f\x7f-\x9f]+"
_NO_METADATA = (
    '{what}, and no metadata file is named: set data.untitled = "id" to use ids as titles, or name'
    " the item metadata in data.metadata"
)
EXAMPLES = 3  # item ids or titles shown in a message or in the audit


@dataclass(frozen=True, slots=True)
class NamedItems:
    """Items that occur, split by whether they can be named."""

    items: pl.DataFrame  # ITEM_ID, TITLE, BRAND, TOKENS and fields, sorted by ITEM_ID
    untitled: list[str]  # ids of items without a usable title (or without tokens), sorted
    dropped: list[str]  # those of them that the policy leaves without a name


def name_items(occurring: pl.Series, known: pl.DataFrame, section: DataSection) -> NamedItems:
    """Give every occurring item its title by ``section.untitled``, or its semantic ID.

    Args:
        occurring: distinct item ids.
        known: ITEM_ID (distinct), TITLE, BRAND, TOKENS and fields; other items than the occurring
            ones may be among them, and occurring ones may be missing.

    Raises:
        DataError: more than half of the items would be left without a name, or ``disambiguate`` is
            asked of semantic IDs.
    """
    listed = (
        pl.DataFrame({ITEM_ID: occurring}, schema={ITEM_ID: pl.String})
        .join(known, on=ITEM_ID, how="left", validate="1:1")
        .sort(ITEM_ID)
    )
    by_tokens = has_tokens(known)
    if by_tokens and section.identity == "disambiguate":
        raise DataError(
            'data.identity = "disambiguate": semantic IDs have no title to extend; use "merge"'
        )
    name = TOKENS if by_tokens else TITLE
    filled = listed if by_tokens else listed.with_columns(_title_by_policy(section.untitled))
    named = NamedItems(
        items=filled.filter(pl.col(name).is_not_null()),
        untitled=listed.filter(pl.col(name).is_null())[ITEM_ID].to_list(),
        dropped=filled.filter(pl.col(name).is_null())[ITEM_ID].to_list(),
    )
    if 2 * len(named.dropped) > len(listed):
        branded = listed.filter(pl.coalesce(TITLE, BRAND).is_not_null()).height
        by_brand = section.untitled == "drop" and 2 * branded >= len(listed)
        raise DataError(_mostly_nameless(named, len(listed), by_tokens, by_brand, section))
    return named


def require_names(section: DataSection) -> None:
    """Refuse a source whose items can have no title, before it is cleaned.

    Raises:
        DataError: titles come from metadata files, none is named, and ids are not used as titles.
    """
    if section.form.names or section.metadata or section.untitled == "id":
        return
    raise DataError(
        f'data.untitled = "{section.untitled}": {_NO_METADATA.format(what="no item has a title")}'
    )


def build_catalogue(items: pl.DataFrame, section: DataSection) -> pl.DataFrame:
    """The final catalogue: items sorted by id, with their index ITEM, titles by identity policy."""
    rows = items.sort(ITEM_ID)
    if section.identity == "disambiguate":
        titles = disambiguate(rows[TITLE].to_list(), rows[BRAND].to_list())
        rows = rows.with_columns(pl.Series(TITLE, titles, dtype=pl.String))
    return rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias(ITEM)).select(
        ITEM, *item_schema(section.item_fields)
    )


def disambiguate(titles: Sequence[str], brands: Sequence[str | None]) -> list[str]:
    """Make equal titles distinct: append the brand in parentheses, then a counter from 2 on.

    Titles that are already unique stay unchanged.  Among items that share title and brand the first
    one has no counter.  No brand is added to a title that is the brand (``untitled = "brand"``).
    """
    times = Counter(titles)
    branded = [
        f"{title} ({brand})"
        if times[title] > 1 and brand and brand.casefold() != title.casefold()
        else title
        for title, brand in zip(titles, brands, strict=True)
    ]
    taken = set(branded)
    met = Counter(title for title in times if times[title] == 1)  # they are taken as they are
    names = []
    for given, title in zip(titles, branded, strict=True):
        if times[given] == 1:
            names.append(given)
            continue
        met[title] += 1
        name = title
        if met[title] > 1:
            name = next(n for i in count(met[title]) if (n := f"{title} ({i})") not in taken)
            taken.add(name)
        names.append(name)
    return names


def mark_shared_identity(items: pl.DataFrame) -> pl.Series:
    """For each item, whether another one has the same title (or the same tokens)."""
    name = TOKENS if has_tokens(items) else TITLE
    return items.select(name).is_duplicated()


def _title_by_policy(policy: str) -> pl.Expr:
    instead = {"drop": [], "brand": [pl.col(BRAND)], "id": [_as_title(ITEM_ID)]}[policy]
    return pl.coalesce(TITLE, *instead).alias(TITLE)


def _as_title(name: str) -> pl.Expr:
    """An id on one line: ids stay as they are in the file, titles have no breaks."""
    line = pl.col(name).str.replace_all(_BREAKS, " ").str.strip_chars(" ")
    return pl.when(line != "").then(line)


def _mostly_nameless(
    named: NamedItems, n_items: int, by_tokens: bool, by_brand: bool, section: DataSection
) -> str:
    """The message for too many untitled items, with what to set instead.

    Args:
        by_brand: brands would name enough of the items.
    """
    examples = ", ".join(repr(item) for item in named.dropped[:EXAMPLES])
    what = f"{len(named.dropped):,} of {n_items:,} items (e.g. {examples})"
    if by_tokens:
        return f"{what} are not in the semantic-ID index: data.index must list the items that occur"
    policy = f'data.untitled = "{section.untitled}"'
    if not section.metadata and not section.form.names:
        return f"{policy}: {_NO_METADATA.format(what=f'{what} have no title')}"
    brand_too = section.untitled == "brand"
    lack = "neither a usable title nor a brand" if brand_too else "no usable title"
    instead = '"brand" or "id"' if by_brand else '"id"'
    return (
        f"{policy}: {what} have {lack}: set data.untitled = {instead},"
        " or name the right metadata file in data.metadata"
    )
