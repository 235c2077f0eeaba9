"""Negatives: k wrong entries of the catalogue beside every training target; hard-negative mining.

    rows of an update -> NegativeSampler (with what the Miner found, where a model is asked)
                      -> rows with negatives: ``AddNegatives``, a row transform

The draw is a pure function of (seed, row, epoch) and of the pools, so that a resumed run and every
number of processes get the same negatives.  A leaf is a catalogue entry: two items with equal token
sequences are one entry.

Mining asks a model for its first wrong entries: with ``refresh = 0`` the parent, once for every row
that is trained on; with ``refresh = n`` the policy, every n updates.  The lists are stored, so that
a resumed run draws from the same ones, to the last bit.  (The last bits of a score depend on the
rows that are ranked together.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd

from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.data.negatives import owned_entries
from llmrec_cli.data.schema import DISLIKED, RATING, TARGET, USER, USER_ID
from llmrec_cli.errors import ArtefactError, DataError, RecipeError
from llmrec_cli.methods.contract import Negatives
from llmrec_cli.training.dataset import Sampler
from llmrec_cli.training.rows import AnyRow, Row
from llmrec_cli.utils.files import check_folder, read_json, write_folder, write_json

Lists = dict[int, list[list[int]]]  # row number -> for each target, entries best first
LISTS = "lists.json"
RankWrong = Callable[[Sequence[Row]], list[list[list[int]]]]
_AHEAD = 16  # updates whose rows the parent is asked about together
_STREAM = crc32(b"negatives")


@dataclass(frozen=True)
class Users:
    """What is known of each user, as entries."""

    names: Mapping[int, str]
    owned: Mapping[int, frozenset[int]]  # every entry of the user's training rows
    disliked: Mapping[int, tuple[int, ...]]  # ascending


def gather_users(
    train: pd.DataFrame, leaves: CatalogueEntries, below: float, valid: pd.DataFrame | None = None
) -> Users:
    """Gather the users of the training split; ratings may be absent (null).

    A user dislikes the entries in DISLIKED of the user's rows, without every entry that these rows
    show.  Where the split has no such column (nothing was dropped for its rating), a user dislikes
    the targets rated below ``below``.

    Args:
        valid: gives the disliked items of users who do not train.
    """
    owned = owned_entries([train], leaves.leaf_of_item_I)
    if DISLIKED in train.columns:
        frames = [train] if valid is None else [train, valid]
        disliked = {
            user: entries - owned.get(user, frozenset())
            for user, entries in _gather_recorded(frames, leaves).items()
        }
    else:
        disliked = _gather_badly_rated(train, leaves, below)
    return Users(
        {int(user): str(name) for user, name in zip(train[USER], train[USER_ID], strict=True)},
        owned,
        {user: tuple(sorted(entries)) for user, entries in disliked.items()},
    )


def require_scale(train: pd.DataFrame, below: float) -> None:
    """Refuse ratings that all count as dislikes: they are on another scale.

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


def _gather_recorded(
    frames: Sequence[pd.DataFrame], leaves: CatalogueEntries
) -> dict[int, set[int]]:
    """DISLIKED of each user, from the first of the frames that has the user."""
    columns = pd.concat([frame[[USER, DISLIKED]] for frame in frames]).drop_duplicates(USER)
    return {
        int(user): set(leaves.leaf_of_item_I[np.asarray(items, dtype=np.int64)].tolist())
        for user, items in zip(columns[USER], columns[DISLIKED], strict=True)
    }


def _gather_badly_rated(
    frame: pd.DataFrame, leaves: CatalogueEntries, below: float
) -> dict[int, set[int]]:
    disliked: dict[int, set[int]] = {}
    for user, target, rating in zip(frame[USER], frame[TARGET], frame[RATING], strict=True):
        if rating is not None and rating < below:
            disliked.setdefault(int(user), set()).add(int(leaves.leaf_of_item_I[target]))
    return disliked


