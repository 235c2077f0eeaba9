"""Small multiples: one entry's figures over groups of rows, all others behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from llmrec_cli.report.figures.axes import place_axes, ticks
from llmrec_cli.report.figures.canvas import FAINT, FONT, INK, Look, Names, draw
from llmrec_cli.report.figures.svg import Words
from llmrec_cli.report.statistics import Interval

Profile = Sequence[Interval]
SIZE = (172.0, 132.0)
ROOM = 21  # letters of all groups together


def profile(
    words: Words,
    name: str,
    own: Profile,
    others: Sequence[Profile],
    groups: Sequence[str],
    look: Look,
) -> Markup:
    """One entry in colour with its intervals, the others faint; equal scales for all entries.

    Args:
        groups: what stands below each; there is room for ``ROOM`` letters in all.
    """
    everything = [own, *others]
    highest = max(_top(interval) for one in everything for interval in one)

    def paint(figure: Figure, names: Names) -> None:
        axes = place_axes(figure, (26, 8, 20, 24))
        axes.grid(axis="y")
        xs = range(len(groups))
        for other in others:
            axes.plot(xs, [interval.mean for interval in other], color=FAINT, linewidth=1.2)
        for x, interval in zip(xs, own, strict=True):
            if math.isfinite(interval.low + interval.high):
                axes.plot([x, x], [interval.low, interval.high], color=look.colour, linewidth=1.2)
        means = [interval.mean for interval in own]
        axes.plot(xs, means, color=look.colour, marker=look.marker)
        axes.set_xlim(-0.3, len(groups) - 0.7)
        axes.set_ylim(0, highest * 1.04 or 1)
        axes.set_xticks(xs, groups, fontsize=FONT - 1.5)
        ticks(axes, "y", 3)
        axes.spines["left"].set_visible(False)
        axes.set_title(names.stand_in(name), loc="left", color=INK, x=-0.17)

    return draw(words, SIZE, paint)


def _top(interval: Interval) -> float:
    return interval.high if math.isfinite(interval.high) else interval.mean
