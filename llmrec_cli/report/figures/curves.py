"""Curves over updates: one run's losses and validations, or one figure of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmrec_cli.report.figures.axes import is_wide, place_axes, rule, ticks
from llmrec_cli.report.figures.canvas import INK, PAPER, QUIET, SERIES, Dash, Look, Names, draw
from llmrec_cli.report.figures.svg import Words

_HEADING = 52  # characters
_FEW = 24  # points that are marked one by one; of more, some are


@dataclass(frozen=True, slots=True)
class Line:
    """One curve."""

    xs: Sequence[float]
    ys: Sequence[float]
    look: Look
    width: float = 1.6
    marked: bool = True


def curves(words: Words, lines: Sequence[Line], heading: str) -> Markup:
    """Curves in one picture; a logarithmic scale where they differ by orders of magnitude.

    Args:
        heading: what the vertical axis shows.
    """

    def paint(figure: Figure, names: Names) -> None:
        axes = place_axes(figure, (40, 10, 34, 24))
        axes.set_title(names.stand_in(heading, _HEADING), loc="left", color=INK, x=-0.1)
        axes.grid(axis="y")
        for line in lines:
            _draw_line(axes, line)
        if is_wide([y for line in lines for y in line.ys]):
            axes.set_yscale("log")
        _finish(axes)
        axes.set_xlabel("updates")

    return draw(words, (320, 200), paint)


@dataclass(frozen=True, slots=True)
class Training:
    """One entry's training: a loss and its validation, and what checkpoints were chosen by."""

    name: str
    losses: Sequence[Line]  # of each seed
    valid_losses: Sequence[Line]
    scores: Sequence[Line]
    best: Sequence[int]  # updates of the checkpoints that were kept
    score_limits: tuple[float, float]  # shared by all entries


def training(words: Words, found: Training) -> Markup:
    """Losses above, the validation metric below, checkpoints as vertical lines."""

    def paint(figure: Figure, names: Names) -> None:
        upper = place_axes(figure, (34, 8, 104 if found.scores else 32, 24))
        upper.set_title(names.stand_in(found.name), loc="left", color=INK, x=-0.24)
        parts = [(upper, [*found.losses, *found.valid_losses])]
        if found.scores:
            lower = place_axes(figure, (34, 8, 32, 126))
            lower.set_ylim(*found.score_limits)
            lower.sharex(upper)
            upper.tick_params(axis="x", labelbottom=False)
            parts.append((lower, list(found.scores)))
        for axes, lines in parts:
            axes.grid(axis="y")
            for step in found.best:
                rule(axes, step)
            for line in lines:
                _draw_line(axes, line, size=3)
        for axes, _ in parts:
            _finish(axes, most=2)
        parts[-1][0].set_xlabel("updates")

    return draw(words, (172, 214 if found.scores else 140), paint)


def swatch(key: str, look: Look, *, line: bool = True, filled: bool = True) -> Markup:
    """A series' look, for a legend."""

    def paint(figure: Figure, names: Names) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 28)
        axes.set_ylim(0, 12)
        if line:
            axes.plot([1, 27], [6, 6], color=look.colour, linestyle=look.dash, clip_on=False)
        face = look.colour if filled else PAPER
        if look.marker:
            axes.plot(14, 6, marker=look.marker, color=look.colour, markerfacecolor=face, ms=5.5)

    return draw(Words(key, "", ""), (28, 12), paint)


PLAIN: Dash = (0, ())
LOSS = Look(QUIET, PLAIN, "")
VALID_LOSS = Look(SERIES[1], (0, (4, 2)), "s")
SCORE = Look(SERIES[0], PLAIN, "o")


def _draw_line(axes: Axes, line: Line, size: float = 3.6) -> None:
    every = max(1, len(line.xs) // _FEW)
    axes.plot(
        line.xs,
        line.ys,
        color=line.look.colour,
        linestyle=line.look.dash,
        linewidth=line.width,
        marker=line.look.marker if line.marked else "",
        markevery=every,
        markersize=size,
        clip_on=False,
    )


def _finish(axes: Axes, most: int = 4) -> None:
    axes.set_xlim(left=0)
    ticks(axes, "x", most, whole=True)
    ticks(axes, "y", most)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(INK)
