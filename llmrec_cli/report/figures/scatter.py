"""Quality against cost: a dot with its interval per entry, named beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmrec_cli.report.figures.axes import place_axes, room_for, spread, ticks
from llmrec_cli.report.figures.canvas import FAINT, FONT, INK, QUIET, Look, Names, draw
from llmrec_cli.report.figures.svg import Words

SIZE = (400.0, 300.0)
_MARGINS = (40.0, 14.0, 36.0, 24.0)
_HEIGHT = FONT + 2  # of a name


@dataclass(frozen=True, slots=True)
class Dot:
    """An entry: what it costs, and its mean with its interval."""

    name: str
    x: float
    mean: float
    low: float
    high: float
    look: Look


def scatter(words: Words, dots: Sequence[Dot], labels: tuple[str, str]) -> Markup:
    """Dots with vertical intervals; a faint line joins those that no cheaper one surpasses.

    Args:
        labels: of the two axes.
    """

    def paint(figure: Figure, names: Names) -> None:
        axes = place_axes(figure, _MARGINS)
        axes.grid()
        spread(axes, [dot.x for dot in dots])
        front = frontier(dots)
        axes.step(
            [dot.x for dot in front],
            [dot.mean for dot in front],
            where="post",
            color=FAINT,
            linewidth=4,
            zorder=0.8,
        )
        for dot in dots:
            if math.isfinite(dot.low + dot.high):
                axes.plot([dot.x, dot.x], [dot.low, dot.high], color=dot.look.colour, linewidth=1.2)
            axes.plot(dot.x, dot.mean, marker=dot.look.marker, color=dot.look.colour, markersize=6)
        axes.margins(x=0.12, y=0.06)
        ticks(axes, "x", 5)
        ticks(axes, "y", 5)
        axes.set_xlabel(labels[0])
        axes.set_title(labels[1], loc="left", color=INK, x=-0.08)
        axes.autoscale_view()  # names are placed where the dots will be
        _name_dots(axes, dots, names)

    return draw(words, SIZE, paint)


def frontier(dots: Sequence[Dot]) -> list[Dot]:
    """The dots that no cheaper or equally cheap one reaches, in order of cost."""
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda one: (one.x, -one.mean)):
        if not found or dot.mean > found[-1].mean:
            found.append(dot)
    return found


Box = tuple[float, float, float, float]  # left, bottom, right, top
_INSIDE: Box = (_MARGINS[0], _MARGINS[2], SIZE[0], SIZE[1] - _MARGINS[3])


def _name_dots(axes: Axes, dots: Sequence[Dot], names: Names) -> None:
    """Put each name where it covers least: beside its dot, above or below."""
    at = [tuple(axes.transData.transform((dot.x, dot.mean))) for dot in dots]
    taken = [_around(x, y, 5, 5) for x, y in at]
    taken += [_interval_box(axes, dot) for dot in dots if math.isfinite(dot.low + dot.high)]
    for dot, (x, y) in zip(dots, at, strict=True):
        width = room_for([dot.name]) - 12
        tried = [_label_box(x, y, side, width) for side in _SIDES]
        best = min(range(len(tried)), key=lambda at: _covered(tried[at], taken) + 2 * at)
        taken.append(tried[best])
        left, bottom, right, _ = tried[best]
        align, anchor = ("left", left) if _SIDES[best][0] >= 0 else ("right", right)
        axes.annotate(
            names.stand_in(dot.name),
            (anchor, bottom),
            xycoords="figure pixels",
            ha=align,
            va="bottom",
            fontsize=FONT - 0.5,
            annotation_clip=False,
        )
        if abs(_SIDES[best][1]) >= _FAR:
            ends = axes.transData.inverted().transform([(x, y), (anchor, bottom + _HEIGHT / 2)])
            axes.plot(*ends.T, color=QUIET, linewidth=0.5, zorder=0.9)


_RISES = (0, 9, -9, 18, -18, 27, -27, 36, -36)
_SIDES = [(side, rise) for rise in _RISES for side in (1, -1)]
_FAR = 18  # from here on a line leads from the dot to its name


def _label_box(x: float, y: float, side: tuple[int, float], width: float) -> Box:
    """Where a name stands: to the right or left of its dot, and so much higher."""
    towards, up = side
    left = x + 8 if towards > 0 else x - 8 - width
    bottom = y - _HEIGHT / 2 + up
    return left, bottom, left + width, bottom + _HEIGHT


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _interval_box(axes: Axes, dot: Dot) -> Box:
    (x, low), (_, high) = axes.transData.transform([(dot.x, dot.low), (dot.x, dot.high)])
    return x - 2, low, x + 2, high


def _covered(box: Box, taken: Sequence[Box]) -> float:
    """Area of a box that is taken, or outside the axes."""
    left, bottom, right, top = box
    area = (right - left) * (top - bottom)
    inside = _common(box, _INSIDE)
    return 10 * (area - inside) + sum(_common(box, other) for other in taken)


def _common(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
