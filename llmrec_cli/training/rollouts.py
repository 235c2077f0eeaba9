"""Rollouts: at every update the policy names k entries of the catalogue for every target.

    rows of an update -> the policy as it is, on all processes together (``AskPolicy``)
                      -> rows with rollouts in place of targets: ``AddRollouts``, a row transform

A draw depends on (seed, row, target, update) and on the policy's probabilities alone, so nothing is
stored: a resumed run asks the same policy about the same rows and gets the same answers.  With
another number of processes other rows are ranked together, and the last bits of a score may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from llmrec_cli.errors import DataError
from llmrec_cli.methods.contract import Rollouts
from llmrec_cli.training.dataset import Sampler
from llmrec_cli.training.negatives import only_catalogue_rows
from llmrec_cli.training.rows import AnyRow, Row

AskPolicy = Callable[[Sequence[Row], Sequence[Sequence[int]]], list[list[list[int]]]]
"""(rows, a key for each of their targets) -> for each target k entries, best first or as drawn."""


@dataclass(frozen=True)
class AddRollouts:
    """A row transform: a pure function of rows, update and the policy's weights.

    All processes ask about the rows of the whole update together, so it cannot run ahead.

    Args:
        ask: the policy as it is now.
        rows: of the split.
        order: which of them an update sees.
        item_of_leaf_L: an item of each catalogue entry.
        split: its name; its rows are drawn for apart from those of others.
    """

    ask: AskPolicy
    rows: Sequence[Row]
    order: Sampler
    item_of_leaf_L: NDArray[np.integer[Any]]
    seed: int
    split: str
    runs_ahead: bool = False

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """The rows with k rollouts for every target."""
        asked = [self.rows[number] for number in self.order.numbers_of(step)]
        keys = [self._make_keys(row, step) for row in asked]
        answers = self.ask(asked, keys)
        known = {row.number: lists for row, lists in zip(asked, answers, strict=True)}
        return [
            replace(row, rollouts=tuple(map(self._name_items, known[row.number])))
            for row in only_catalogue_rows(rows)
        ]

    def _name_items(self, leaves: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.item_of_leaf_L[list(leaves)].tolist())

    def _make_keys(self, row: Row, step: int) -> list[int]:
        """A number below 2**63 for each target."""
        entropy = [self.seed % 2**64, crc32(self.split.encode()), row.number, step]
        drawn = np.random.SeedSequence(entropy).generate_state(len(row.targets), np.uint64)
        keys: list[int] = (drawn >> np.uint64(1)).tolist()
        return keys


def list_excluded(
    window: Row, wanted: Rollouts, leaf_of_item_I: NDArray[np.integer[Any]]
) -> list[int]:
    """Entries that may not be rollouts for the target of a window, ascending.

    The target may always be one, also where the user had it before.
    """
    if wanted.seen == "keep":
        return []
    history = np.asarray(window.history, dtype=np.int64)
    (target,) = window.targets
    return sorted({int(leaf) for leaf in leaf_of_item_I[history]} - {int(leaf_of_item_I[target])})


def require_rollouts(
    windows: Sequence[Row], wanted: Rollouts, leaf_of_item_I: NDArray[np.integer[Any]]
) -> None:
    """Refuse windows for which fewer than k entries may be rollouts.

    Raises:
        DataError: names the first, and how many entries it has.
    """
    n_leaves = int(leaf_of_item_I.max()) + 1
    short = (
        (window, n_leaves - gone)
        for window in windows
        if n_leaves - (gone := len(list_excluded(window, wanted, leaf_of_item_I))) < wanted.k
    )
    for window, left in islice(short, 1):
        raise DataError(
            f"k = {wanted.k}: a history of {len(window.history)} items leaves {left} of "
            f'{n_leaves} entries as rollouts; lower k, or set seen = "keep"'
        )
