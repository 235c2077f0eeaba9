"""A verdict, and the words that verdicts are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmrec_cli.data.audit import Finding

Level = Literal["ok", "note", "warning"]
"""``note``: a reader of the results has to know it; ``warning``: figures may mislead."""

MUCH = 0.05  # of the rows: from here on a count that may mislead is a warning, below it a note


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check.  ``text`` holds nothing that comes from the data; ``examples`` do, as found."""

    check: str  # what was looked for, short: "targets in their own history"
    level: Level
    count: int | None  # cases; None: the check is not a count, or could not be made
    of: int | None
    text: str  # a few sentences: the figures, and what they mean
    examples: tuple[str, ...] = ()  # ids or titles
    figures: Mapping[str, float] = field(default_factory=dict)  # further ones, by what they are

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "check": self.check,
            "level": self.level,
            "count": self.count,
            "of": self.of,
            "text": self.text,
            "examples": list(self.examples),
            "figures": dict(self.figures),
        }


def raised(found: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """What a reader has to know: warnings, then notes."""
    return tuple(v for level in ("warning", "note") for v in found if v.level == level)


def level_of(found: Finding, least: Level = "ok") -> Level:
    """By the share of the rows; where there is a case at all, ``least`` or more."""
    if found["count"] and share(found) >= MUCH:
        return "warning"
    return "note" if found["count"] else least


def share(found: Finding) -> float:
    """Cases among all, [0, 1]; 0 of none."""
    return float(found["count"] / found["of"]) if found["of"] else 0.0


def part(found: Finding) -> str:
    """``2,842 of 4,383 (65 %)``."""
    return f"{found['count']:,} of {found['of']:,} ({percent(share(found))})"


def percent(fraction: float) -> str:
    """``65 %``; with a decimal where it matters, and neither 0 nor 100 unless it is."""
    value = 100 * fraction
    if 0 < value < 0.05:
        return "under 0.1 %"
    if 99.95 <= value < 100:
        return "over 99.9 %"
    whole = 9.95 <= value <= 99 or value in (0, 100)
    return f"{value:.0f} %" if whole else f"{value:.1f} %"


def examples_of(found: Sequence[Any]) -> tuple[str, ...]:
    """Examples as text; a semantic ID's tokens side by side."""
    return tuple("".join(e) if isinstance(e, list | tuple) else str(e) for e in found)
