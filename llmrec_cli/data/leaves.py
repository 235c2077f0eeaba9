"""Catalogue entries: items with equal token sequences share one leaf and count as one entry.

Pure numpy, so that ranking by popularity and reporting agree on what an entry is.
Shape suffixes: I items, L leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import ArrayLike, NDArray

from llmrec_cli.data.columns import COUNT, TITLE, TOKENS
from llmrec_cli.errors import ArtefactError


@dataclass(frozen=True, slots=True)
class Leaves:
    """The distinct entries of a catalogue and how popular each one is."""

    leaf_of_item_I: NDArray[np.int64]
    count_L: NDArray[np.int64]  # training interactions of a leaf's items together
    item_of_leaf_L: NDArray[np.int64]  # its most popular item; ties: the lowest index
    by_popularity_L: NDArray[np.int64]  # leaves by falling count; ties: lowest item_of_leaf first

    @property
    def n_items(self) -> int:
        return len(self.leaf_of_item_I)

    @property
    def n_leaves(self) -> int:
        return len(self.count_L)


def has_tokens(items: pl.DataFrame | pd.DataFrame) -> bool:
    """Whether items are known by semantic IDs rather than by titles.

    A catalogue that has both is known by its semantic IDs; titles are only shown to people.
    """
    tokens = items[TOKENS]
    named = tokens.is_not_null() if isinstance(tokens, pl.Series) else tokens.notna()
    return bool(named.any())


def gather_leaves(items: pd.DataFrame, leaf_of_item: ArrayLike) -> Leaves:
    """Count, represent and order the leaves of a catalogue.

    Args:
        items: the prepared items, in catalogue order; only ``count`` is read.
        leaf_of_item: leaf index of each item, 0..n_leaves-1, every leaf used; from the trie or from
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
    return Leaves(leaf_I, count_L, item_L, np.lexsort((item_L, -count_L)))


def leaf_of_equal_titles(items: pd.DataFrame) -> NDArray[np.int64]:
    """Leaf index of each item where no tokenizer is at hand: equal semantic IDs or equal titles.

    Leaves are numbered in order of first appearance.

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
