"""What a document consists of: sections of prose, tables and figures, as values.

Text is text: the template escapes it.  ``Markup`` is what this package drew itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from markupsafe import Markup

Tone = Literal["", "best", "quiet", "good", "bad"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: its first part, and smaller ones below it."""

    parts: tuple[str, ...]
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    text: str
    kind: Literal["prose"] = "prose"


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        label: what a screen reader calls it.
        prose: numbers of the columns that hold sentences rather than figures.
        folded: shown only when asked for, under the label.
    """

    label: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    prose: frozenset[int] = frozenset()
    folded: bool = False
    kind: Literal["table"] = "table"


def plain_table(
    label: str, headings: Sequence[str], rows: Iterable[Sequence[str]], prose: Sequence[int] = ()
) -> Table:
    """A folded table of one text per cell: the data behind a figure."""
    cells = tuple(tuple(Cell((text,)) for text in row) for row in rows)
    return Table(label, tuple(headings), cells, prose=frozenset(prose), folded=True)


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend."""

    swatch: Markup
    name: str


@dataclass(frozen=True, slots=True)
class Figure:
    """Pictures side by side, with the data behind them as a table."""

    panels: tuple[Markup, ...]
    caption: str
    data: Table
    legend: tuple[Key, ...] = ()
    size: Literal["half", "pair", "third", "small"] = "half"  # of a panel
    kind: Literal["figure"] = "figure"


Block: TypeAlias = "Prose | Table | Figure | Verdicts | Users"


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict of the audit."""

    level: Literal["ok", "note", "warning"]
    check: str
    text: str
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The audit of one prepared folder."""

    name: str  # empty: there is but one
    findings: tuple[Finding, ...]
    kind: Literal["verdicts"] = "verdicts"


@dataclass(frozen=True, slots=True)
class Line:
    """One place of a recommended list."""

    title: str
    mark: Literal["", "target", "seen"]


@dataclass(frozen=True, slots=True)
class Column:
    """One entry's list."""

    entry: str
    verdict: str  # "target at place 3"
    hit: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class User:
    """One user's history, target and lists."""

    place: int  # among the users shown, from 1
    name: str
    summary: str
    history: tuple[str, ...]
    target: str
    seen: str  # how often the target occurs in training
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Users:
    """Users one after the other."""

    users: tuple[User, ...]
    kind: Literal["users"] = "users"


@dataclass(frozen=True, slots=True)
class Section:
    """A numbered section; without blocks it is left out."""

    key: str  # its anchor
    title: str
    blocks: tuple[Block, ...]


def with_content(sections: Iterable[Section]) -> tuple[Section, ...]:
    """The sections that have something to show."""
    return tuple(section for section in sections if section.blocks)
