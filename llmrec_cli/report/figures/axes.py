"""What all pictures share: axes placed by margins in pixels, calm ticks, short numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from llmrec_cli.report.figures.canvas import FAINT, FONT, shortened

Margins = tuple[float, float, float, float]  # left, right, bottom, top

_LETTER = 0.56  # width of a letter, in sizes of the font
_SUFFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
WIDE_SCALE = 20.0  # positive figures that differ by this factor are shown on a logarithmic scale


def place_axes(figure: Figure, margins: Margins) -> Axes:
    """Axes that leave margins (in units of the picture) free."""
    left, right, bottom, top = margins
    width, height = figure.get_size_inches() * 72
    box = (left / width, bottom / height, (width - left - right) / width)
    return figure.add_axes((*box, (height - bottom - top) / height))


def short_number(value: float, place: int | None = None) -> str:
    """A tick: .25, 20, 1.5k; ``place`` is what matplotlib passes along."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    text = f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    return text.replace("0.", ".", 1) if 0 < abs(value) < 1 else text


def ticks(axes: Axes, which: Literal["x", "y"], most: int = 4, *, whole: bool = False) -> None:
    """A few short ticks."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    scale = axes.get_xscale() if which == "x" else axes.get_yscale()
    if scale == "log":
        low, high = sorted(map(float, axis.get_view_interval()))
        axis.set_ticks(log_ticks(low, high, most))
    elif scale == "linear":
        axis.set_major_locator(MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(short_number))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten between two positive figures, and three times these where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 3)]
    inside = [tick for tick in fine if low <= tick <= high]
    if len(inside) <= most + 1:
        return inside
    tens = [10.0**power for power in powers if low <= 10.0**power <= high]
    return tens[:: math.ceil(len(tens) / most)]


def is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic scale serves these figures."""
    return min(values) > 0 and max(values) / min(values) >= WIDE_SCALE


def spread(axes: Axes, values: Sequence[float]) -> None:
    """A horizontal scale for these figures, none below 0: logarithmic where they differ much.

    Of three orders of magnitude at most: below them it is linear, so that next to nothing, and 0
    itself, have a place.
    """
    least = max(values) / 1000
    if min(values) < least:
        axes.set_xscale("symlog", linthresh=least)
        first = math.ceil(math.log10(1.5 * least))
        axes.set_xticks([0, *(10.0**power for power in range(first, first + 4))])
    elif is_wide(values):
        axes.set_xscale("log")


def room_for(names: Sequence[str]) -> float:
    """Width that names need beside a picture."""
    longest = max((len(shortened(name)) for name in names), default=0)
    return 12 + longest * FONT * _LETTER


def rule(axes: Axes, x: float) -> None:
    """A faint vertical line across the picture."""
    axes.axvline(x, color=FAINT, linewidth=1.2, zorder=0.5)
