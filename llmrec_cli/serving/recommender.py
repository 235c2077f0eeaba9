"""``Recommender``: a finished run that recommends, for programs; ``llmrec recommend`` uses it too.

from llmrec_cli import Recommender
recommender = Recommender.load("runs/quickstart/sft")
for item in recommender.recommend(["a title", "an item id"], k=10):
    print(item.rank, item.title, item.probability)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from llmrec_cli.data.catalog import CatalogueEntries, gather_entries
from llmrec_cli.data.histories import InteractionHistory
from llmrec_cli.data.matching import Finder, Match, items_of_user
from llmrec_cli.data.schema import ITEM_ID, TITLE
from llmrec_cli.errors import ArtefactError, DataError
from llmrec_cli.evaluation.predictions import to_jsonable
from llmrec_cli.models.base import RankedLists, Ranker, ScoredBy
from llmrec_cli.pipeline.loading import load_ranker
from llmrec_cli.pipeline.setup import CatalogueContext
from llmrec_cli.serving.finished import Device, FinishedRun, open_finished, open_finished_context
from llmrec_cli.tensors.trie import paths
from llmrec_cli.utils.text import clean_line

# Recommendations for one history, as values and as text.


@dataclass(frozen=True, slots=True)
class MatchedItem:
    """An item of a history: what was asked, and what it was taken for."""

    query: str  # as it was asked
    item_id: str  # of the item that it was taken for
    title: str | None  # None: the catalogue has semantic IDs and no titles
    similarity: float  # 1: its id or title; below: a title like it
    used: bool  # False: too far back for the model to be told of it


@dataclass(frozen=True, slots=True)
class Recommended:
    """One recommended catalogue entry."""

    rank: int  # from 1
    item_id: str  # as the raw file has it
    title: str | None  # None: the catalogue has semantic IDs and no titles
    score: float  # the higher the better; ``scored_by`` of the list says what it is
    probability: float | None  # over the whole catalogue, the history included; None: has none
    log_probability: float | None  # nats
    same_entry: tuple[str, ...]  # ids of other items that the model cannot tell from this one


@dataclass(frozen=True, slots=True)
class Recommendations:
    """A list for one history, best first."""

    history: tuple[MatchedItem, ...]  # oldest first
    items: tuple[Recommended, ...]  # best first; iterating over the list gives them
    scored_by: ScoredBy  # what a score is
    notes: tuple[str, ...]  # what a reader has to know, one line each

    def __iter__(self) -> Iterator[Recommended]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def recommendations_to_json(found: Recommendations) -> dict[str, Any]:
    """For ``json.dump``."""
    plain_values: dict[str, Any] = to_jsonable(asdict(found))
    return plain_values


def recommendations_to_lines(found: Recommendations) -> list[str]:
    """As plain lines."""
    lines = [*_history_lines(found), f"recommended, by {_score_heading(found)}"]
    width = len(str(len(found.items)))
    for item in found.items:
        name = _format_item(item.item_id, item.title) + _format_others(item)
        lines.append(f"  {item.rank:>{width}}  {_format_score(found, item)}  {name}")
    return lines + [f"note: {clean_line(note)}" for note in found.notes]


def recommendations_to_tables(found: Recommendations) -> list[Table | Text]:
    """For a terminal; titles are shown, never interpreted."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", justify="right")
    table.add_column(_score_heading(found), justify="right", no_wrap=True)
    table.add_column("item")
    table.add_column("id", overflow="fold")
    for item in found.items:
        title = clean_line(item.title or "-") + _format_others(item)
        cells = (str(item.rank), _format_score(found, item), title, clean_line(item.item_id))
        table.add_row(*map(Text, cells))
    notes = [Text(f"note: {clean_line(note)}") for note in found.notes]
    return [*map(Text, _history_lines(found)), table, *notes]


def _history_lines(found: Recommendations) -> list[str]:
    if not found.history:
        return []
    count = "1 item" if len(found.history) == 1 else f"{len(found.history)} items, oldest first"
    return [f"history: {count}", *(f"  {_describe_match(told)}" for told in found.history)]


def _score_heading(found: Recommendations) -> str:
    has = found.items and found.items[0].probability is not None
    return "probability" if has else str(found.scored_by)


def _format_score(found: Recommendations, item: Recommended) -> str:
    if item.probability is not None:
        return f"{item.probability:.4f}" if item.probability >= 1e-4 else f"{item.probability:.1e}"
    return f"{item.score:.0f}" if found.scored_by is ScoredBy.COUNT else f"{item.score:.4f}"


