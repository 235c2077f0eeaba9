"""A history as somebody gives it: ids and titles, read as items of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from llmrec_cli.data.columns import ITEM_ID, TITLE
from llmrec_cli.data.matching import Finder
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.report.recommended import Told
from llmrec_cli.stage.workbench import Workbench


@dataclass(frozen=True)
class History:
    """The items of a history, oldest first."""

    items: tuple[int, ...]  # all of them, catalogue indices
    used: tuple[int, ...]  # the last ones, as many as the model takes
    told: tuple[Told, ...]
    notes: tuple[str, ...]


def read_history(
    bench: Workbench, finder: Finder, queries: Sequence[str], scored_by: ScoredBy, *, fuzzy: bool
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
    items = tuple(match.item for match in matches)
    used = items[-bench.recipe.data.history :]
    in_prompt = len(used)
    if scored_by in (ScoredBy.LOG_PROBABILITY, ScoredBy.PENALISED):
        in_prompt -= int(bench.encoder.encode_counted([used]).left_out_N[0])
    first_used = len(items) - in_prompt
    told = tuple(
        Told(
            match.query,
            *names_of(bench.prepared.items, match.item),
            similarity=match.similarity,
            used=place >= first_used,
        )
        for place, match in enumerate(matches)
    )
    return History(items, used, told, tuple(_list_notes(bench, items, in_prompt, scored_by)))


def names_of(items: pd.DataFrame, item: int) -> tuple[str, str | None]:
    """Id and title of a catalogue item; None where it is known by its semantic ID alone."""
    title = items[TITLE].iloc[item]
    return items[ITEM_ID].iloc[item], title if isinstance(title, str) else None


def _list_notes(
    bench: Workbench, items: Sequence[int], in_prompt: int, scored_by: ScoredBy
) -> Iterator[str]:
    data = bench.recipe.data
    if scored_by is ScoredBy.COUNT:
        yield "Pop recommends the same to everybody; a history is only left out"
    elif not items and scored_by is ScoredBy.SIMILARITY:
        yield "no history: nothing is similar to it, so the order is that of popularity"
    elif not items and data.min_history > 0:
        yield f"no history: the run was trained on histories of at least {data.min_history} items"
    if len(items) > data.history:
        yield f"{len(items)} items: the last {data.history} are used (data.history)"
    if in_prompt < min(len(items), data.history):
        yield f"the prompt has room for the last {in_prompt} items ({bench.encoder.why})"