class NegativeSampler:
    """Draw negatives for rows; see ``contract.Negatives`` for their sources."""

    def __init__(
        self, wanted: Negatives, leaves: CatalogueEntries, users: Users, seed: int
    ) -> None:
        self.wanted = wanted
        self.leaves = leaves
        self.users = users
        self.seed = seed
        counts = leaves.count_L.astype(np.float64)
        self._cumulative_L = np.cumsum(counts) / max(counts.sum(), 1.0)
        self._popular = int((counts > 0).sum())

    def usable(self, row: Row) -> bool:
        """Whether every target has k possible negatives, as far as the data alone show."""
        if self.wanted.draw == "disliked":
            return all(
                len(self._find_disliked(row, at)) >= self.wanted.k for at in range(len(row.targets))
            )
        entries = {"uniform": self.leaves.n_leaves, "popularity": self._popular}
        room = entries.get(self.wanted.draw, self.leaves.n_leaves)
        return room - len(self.list_owned(row)) >= self.wanted.k

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

    def describe_dropped(self, rows: Sequence[Row], usable: Sequence[Row]) -> tuple[str, ...]:
        """Lines on rows that ``require`` or ``usable_rows`` left out; none where there are none."""
        lost = len(rows) - len(usable)
        if not lost:
            return ()
        return (
            f"left out {lost:,} of {len(rows):,} rows: fewer than k = {self.wanted.k} possible "
            f"negatives ({self.wanted.draw})",
        )

    def usable_rows(self, rows: Sequence[Row]) -> list[Row]:
        """The validation rows that have enough negatives, unchanged.

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
            others: entries of the other targets of the global batch (``in-batch``).
            mined: for each target the model's first wrong entries (``model``).

        Raises:
            RecipeError: the batch, or the model's list, has fewer than k possible ones.
        """
        key = np.array([self.seed % 2**64, _STREAM], np.uint64)
        counter = np.array([0, 0, row.number % 2**64, epoch % 2**64], np.uint64)
        raw = np.random.Philox(key=key, counter=counter)
        banned = self.list_owned(row)
        drawn = (
            self._draw_leaves(row, at, banned, raw, others, mined[at] if len(mined) else ())
            for at in range(len(row.targets))
        )
        items = self.leaves.item_of_leaf_L
        return tuple(tuple(int(items[leaf]) for leaf in leaves) for leaves in drawn)

    def _draw_leaves(
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
                return self._draw_from_catalogue(banned, raw)
            case "disliked":
                return self._draw_from_pool(self._find_disliked(row, at), raw)
            case "in-batch":
                pool = sorted(set(others) - banned)
            case "model":
                pool = [leaf for leaf in mined if leaf not in banned][: self.wanted.pool]
        return self._draw_from_pool(pool, raw)

    def _draw_from_catalogue(self, banned: frozenset[int], raw: np.random.Philox) -> list[int]:
        found: dict[int, None] = {}
        for leaf in self._stream_leaves(raw):
            if leaf not in banned:
                found[leaf] = None
            if len(found) == self.wanted.k:
                break
        return list(found)

    def _stream_leaves(self, raw: np.random.Philox) -> Iterator[int]:
        """Endless entries, uniform or in proportion to their training counts."""
        while True:
            numbers = raw.random_raw(2 * self.wanted.k)
            if self.wanted.draw == "uniform":
                yield from (numbers % np.uint64(self.leaves.n_leaves)).tolist()
            else:
                at = np.searchsorted(self._cumulative_L, numbers / 2.0**64, side="right")
                yield from np.minimum(at, self.leaves.n_leaves - 1).tolist()

    def _draw_from_pool(self, pool: Sequence[int], raw: np.random.Philox) -> list[int]:
        if len(pool) < self.wanted.k:
            raise RecipeError(
                f"k = {self.wanted.k}: only {len(pool)} possible negatives ({self.wanted.draw}) "
                "for a training target; lower k, or raise train.batch or pool"
            )
        order = np.argsort(raw.random_raw(len(pool)), kind="stable")
        return [pool[place] for place in order[: self.wanted.k]]

    def list_owned(self, row: Row) -> frozenset[int]:
        """Entries that are never negatives: the user's in training, and the row's own."""
        own = np.asarray([*row.history, *row.targets], dtype=np.int64)
        known = self.users.owned.get(row.user, frozenset())
        return known | frozenset(self.leaves.leaf_of_item_I[own].tolist())

    def _find_disliked(self, row: Row, at: int) -> list[int]:
        """The user's disliked entries; not those of the row's history or target."""
        shown = np.asarray([*row.history, *row.targets[: at + 1]], dtype=np.int64)
        banned = set(self.leaves.leaf_of_item_I[shown].tolist())
        return [leaf for leaf in self.users.disliked.get(row.user, ()) if leaf not in banned]


class Miner:
    """Ranked wrong entries for the rows of an update.

    Args:
        rank_wrong: ranks the catalogue for every target of the rows, without the user's own
            entries; by the parent, or where ``refresh`` > 0 by the policy as it is then.
        rows: of the split; ``sampler`` gives their numbers.
        steps: updates of the whole run; no row after them is mined.
        refresh: updates between two minings; 0: the lists of a row stay for the whole run.
        folder: where the lists are stored.
        ahead: updates whose rows are mined together, where ``refresh`` is 0.
        writes: whether this process stores the lists; all processes mine together.
    """

    def __init__(
        self,
        rank_wrong: RankWrong,
        rows: Sequence[Row],
        sampler: Sampler,
        *,
        steps: int,
        refresh: int,
        folder: Path,
        ahead: int = _AHEAD,
        writes: bool = True,
    ) -> None:
        self.rank_wrong = rank_wrong
        self.rows = rows
        self.sampler = sampler
        self.steps = steps
        self.refresh = refresh
        self.folder = folder
        self.ahead = refresh or ahead
        self.writes = writes
        self._known: Lists = {}
        self._from: int | None = None

    def find_lists(self, rows: Sequence[Row], step: int) -> Lists:
        """The lists of these rows, which belong to update ``step``.

        Raises:
            ArtefactError: the stored lists are damaged, or one is missing.
        """
        begun = step - step % self.ahead
        if begun != self._from:
            all_count = self._from is None and not self.refresh  # a resumed run's earlier ones too
            for at in range(0 if all_count else begun, begun + 1, self.ahead):
                self._open_lists(at)
        lost = [row.number for row in rows if row.number not in self._known]
        if lost:
            raise ArtefactError(
                f"{self.folder}: nothing is written down for row {lost[0]}: of another run? "
                "delete the folder"
            )
        return {row.number: self._known[row.number] for row in rows}

    def _open_lists(self, begun: int) -> None:
        """Read or make the lists of the updates from ``begun`` on.

        Raises:
            ArtefactError: the stored lists are damaged.
        """
        known = {} if self.refresh else self._known
        path = self.folder / f"step-{begun}"
        if path.is_dir():
            check_folder(path)
            said = _read_lists(path / LISTS)
        else:
            said = self._ask_model(begun, known)
            if said and self.writes:
                write_folder(path, lambda temporary: write_json(temporary / LISTS, said))
        self._from, self._known = begun, known | said

    def _ask_model(self, begun: int, known: Lists) -> Lists:
        """Lists of the rows of the updates from ``begun`` on."""
        steps = range(begun, min(begun + self.ahead, self.steps))
        coming = [self.rows[n] for step in steps for n in self.sampler.numbers_of(step)]
        asked = {row.number: row for row in coming}
        fresh = [row for number, row in asked.items() if number not in known]
        answers = self.rank_wrong(fresh) if fresh else []
        return {row.number: lists for row, lists in zip(fresh, answers, strict=True)}


def _read_lists(path: Path) -> Lists:
    try:
        return {int(number): lists for number, lists in read_json(path).items()}
    except (AttributeError, ValueError):
        raise ArtefactError(f"{path}: not the lists that were written here") from None


@dataclass(frozen=True)
class DropUnusable:
    """A row transform that leaves out rows with too few possible negatives."""

    sampler: NegativeSampler
    runs_ahead: bool = True

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """The rows that have enough.

        Raises:
            DataError: none has.
        """
        return [*self.sampler.usable_rows(only_catalogue_rows(rows))]


@dataclass(frozen=True)
class AddNegatives:
    """A row transform: a pure function of rows, update and the mined lists.

    Mining asks a model on all processes together, so it cannot run ahead.
    """

    sampler: NegativeSampler
    rows: Sequence[Row]  # of the split: other targets of an update may be negatives
    order: Sampler  # which of them an update sees
    miner: Miner | None = None

    @property
    def runs_ahead(self) -> bool:
        return self.miner is None

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """The rows with negatives beside every target.

        Raises:
            RecipeError: the batch, or the model's list, has too few possible ones.
            ArtefactError: the stored lists are damaged.
        """
        known_rows = only_catalogue_rows(rows)
        mined = self.miner.find_lists(known_rows, step) if self.miner else {}
        in_batch = self._find_targets(step) if self.sampler.wanted.draw == "in-batch" else {}
        completed: list[AnyRow] = []
        for row in known_rows:
            negatives = self.sampler(
                row,
                self.order.epoch_of(step),
                others=[
                    leaf for number, own in in_batch.items() if number != row.number for leaf in own
                ],
                mined=mined.get(row.number, ()),
            )
            completed.append(replace(row, negatives=negatives))
        return completed

    def _find_targets(self, step: int) -> dict[int, list[int]]:
        """Target entries of every row of the global batch."""
        leaf_of_item_I = self.sampler.leaves.leaf_of_item_I
        rows = [self.rows[number] for number in self.order.numbers_of(step)]
        return {row.number: [int(leaf_of_item_I[item]) for item in row.targets] for row in rows}


def only_catalogue_rows(rows: Sequence[AnyRow]) -> list[Row]:
    """The rows that have items of the catalogue as targets."""
    return [row for row in rows if isinstance(row, Row)]
