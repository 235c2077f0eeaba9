"""Ten users, and what every entry recommends to them: always the same ones for the same data."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pandas as pd

from llmrec_cli.data.columns import HISTORY, ROW, TARGET, TITLE, TOKENS, USER_ID
from llmrec_cli.report.comparison import Comparison
from llmrec_cli.report.entries import Entry, Ground
from llmrec_cli.report.lists import Seen, top_lists
from llmrec_cli.report.page.material import Listed, TopList, UserCase
from llmrec_cli.report.page.slices import frames_of

USERS = 10
SHOWN = 10  # places of a list


def user_cases(
    entries: Sequence[Entry], comparison: Comparison, seen: Seen
) -> tuple[UserCase, ...]:
    """The ten users whose id has the smallest SHA-256, each with his or her first row.

    An order that no result has a part in: nobody chose these users for their lists.

    Args:
        entries: over the same rows, at least one; where there are several seeds, the first one's
            lists are shown.
        seen: the headline's policy.
    """
    rows = chosen_rows(frames_of(entries[0])[0])
    depth = max(int(name.partition("@")[2]) for name in comparison.metrics)
    lists = [_top_lists(entry, rows[ROW].tolist(), depth, seen) for entry in entries]
    figures = zip(rows[ROW], rows[USER_ID], rows[HISTORY], rows[TARGET], strict=True)
    return tuple(
        _case(entries[0].ground, row, tuple(own[place] for own in lists))
        for place, row in enumerate(figures)
    )


def chosen_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows shown, users in order of the SHA-256 of their id.

    Args:
        predictions: in order of the row's number.
    """
    first = predictions.drop_duplicates(USER_ID)
    hashes = [
        sha256(str(user).encode("utf-8", "surrogatepass")).digest() for user in first[USER_ID]
    ]
    order = sorted(range(len(first)), key=hashes.__getitem__)
    return first.iloc[order[:USERS]]


def title_of(items: pd.DataFrame, item: int) -> str:
    """An item's title, else its semantic ID."""
    title, tokens = items[TITLE].iloc[item], items[TOKENS].iloc[item]
    if isinstance(title, str):
        return title
    return "".join(tokens) if isinstance(tokens, list) else "?"


def _top_lists(entry: Entry, numbers: Sequence[int], depth: int, seen: Seen) -> list[TopList]:
    leaves, items = entry.ground.leaves, entry.ground.items
    rows = frames_of(entry)[0].set_index(ROW, drop=False).loc[list(numbers)]
    top = top_lists(rows, leaves, depth, seen)
    found = []
    for leaf_K, target, history in zip(top.leaf_RK, top.target_R, rows[HISTORY], strict=True):
        had = set(leaves.leaf_of_item_I[np.asarray(history, dtype=np.int64)].tolist())
        listed = [
            Listed(title_of(items, int(leaves.item_of_leaf_L[leaf])), leaf == target, leaf in had)
            for leaf in leaf_K[:SHOWN].tolist()
            if leaf >= 0
        ]
        hits = np.flatnonzero(leaf_K == target)
        rank = int(hits[0]) + 1 if len(hits) else 0
        found.append(TopList(entry.name, tuple(listed), rank))
    return found


def _case(
    ground: Ground, row: tuple[int, str, Sequence[int], int], lists: tuple[TopList, ...]
) -> UserCase:
    number, user, history, target = row
    leaves = ground.leaves
    return UserCase(
        user=str(user),
        row=int(number),
        history=tuple(title_of(ground.items, int(item)) for item in history),
        target=title_of(ground.items, int(target)),
        target_count=int(leaves.count_L[leaves.leaf_of_item_I[target]]),
        lists=lists,
    )
