"""Negatives: k wrong entries of the catalogue beside every training target.

Which ones is a pure function of (seed, row, epoch) and of the pools they are drawn from, so that a
resumed run and every number of processes see the same.  Leaves stand for catalogue entries: two
items with equal token sequences are one entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.columns import DISLIKED, RATING, TARGET, USER, USER_ID
from llmrec_cli.data.leaves import Leaves
from llmrec_cli.data.negatives import owned_entries
from llmrec_cli.engine.rows import Row
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.methods.contract import Negatives

Ints = NDArray[np.int64]
_STREAM = crc32(b"negatives")


@dataclass(frozen=True)
class Users:
    """What is known of each user, as leaves."""

    names: Mapping[int, str]
    owned: Mapping[int, frozenset[int]]  # every entry of the user's training rows
    disliked: Mapping[int, tuple[int, ...]]  # ascending


def users_of(
    train: pd.DataFrame, leaves: Leaves, below: float, valid: pd.DataFrame | None = None
) -> Users:
    """Gather the users of the training split; ratings may be absent (null).

    What a user disliked is the DISLIKED of his or her rows, less every entry that these rows show;
    where the split has no such column (nothing was dropped for its rating), the targets rated below
    ``below``.

    Args:
        valid: gives the disliked items of users who do not train.
    """
    owned = owned_entries([train], leaves.leaf_of_item_I)
    if DISLIKED in train.columns:
        frames = [train] if valid is None else [train, valid]
        disliked = {
            user: entries - owned.get(user, frozenset())
            for user, entries in _recorded(frames, leaves).items()
        }
    else:
        disliked = _badly_rated(train, leaves, below)
    return Users(
        {int(user): str(name) for user, name in zip(train[USER], train[USER_ID], strict=True)},
        owned,
        {user: tuple(sorted(entries)) for user, entries in disliked.items()},
    )


def require_scale(train: pd.DataFrame, below: float) -> None:
    """Refuse ratings of which every one counts as a dislike: they are on another scale.

    Args:
        train: the training split; ratings may be absent (null).
        below: ratings under it are dislikes, where the split has no DISLIKED.

    Raises:
        RecipeError: there are ratings, and all are under ``below``.
    """
    highest = train[RATING].max()
    if DISLIKED not in train.columns and highest < below:
        raise RecipeError(
            f'negatives = "disliked": below = {below:g}, and no training target is rated higher '
            f"than {highest:g}, so that all are disliked; set below on the scale of the ratings"
        )


def _recorded(frames: Sequence[pd.DataFrame], leaves: Leaves) -> dict[int, set[int]]:
    """What DISLIKED says of each user, in the first of the frames that has the user."""
    columns = pd.concat([frame[[USER, DISLIKED]] for frame in frames]).drop_duplicates(USER)
    return {
        int(user): set(leaves.leaf_of_item_I[np.asarray(items, dtype=np.int64)].tolist())
        for user, items in zip(columns[USER], columns[DISLIKED], strict=True)
    }


def _badly_rated(frame: pd.DataFrame, leaves: Leaves, below: float) -> dict[int, set[int]]:
    disliked: dict[int, set[int]] = {}
    for user, target, rating in zip(frame[USER], frame[TARGET], frame[RATING], strict=True):
        if rating is not None and rating < below:
            disliked.setdefault(int(user), set()).add(int(leaves.leaf_of_item_I[target]))
    return disliked


class NegativeSampler:
    """Draws negatives for rows; see ``contract.Negatives`` for where they come from."""

    def __init__(self, wanted: Negatives, leaves: Leaves, users: Users, seed: int) -> None:
        self.wanted = wanted
        self.leaves = leaves
        self.users = users
        self.seed = seed
        counts = leaves.count_L.astype(np.float64)
        self._cumulative_L = np.cumsum(counts) / max(counts.sum(), 1.0)
        self._popular = int((counts > 0).sum())

    def usable(self, row: Row) -> bool:
        """Whether every target has k possible negatives, as far as the data alone decide it."""
        if self.wanted.draw == "disliked":
            return all(
                len(self._disliked(row, at)) >= self.wanted.k for at in range(len(row.targets))
            )
        entries = {"uniform": self.leaves.n_leaves, "popularity": self._popular}
        room = entries.get(self.wanted.draw, self.leaves.n_leaves)
        return room - len(self.owned(row)) >= self.wanted.k

    def require(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that have enough negatives, renumbered; all of them unless ``short = "drop"``.

        Raises:
            DataError: a row has too few (names the user), or none is left.
        """
        usable = [row for row in rows if self.usable(row)]
        if rows and not usable and self.wanted.short == "drop":
            raise DataError(
                f"none of {len(rows):,} training rows has k = {self.wanted.k} possible negatives "
                f"({self.wanted.draw}); lower k, or choose other negatives"
            )
        if len(usable) < len(rows) and self.wanted.short == "error":
            first = next(row for row in rows if not self.usable(row))
            raise DataError(
                f"user {self.users.names.get(first.user, first.user)!r}: fewer than k = "
                f"{self.wanted.k} possible negatives ({self.wanted.draw}); lower k, choose other "
                'negatives, or set short = "drop"'
            )
        return [replace(row, number=number) for number, row in enumerate(usable)]

    def dropped(self, rows: Sequence[Row], usable: Sequence[Row]) -> tuple[str, ...]:
        """What to say of rows that ``require`` or ``usable_rows`` left out; nothing of none."""
        lost = len(rows) - len(usable)
        if not lost:
            return ()
        return (
            f"left out {lost:,} of {len(rows):,} rows: fewer than k = {self.wanted.k} possible "
            f"negatives ({self.wanted.draw})",
        )

    def usable_rows(self, rows: Sequence[Row]) -> list[Row]:
        """The validation rows that have enough negatives, as they are.

        Raises:
            DataError: none has.
        """
        usable = [row for row in rows if self.usable(row)]
        if not usable:
            raise DataError(
                f"none of {len(rows):,} validation rows has k = {self.wanted.k} possible negatives "
                f"({self.wanted.draw}); lower k, choose other negatives, or validate on more rows"
            )
        return usable

    def __call__(
        self,
        row: Row,
        epoch: int,
        *,
        others: Sequence[int] = (),
        mined: Sequence[Sequence[int]] = (),
    ) -> tuple[tuple[int, ...], ...]:
        """k distinct negatives for each target of ``row``, as catalogue indices.

        Args:
            others: leaves of the other targets of the global batch (``in-batch``).
            mined: for each target the model's first wrong leaves (``model``).

        Raises:
            RecipeError: the batch, or the model's list, has fewer than k possible ones.
        """
        key = np.array([self.seed % 2**64, _STREAM], np.uint64)
        counter = np.array([0, 0, row.number % 2**64, epoch % 2**64], np.uint64)
        raw = np.random.Philox(key=key, counter=counter)
        banned = self.owned(row)
        drawn = (
            self._draw(row, at, banned, raw, others, mined[at] if len(mined) else ())
            for at in range(len(row.targets))
        )
        items = self.leaves.item_of_leaf_L
        return tuple(tuple(int(items[leaf]) for leaf in leaves) for leaves in drawn)

    def _draw(
        self,
        row: Row,
        at: int,
        banned: frozenset[int],
        raw: np.random.Philox,
        others: Sequence[int],
        mined: Sequence[int],
    ) -> list[int]:
        match self.wanted.draw:
            case "uniform" | "popularity":
                return self._from_catalogue(banned, raw)
            case "disliked":
                return self._from_pool(self._disliked(row, at), raw)
            case "in-batch":
                pool = sorted(set(others) - banned)
            case "model":
                pool = [leaf for leaf in mined if leaf not in banned][: self.wanted.pool]
        return self._from_pool(pool, raw)

    def _from_catalogue(self, banned: frozenset[int], raw: np.random.Philox) -> list[int]:
        found: dict[int, None] = {}
        for leaf in self._stream(raw):
            if leaf not in banned:
                found[leaf] = None
            if len(found) == self.wanted.k:
                break
        return list(found)

    def _stream(self, raw: np.random.Philox) -> Iterator[int]:
        """Endless leaves, uniform or in proportion to their training counts."""
        while True:
            numbers = raw.random_raw(2 * self.wanted.k)
            if self.wanted.draw == "uniform":
                yield from (numbers % np.uint64(self.leaves.n_leaves)).tolist()
            else:
                at = np.searchsorted(self._cumulative_L, numbers / 2.0**64, side="right")
                yield from np.minimum(at, self.leaves.n_leaves - 1).tolist()

    def _from_pool(self, pool: Sequence[int], raw: np.random.Philox) -> list[int]:
        if len(pool) < self.wanted.k:
            raise RecipeError(
                f"k = {self.wanted.k}: only {len(pool)} possible negatives ({self.wanted.draw}) "
                "for a training target; lower k, or raise train.batch or pool"
            )
        order = np.argsort(raw.random_raw(len(pool)), kind="stable")
        return [pool[place] for place in order[: self.wanted.k]]

    def owned(self, row: Row) -> frozenset[int]:
        """What can never be a negative: all of the user's training entries and the row's own."""
        own = np.asarray([*row.history, *row.targets], dtype=np.int64)
        known = self.users.owned.get(row.user, frozenset())
        return known | frozenset(self.leaves.leaf_of_item_I[own].tolist())

    def _disliked(self, row: Row, at: int) -> list[int]:
        """The user's disliked entries; those in the row's own history or at its target are out."""
        shown = np.asarray([*row.history, *row.targets[: at + 1]], dtype=np.int64)
        banned = set(self.leaves.leaf_of_item_I[shown].tolist())
        return [leaf for leaf in self.users.disliked.get(row.user, ()) if leaf not in banned]