def _describe_match(told: MatchedItem) -> str:
    """``"hobit" -> The Hobbit [id] (0.91)`` where something else was typed."""
    name = _format_item(told.item_id, told.title)
    if told.query not in (told.item_id, told.title):
        name = f'"{clean_line(told.query)}" -> {name} (similarity {told.similarity:.2f})'
    return name if told.used else f"{name} - too far back to be used"


def _format_item(item_id: str, title: str | None) -> str:
    return clean_line(item_id) if title is None else f"{clean_line(title)} [{clean_line(item_id)}]"


def _format_others(item: Recommended) -> str:
    others = ", ".join(map(clean_line, item.same_entry))
    return f" (the same to the model: {others})" if others else ""


# ``Recommender``: recommend with a finished run, from Python or ``llmrec recommend``.
#
# from llmrec_cli import Recommender
# recommender = Recommender.load("runs/quickstart/sft")
# for item in recommender.recommend(["a title", "an item id"], k=10):
#     print(item.rank, item.title, item.probability)


# A history as the user types it: ids and titles, matched to catalogue items.


_READS_PROMPTS = (ScoredBy.LOG_PROBABILITY, ScoredBy.PENALISED, ScoredBy.JOINED)


@dataclass(frozen=True)
class History:
    """The items of a history, oldest first."""

    items: Sequence[int]  # all of them, catalogue indices
    used: Sequence[int]  # the last ones, as many as the model takes
    told: tuple[MatchedItem, ...]
    notes: tuple[str, ...]


def read_history(
    context: CatalogueContext,
    finder: Finder,
    queries: Sequence[str],
    scored_by: ScoredBy,
    *,
    fuzzy: bool,
) -> History:
    """Look every item up, and see how many of them the run takes.

    Args:
        queries: item ids or titles, oldest first.
        scored_by: by what the run ranks.

    Raises:
        TypeError: one string in place of many.
        DataError: an item is not found, or the prompt has no room for any.
    """
    if isinstance(queries, str):
        raise TypeError(f"history = {queries!r}: expected a list of ids or titles")
    matches = [finder.find(query, fuzzy=fuzzy) for query in queries]
    return describe_history(context, matches, [match.item for match in matches], scored_by)


def describe_history(
    context: CatalogueContext,
    matches: Sequence[Match],
    items: Sequence[int],
    scored_by: ScoredBy,
) -> History:
    """See how many items of a history the run takes.

    Args:
        matches: of each item, oldest first.
        items: the same items, with what is known of the interactions.
        scored_by: by what the run ranks.

    Raises:
        DataError: the prompt has no room for any item.
    """
    used = items[-context.recipe.data.history :]
    in_prompt = len(used)
    if scored_by in _READS_PROMPTS:
        in_prompt -= int(context.encoder.encode_counted([used]).left_out_N[0])
    first_used = len(items) - in_prompt
    told = tuple(
        MatchedItem(
            match.query,
            *name_item(context.prepared.items, match.item),
            similarity=match.similarity,
            used=place >= first_used,
        )
        for place, match in enumerate(matches)
    )
    return History(items, used, told, tuple(_list_notes(context, items, in_prompt, scored_by)))


def name_item(items: pd.DataFrame, item: int) -> tuple[str, str | None]:
    """Id and title of a catalogue item; None where it is known by its semantic ID alone."""
    title = items[TITLE].iloc[item]
    return items[ITEM_ID].iloc[item], title if isinstance(title, str) else None


def _list_notes(
    context: CatalogueContext, items: Sequence[int], in_prompt: int, scored_by: ScoredBy
) -> Iterator[str]:
    data = context.recipe.data
    if scored_by is ScoredBy.COUNT:
        yield "Pop recommends the same to everybody; a history is only left out"
    elif not items and scored_by is ScoredBy.SIMILARITY:
        yield "no history: nothing is similar to it, so the order is that of popularity"
    elif not items and data.min_history > 0:
        yield f"no history: the run's data have histories of at least {data.min_history} items"
    if len(items) > data.history:
        yield f"{len(items)} items: the last {data.history} are used (data.history)"
    if items and scored_by in _READS_PROMPTS:
        yield from _list_unknown_fields(context, items)
    if in_prompt < min(len(items), data.history):
        yield f"the prompt has room for the last {in_prompt} items ({context.encoder.why})"


def _list_unknown_fields(context: CatalogueContext, items: Sequence[int]) -> Iterator[str]:
    """What the run's prompts show of interactions, and that of typed items does not."""
    template = context.encoder.template
    if template is None or isinstance(items, InteractionHistory):
        return
    if unknown := " and ".join(f"{{{name}}}" for name in template.interaction_fields):
        yield (
            f"the prompt shows no {unknown}, as it did in training: of items that are typed, "
            "nothing is known but the items"
        )


