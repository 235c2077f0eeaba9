"""The leaderboard of a sweep: all points, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeAlias

from llmrec_cli.config.training import Selection
from llmrec_cli.report.formatting import NONE
from llmrec_cli.report.tables import Sheet
from llmrec_cli.utils.text import clean_line

State: TypeAlias = Literal["complete", "pruned", "failed", "running"]
_ORDER: Mapping[State, int] = {"complete": 0, "running": 1, "pruned": 2, "failed": 3}
_HEAD = 40  # points that a terminal is shown


@dataclass(frozen=True)
class Tried:
    """One point of a sweep.

    Attributes:
        point: keys of the recipe to values as TOML text.
        figures: the best validation of each seed, a figure or a loss; empty where it did not come
            to its end.
        seconds: what it took, the shared runs that it had to make included.
    """

    point: Mapping[str, str]
    state: State
    figures: tuple[float, ...] = ()
    seconds: float | None = None
    failure: str | None = None

    @property
    def value(self) -> float | None:
        """Mean over seeds."""
        return fmean(self.figures) if self.figures else None


@dataclass(frozen=True)
class Board:
    """What a sweep has found."""

    run: str
    metric: str
    seeds: tuple[int, ...]
    tried: tuple[Tried, ...]
    wanted: int  # points
    selection: Selection  # what chose the checkpoints: a higher figure is better, a lower loss

    def rank_tried(self) -> list[Tried]:
        """The best first; among equals and without a figure, in the order of trial."""

        def place(row: Tried) -> tuple[int, float]:
            return _ORDER[row.state], -self.selection.turn(row.value or 0.0)

        return sorted(self.tried, key=place)

    @property
    def best(self) -> Tried | None:
        """The best point that came to its end."""
        done = [row for row in self.rank_tried() if row.value is not None]
        return done[0] if done else None


def board_json(board: Board, recipe: str) -> dict[str, Any]:
    """A board as plain values.

    Args:
        recipe: the file with the best point's recipe.
    """

    def row(tried: Tried) -> dict[str, Any]:
        return {
            "point": dict(tried.point),
            "state": tried.state,
            "value": tried.value,
            "figures": list(tried.figures),
            "seconds": tried.seconds,
            "failure": tried.failure,
        }

    return {
        "run": board.run,
        "metric": board.metric,
        "split": "valid",
        "seeds": list(board.seeds),
        "wanted": board.wanted,
        "trials": [row(tried) for tried in board.rank_tried()],
        "best": row(board.best) if board.best else None,
        "recipe": recipe,
    }


def board_sheet(board: Board) -> Sheet:
    """A board as a table: a line for each point."""
    ranked = board.rank_tried()
    keys = list(dict.fromkeys(key for row in ranked for key in row.point))
    several = len(board.seeds) > 1
    headings = ("#", *map(_shorten_key, keys), board.metric, *(["by seed"] if several else []))
    rows = [
        (
            (str(place),),
            *((clean_line(row.point.get(key, NONE)),) for key in keys),
            (_format_value(row),),
            *([tuple(f"{figure:.4f}" for figure in row.figures) or (NONE,)] if several else []),
            (row.state,),
            (_format_minutes(row),),
        )
        for place, row in enumerate(ranked[:_HEAD], start=1)
    ]
    failed = [row.failure for row in ranked if row.failure]
    more = f"; {len(ranked) - _HEAD} more in --json" if len(ranked) > _HEAD else ""
    why = f"; the last failure: {clean_line(failed[-1])}" if failed else ""
    return Sheet(
        title=f"sweep of {board.run}: {len(ranked)} of {board.wanted} points",
        headings=(*headings, "state", "minutes"),
        rows=tuple(rows),
        caption=f"{board.metric} of the best checkpoint on validation, mean over seeds "
        f"{', '.join(map(str, board.seeds))}; the test split was not looked at{more}{why}",
    )


def _shorten_key(key: str) -> str:
    """A key without the table that all keys of a sweep share."""
    parts = key.split(".")
    return ".".join(parts[2:]) if parts[0] in ("align", "baseline") and len(parts) > 2 else key


def _format_value(row: Tried) -> str:
    return NONE if row.value is None else f"{row.value:.4f}"


def _format_minutes(row: Tried) -> str:
    return NONE if row.seconds is None else f"{row.seconds / 60:.1f}"
