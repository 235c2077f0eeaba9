"""Forest plots: a mean and its interval per line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from llmrec_cli.report.figures.axes import place_axes, room_for, rule, ticks
from llmrec_cli.report.figures.canvas import INK, PAPER, Look, Names, draw
from llmrec_cli.report.figures.svg import Words

WIDTH, LINE = 400.0, 21.0


@dataclass(frozen=True, slots=True)
class Whisker:
    """One line: a mean with its interval (NaN: unknown)."""

    name: str
    mean: float
    low: float
    high: float
    look: Look
    filled: bool = True


def forest(words: Words, lines: Sequence[Whisker], label: str, at: float | None) -> Markup:
    """Means and intervals, the first line on top.

    Args:
        label: of the axis.
        at: where a vertical line stands: the baseline's mean, or 0.
    """
    margins = (room_for([line.name for line in lines]), 12.0, 36.0, 6.0)

    def paint(figure: Figure, names: Names) -> None:
        axes = place_axes(figure, margins)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        if at is not None and math.isfinite(at):
            rule(axes, at)
            axes.axvline(at, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        for place, line in enumerate(lines):
            if math.isfinite(line.low + line.high):
                axes.plot([line.low, line.high], [place, place], color=line.look.colour)
            if not math.isfinite(line.mean):
                continue
            face = line.look.colour if line.filled else PAPER
            axes.plot(
                line.mean,
                place,
                marker=line.look.marker,
                color=line.look.colour,
                markerfacecolor=face,
                markersize=6,
                markeredgewidth=1.4,
                linestyle="none",
            )
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_yticks(range(len(lines)), [names.stand_in(line.name) for line in lines])
        axes.tick_params(axis="y", labelcolor=INK, pad=6)
        axes.margins(x=0.04)
        ticks(axes, "x", 5)
        axes.set_xlabel(label)

    height = margins[2] + margins[3] + LINE * len(lines)
    return draw(words, (WIDTH, height), paint)