def _explain_short_list(k: int, size: int, left_out: int) -> str:
    """Why a list cannot have ``k`` entries.

    Args:
        size: entries of the catalogue.
        left_out: how many of them are left out, because they are in the history.
    """
    text = f"{size - left_out:,} of {k:,} entries: the catalogue has {size:,}"
    return text + (f", and {left_out:,} of the history are left out" if left_out else "")


@dataclass(frozen=True)
class Recommender:
    """A finished run that recommends; ``load`` opens one."""

    finished: FinishedRun
    context: CatalogueContext
    leaves: CatalogueEntries
    finder: Finder
    ranker: Ranker

    @classmethod
    def load(
        cls, run: str | Path, *, overrides: Iterable[str] = (), device: Device = "auto"
    ) -> Recommender:
        """Open the folder of a finished run: a language model's or a conventional one's.

        The folder may have been moved with its experiment; nothing is written.

        Args:
            run: the run's folder, such as ``runs/quickstart/align-msl``.
            overrides: ``key=value`` over its recipe, such as ``eval.decode.temperature=2``.
            device: "auto" takes a GPU where there is one.

        Returns:
            The run, ready to recommend; several can be open at once.  Of a catalogue that has got
            further items since (``llmrec tokenize --append``), it recommends the old ones.

        Raises:
            ArtefactError: no finished run, damaged, or its prepared data are not beside it.
            MachineError: no such device, or a package is missing.
        """
        finished = open_finished(run, overrides)
        if not finished.recipe.task.ranks_catalogue:
            raise ArtefactError(
                f'{run}: its task is "{finished.recipe.task.name}", which ranks two given items: '
                'expected a run of task "generate"'
            )
        context = open_finished_context(finished, device, earlier=True)
        items = context.prepared.items
        leaves = gather_entries(items, context.leaf_of_item)
        ranker = load_ranker(context, leaves, finished.run)
        return cls(finished, context, leaves, Finder(items, context.prepared.newer), ranker)

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude_history: bool = True,
        fuzzy: bool = True,
    ) -> Recommendations:
        """The ``k`` entries of the catalogue that suit a history best.

        Where the run's prompts show ratings or times of interactions, that of this history shows
        none: they are not known of items that are given here.  ``notes`` says so.

        Args:
            history: item ids or titles, oldest first; may be empty.
            k: length of the list, at least 1.
            exclude_history: leave out what is in the history.  Probabilities are those over the
                whole catalogue all the same.
            fuzzy: a title may be given in part or with mistakes; see ``history`` of the result.

        Returns:
            The entries, best first, with scores and probabilities; and what every item of the
            history was taken for.

        Raises:
            DataError: an item is not found (the message names the nearest ones), or k < 1.
        """
        return self.recommend_many([history], k, exclude_history=exclude_history, fuzzy=fuzzy)[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_history: bool = True,
        fuzzy: bool = True,
    ) -> list[Recommendations]:
        """``recommend`` for many histories, decoded together: much faster than one by one.

        Args:
            histories: item ids or titles of each, oldest first.
            k: length of each list, at least 1.
            exclude_history: leave out of each list what is in its history.
            fuzzy: titles may be given in part or with mistakes.

        Returns:
            A list for each history, in their order.

        Raises:
            DataError: as ``recommend``.
        """
        read = [
            read_history(self.context, self.finder, history, self.ranker.scored_by, fuzzy=fuzzy)
            for history in histories
        ]
        return self._recommend_behind(read, k, exclude_history=exclude_history)

    def _recommend_behind(
        self, read: Sequence[History], k: int, *, exclude_history: bool
    ) -> list[Recommendations]:
        """A list for each history.

        Raises:
            DataError: k < 1.
        """
        if k < 1:
            raise DataError(f"k = {k}: expected at least 1")
        leaf_of_item = self.leaves.leaf_of_item_I
        seen = [
            sorted({int(leaf_of_item[item]) for item in one.items}) if exclude_history else []
            for one in read
        ]
        found = self.ranker.rank([one.used for one in read], k, seen)
        log_BK = self._find_log_probabilities(found)
        return [
            self._show(
                one,
                found.leaf_BK[row, kept].tolist(),
                found.score_BK[row, kept].tolist(),
                None if log_BK is None else log_BK[row, kept].tolist(),
                k,
                len(seen[row]),
            )
            for row, (one, kept) in enumerate(zip(read, found.places_outside(seen, k), strict=True))
        ]

    def recommend_to(
        self, user_id: str, k: int = 10, *, exclude_history: bool = True
    ) -> Recommendations:
        """What comes next for a user of the prepared data, after everything that is known of them.

        Ratings and times of these interactions stand in the prompt, if the run's prompts show them.

        Args:
            user_id: as the raw file has it.
            k: length of the list, at least 1.
            exclude_history: leave out what the user has.

        Returns:
            As ``recommend``; ``notes`` says how much is known of the user.

        Raises:
            DataError: no such user; the message names the nearest ids.
        """
        items, newer = self._read_user(user_id)
        ids = self.context.prepared.items[ITEM_ID]
        matches = [Match(ids.iloc[item], item, similarity=1.0) for item in items]
        history = describe_history(self.context, matches, items, self.ranker.scored_by)
        [found] = self._recommend_behind([history], k, exclude_history=exclude_history)
        note = f"user {user_id}: {len(items) + newer} items in the prepared data, over all splits"
        if newer:
            are = "is" if newer == 1 else "are"
            note += f"; {newer} of them {are} newer than the run, and left out"
        return replace(found, notes=(note, *found.notes))

    def history_of(self, user_id: str) -> list[str]:
        """What a user of the prepared data has, over all splits.

        Args:
            user_id: as the raw file has it.

        Returns:
            Item ids, oldest first, of those that the run knows.

        Raises:
            DataError: no such user; the message names the nearest ids.
        """
        items, _ = self._read_user(user_id)
        ids: list[str] = self.context.prepared.items[ITEM_ID].iloc[list(items)].tolist()
        return ids

    def _read_user(self, user_id: str) -> tuple[Sequence[int], int]:
        """A user's items as the run knows them, and how many it does not know."""
        found = items_of_user(self.context.prepared, user_id)
        place_I = self.context.prepared.place_I
        if place_I is None:
            return found, 0
        place_H = place_I[np.asarray(found, dtype=np.int64)]
        known_H = place_H >= 0
        newer = int((~known_H).sum())
        if isinstance(found, InteractionHistory):
            return found.select(known_H, place_H), newer
        return place_H[known_H].tolist(), newer

    def _find_log_probabilities(self, found: RankedLists) -> NDArray[np.float32] | None:
        """Of each place of the lists, nats; None: the model has none."""
        scored_by = self.ranker.scored_by
        if scored_by is ScoredBy.LOG_PROBABILITY:
            return found.score_BK
        if scored_by is not ScoredBy.PENALISED:
            return None
        leaf_P = torch.from_numpy(found.leaf_BK).clamp_min(0).flatten().to(self.context.trie.device)
        length_BK = paths(self.context.trie, leaf_P)[2].view(found.leaf_BK.shape).cpu()
        penalty = self.context.recipe.eval.decode.length_penalty
        log_BK: NDArray[np.float32] = (
            torch.from_numpy(found.score_BK) * length_BK**penalty
        ).numpy()
        return log_BK

    def _show(
        self,
        history: History,
        leaf_K: Sequence[int],
        score_K: Sequence[float],
        log_K: Sequence[float] | None,
        k: int,
        left_out: int,
    ) -> Recommendations:
        """The list of one history.

        Args:
            leaf_K, score_K, log_K: of its places, best first; K may be less than ``k``.
            k: how many entries were asked for.
            left_out: how many entries of the history are no candidates.
        """
        logs = repeat(None) if log_K is None else log_K
        places = zip(leaf_K, score_K, logs, strict=False)
        items = tuple(
            self._describe_entry(rank, *place) for rank, place in enumerate(places, start=1)
        )
        notes, size = (*self._list_newer(), *history.notes), self.leaves.n_leaves
        if size - left_out < k:
            notes = (*notes, _explain_short_list(k, size, left_out))
        if len(items) < min(k, size - left_out):
            notes = (*notes, f"the beam found {len(items)} entries; widen eval.decode.beams")
        return Recommendations(history.told, items, self.ranker.scored_by, notes)

    def _list_newer(self) -> Iterator[str]:
        place_I = self.context.prepared.place_I
        newer = 0 if place_I is None else int((place_I < 0).sum())
        if newer:
            items = "1 item that is" if newer == 1 else f"{newer:,} items that are"
            yield f"the catalogue has {items} newer than the run: it knows none"

    def _describe_entry(
        self, rank: int, leaf: int, score: float, log_probability: float | None
    ) -> Recommended:
        catalogue, trie = self.context.prepared.items, self.context.trie
        item = int(self.leaves.item_of_leaf_L[leaf])
        first, last = trie.item_start_L1[leaf : leaf + 2].tolist()
        others = [other for other in trie.item_order_I[first:last].tolist() if other != item]
        return Recommended(
            rank,
            *name_item(catalogue, item),
            score=score,
            probability=None if log_probability is None else math.exp(log_probability),
            log_probability=log_probability,
            same_entry=tuple(catalogue[ITEM_ID].iloc[others]),
        )
