"""Items with equal codes: a further code that counts them, the nearest free code, or one ID.

An ID that is given never changes: ``taken`` are those of older items, which new ones keep clear of.

Shape suffixes: I items, L levels, C codes, K width at the last level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrec_cli.errors import DataError

Code: TypeAlias = tuple[int, ...]
Distances: TypeAlias = Callable[[Sequence[int]], NDArray[np.float32]]
"""items -> their distance to every code of the last level, [items, C]."""

Rule: TypeAlias = Callable[[Sequence[Code], Distances, Sequence[Code]], list[Code]]
"""(codes of the items in order, distances, IDs taken) -> an ID of each item."""


def count_in_buckets(
    codes: Sequence[Code], distances: Distances, taken: Sequence[Code]
) -> list[Code]:
    """Every ID gets a further code: 0, and 1, 2, ... for later items of equal codes (TIGER)."""
    following: dict[Code, int] = defaultdict(int)
    for given in taken:
        following[given[:-1]] = max(following[given[:-1]], given[-1] + 1)
    found = []
    for code in codes:
        found.append((*code, following[code]))
        following[code] += 1
    return found


def move_to_nearest(
    codes: Sequence[Code], distances: Distances, taken: Sequence[Code]
) -> list[Code]:
    """Of equal codes the best fitting item keeps the last one; others get the nearest free one.

    They choose in the order of their loss, the smallest first (LC-Rec's distinct last level).

    Raises:
        DataError: more items share what comes before than there are codes.
    """
    buckets: dict[Code, list[int]] = defaultdict(list)
    for item, code in enumerate(codes):
        buckets[code[:-1]].append(item)
    used: dict[Code, set[int]] = defaultdict(set)
    for given in taken:
        used[given[:-1]].add(given[-1])
    found = list(codes)
    for begin, items in buckets.items():
        asked = [codes[item][-1] for item in items]
        if len({*asked, *used[begin]}) == len(asked) + len(used[begin]):
            continue
        distance_IC = distances(items).astype(np.float64)
        if len(items) + len(used[begin]) > distance_IC.shape[1]:
            raise DataError(
                f'tokens.collisions = "nearest": {len(items) + len(used[begin]):,} items share '
                f"all tokens but the last one, which has {distance_IC.shape[1]:,} values; raise "
                'tokens.codes or tokens.levels, or use "counter"'
            )
        for place, last in _choose_free(distance_IC, used[begin]).items():
            found[items[place]] = (*begin, last)
    return found


def _choose_free(distance_IC: NDArray[np.float64], used: set[int]) -> dict[int, int]:
    """A free code for each item, all different; chosen one by one where the loss is smallest."""
    left_IC = distance_IC - distance_IC.min(axis=1, keepdims=True)
    left_IC[:, sorted(used)] = np.inf
    chosen: dict[int, int] = {}
    best_I = distance_IC.min(axis=1)
    while len(chosen) < len(left_IC):
        # What an item loses, then how well it fits; then its place.
        loss_I = left_IC.min(axis=1)
        place = min(
            (at for at in range(len(left_IC)) if at not in chosen),
            key=lambda at: (loss_I[at], best_I[at], at),
        )
        code = int(left_IC[place].argmin())
        chosen[place] = code
        left_IC[:, code] = np.inf
    return chosen


def share_ids(codes: Sequence[Code], distances: Distances, taken: Sequence[Code]) -> list[Code]:
    """Items of equal codes have one ID."""
    return list(codes)


RULES: Final[Mapping[str, Rule]] = {
    "counter": count_in_buckets,
    "nearest": move_to_nearest,
    "shared": share_ids,
}
"""By the value of ``tokens.collisions``."""
