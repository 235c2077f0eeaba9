"""What a run recommends to one history, as values, and how a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from llmrec_cli.evaluation.predictions import to_jsonable
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.utils.text import clean_line


@dataclass(frozen=True, slots=True)
class Told:
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

    history: tuple[Told, ...]  # oldest first
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


def _describe_match(told: Told) -> str:
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
