"""Figures of the report page: matplotlib's SVG, unchanged.

A picture is a document of its own behind a ``data:`` address.  Nothing in it can reach the page.
Its text is text, in the reader's fonts.  Sizes are in units of a picture, about CSS pixels.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from llmrec_cli.evaluation.statistics import Interval
from llmrec_cli.utils.text import clean_line

INK, QUIET, FAINT, PAPER = "#1c1b19", "#605d56", "#dedbd1", "#fdfcf9"
"""The page's colours by day; by night the style sheet inverts whole pictures."""
SERIES: Final = ("#1f4fd8", "#cf5f1c", "#00594d", "#8a1a86", "#1296cc", "#5a4508")
"""Distinct with any colour vision (CIE76 at least 18 after Machado et al. 2009), 3:1 on paper."""

Dash = tuple[int, tuple[float, ...]]
DASHES: Final[tuple[Dash, ...]] = (
    (0, ()),
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
FONT: Final = 10.5
LONGEST: Final = 28  # characters of a name in a picture
GROUPS_ROOM: Final = 21  # letters that all groups of a profile have together

_SETTINGS: Final[dict[Any, Any]] = {  # matplotlib types every key on its own
    "svg.fonttype": "none",
    "svg.hashsalt": "llmrec",  # equal drawings are equal bytes
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: equal on every machine
    "font.size": FONT,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": FONT,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": FONT,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": FONT - 0.5,
    "ytick.labelsize": FONT - 0.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.major.width": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "path.simplify": False,
}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LETTER = 0.58  # width of a letter, in sizes of the font
_SUFFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_WIDE_SCALE = 20.0  # positive figures that differ by this factor are on a logarithmic scale
_MANY_POINTS = 24  # of a curve: only some are marked


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture for an ``img`` element.

    Attributes:
        source: a ``data:`` address of an SVG document.
        alt: what it shows, for those who do not see it; empty: decoration.
    """

    source: str
    alt: str
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Look:
    """How one series differs from the others, in three ways at once."""

    colour: str
    dash: Dash = DASHES[0]
    marker: str = ""


def choose_look(place: int) -> Look:
    """The style of the series of that number; the first 210 differ."""
    return Look(
        SERIES[place % len(SERIES)], DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]
    )


LOSS: Final = Look(QUIET)
VALID_LOSS: Final = Look(SERIES[1], (0, (4, 2)), "s")
SCORE: Final = Look(SERIES[0], DASHES[0], "o")


def shorten_label(name: str, longest: int = LONGEST) -> str:
    """A name cut to the room in pictures, with characters that an SVG document may hold."""
    line = _NOT_XML.sub("\ufffd", clean_line(name))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _draw_picture(size: tuple[float, float], alt: str, paint: Callable[[Figure], None]) -> Picture:
    """Draw one picture, whatever ``matplotlibrc`` says; then restore matplotlib's settings.

    Args:
        paint: fills the empty figure.
    """
    stream, (width, height) = io.BytesIO(), size
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # readers have more
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        paint(figure)
        made = {"Date": None, "Creator": None, "Type": None, "Format": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=made)
    coded = base64.b64encode(stream.getvalue()).decode()
    return Picture(f"data:image/svg+xml;base64,{coded}", alt, width, height)


# Shared code of figures: axes placed by margins, few ticks, short numbers.


def _place_axes(figure: Figure, left: float, right: float, bottom: float, top: float) -> Axes:
    """Axes that leave these margins free."""
    width, height = figure.get_size_inches() * 72
    across, up = (width - left - right) / width, (height - bottom - top) / height
    return figure.add_axes((left / width, bottom / height, across, up))


def format_tick(value: float, place: int | None = None) -> str:
    """A tick: .25, 20, 1.5k; ``place`` is what matplotlib passes along."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    text = f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    return text.replace("0.", ".", 1) if 0 < abs(value) < 1 else text


def _set_ticks(axes: Axes, which: Literal["x", "y"], most: int, *, whole: bool = False) -> None:
    """A few short ticks."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    scale = axes.get_xscale() if which == "x" else axes.get_yscale()
    if scale == "log":
        low, high = sorted(map(float, axis.get_view_interval()))
        axis.set_ticks(choose_log_ticks(low, high, most))
    elif scale == "linear":
        axis.set_major_locator(MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(format_tick))


def choose_log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten between two positive figures, and three times these where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 3)]
    inside = [tick for tick in fine if low <= tick <= high]
    if len(inside) <= most + 1:
        return inside
    tens = [10.0**power for power in powers if low <= 10.0**power <= high]
    return tens[:: math.ceil(len(tens) / most)]


def _is_wide(values: Sequence[float]) -> bool:
    """Whether these figures are shown on a logarithmic scale."""
    return min(values) > 0 and max(values) / min(values) >= _WIDE_SCALE


def _draw_rule(axes: Axes, x: float) -> None:
    """A faint vertical line across the picture."""
    axes.axvline(x, color=FAINT, linewidth=1.2, zorder=0.5)


def _label_width(name: str) -> float:
    return len(shorten_label(name)) * FONT * _LETTER


# Forest plots.


@dataclass(frozen=True, slots=True)
class Whisker:
    """One line of a forest plot: a mean with its interval (NaN: unknown)."""

    name: str
    mean: float
    low: float
    high: float
    look: Look
    filled: bool = True


def draw_forest(lines: Sequence[Whisker], label: str, at: float | None, alt: str) -> Picture:
    """Means and intervals, the first line on top.

    Args:
        label: of the axis.
        at: where a vertical line stands: the baseline's mean, or 0.
    """
    left = 12 + max((_label_width(line.name) for line in lines), default=0)

    def paint(figure: Figure) -> None:
        axes = _place_axes(figure, left, 12, 36, 6)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        if at is not None and math.isfinite(at):
            _draw_rule(axes, at)
            axes.axvline(at, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        for place, line in enumerate(lines):
            _draw_whisker(axes, line, place)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_yticks(range(len(lines)), [shorten_label(line.name) for line in lines])
        axes.tick_params(axis="y", labelcolor=INK, pad=6)
        axes.margins(x=0.04)
        _set_ticks(axes, "x", 5)
        axes.set_xlabel(label)

    return _draw_picture((400, 42 + 21 * len(lines)), alt, paint)


def _draw_whisker(axes: Axes, line: Whisker, place: int) -> None:
    colour = line.look.colour
    if math.isfinite(line.low + line.high):
        axes.plot([line.low, line.high], [place, place], color=colour)
    if math.isfinite(line.mean):
        face = colour if line.filled else PAPER
        axes.plot(
            line.mean,
            place,
            color=colour,
            marker=line.look.marker,
            markersize=6,
            markerfacecolor=face,
            markeredgewidth=1.4,
        )


# Small multiples.


def draw_profile(
    name: str,
    own: Sequence[Interval],
    others: Sequence[Sequence[Interval]],
    groups: Sequence[str],
    look: Look,
    alt: str,
) -> Picture:
    """One entry's figures over groups of rows in colour, all others faint; equal scales for all.

    Args:
        groups: what stands below each; there is room for ``GROUPS_ROOM`` letters in all.
    """
    intervals = [interval for one in (own, *others) for interval in one]
    highest = max(one.high if math.isfinite(one.high) else one.mean for one in intervals)

    def paint(figure: Figure) -> None:
        axes, xs = _place_axes(figure, 26, 8, 20, 24), range(len(groups))
        axes.grid(axis="y")
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
        _set_ticks(axes, "y", 3)
        axes.spines["left"].set_visible(False)
        axes.set_title(shorten_label(name), x=-0.17)

    return _draw_picture((172, 132), alt, paint)


# Curves over updates.


@dataclass(frozen=True, slots=True)
class Line:
    """One curve."""

    xs: Sequence[float]
    ys: Sequence[float]
    look: Look
    width: float = 1.6
    marked: bool = True


def draw_curves(lines: Sequence[Line], heading: str, alt: str) -> Picture:
    """Curves in one picture; a logarithmic scale where they differ by orders of magnitude.

    Args:
        heading: what the vertical axis shows.
    """

    def paint(figure: Figure) -> None:
        axes = _place_axes(figure, 40, 10, 34, 24)
        axes.set_title(shorten_label(heading, 52), x=-0.1)
        _draw_lines(axes, lines, 3.6)
        if _is_wide([y for line in lines for y in line.ys]):
            axes.set_yscale("log")
        _finish_curves(axes, 4)
        axes.set_xlabel("updates")

    return _draw_picture((320, 200), alt, paint)


def draw_shares(lines: Sequence[Line], labels: tuple[str, str], alt: str) -> Picture:
    """Cumulative shares, 0..1 on both axes; the diagonal is equal use.

    Args:
        labels: of the two axes.
    """

    def paint(figure: Figure) -> None:
        axes = _place_axes(figure, 40, 14, 36, 24)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
        _draw_lines(axes, lines, 3.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        _set_ticks(axes, "x", 5)
        _set_ticks(axes, "y", 4)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(labels[0])
        axes.set_title(labels[1], x=-0.08)

    return _draw_picture((400, 240), alt, paint)


def draw_training(
    name: str,
    losses: Sequence[Line],
    scores: Sequence[Line],
    kept: Sequence[int],
    limits: tuple[float, float],
    alt: str,
) -> Picture:
    """One entry's training, its seeds together: losses above, the validation metric below.

    Args:
        kept: updates of the checkpoints that were kept, as vertical lines.
        limits: of the metric, shared by all entries.
    """

    def paint(figure: Figure) -> None:
        upper = _place_axes(figure, 34, 8, 104 if scores else 32, 24)
        upper.set_title(shorten_label(name), x=-0.24)
        parts = [(upper, losses)]
        if scores:
            lower = _place_axes(figure, 34, 8, 32, 126)
            lower.set_ylim(*limits)
            lower.sharex(upper)
            upper.tick_params(axis="x", labelbottom=False)
            parts.append((lower, scores))
        for axes, lines in parts:
            for step in kept:
                _draw_rule(axes, step)
            _draw_lines(axes, lines, 3)
        for axes, _ in parts:
            _finish_curves(axes, 2)
        parts[-1][0].set_xlabel("updates")

    return _draw_picture((172, 214 if scores else 140), alt, paint)


def draw_swatch(look: Look, *, line: bool = True) -> Picture:
    """A series' look, for a legend."""

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 28), ylim=(0, 12))
        axes.set_axis_off()
        if line:
            axes.plot([1, 27], [6, 6], color=look.colour, linestyle=look.dash)
        if look.marker:
            axes.plot(14, 6, marker=look.marker, color=look.colour, markersize=5.5)

    return _draw_picture((28, 12), "", paint)


def _draw_lines(axes: Axes, lines: Sequence[Line], size: float) -> None:
    axes.grid(axis="y")
    for line in lines:
        axes.plot(
            line.xs,
            line.ys,
            color=line.look.colour,
            linestyle=line.look.dash,
            linewidth=line.width,
            marker=line.look.marker if line.marked else "",
            markevery=max(1, len(line.xs) // _MANY_POINTS),
            markersize=size,
            clip_on=False,
        )


def _finish_curves(axes: Axes, most: int) -> None:
    axes.set_xlim(left=0)
    _set_ticks(axes, "x", most, whole=True)
    _set_ticks(axes, "y", most)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(INK)


# Quality against cost.


@dataclass(frozen=True, slots=True)
class Dot:
    """An entry: what it costs, and its mean with its interval."""

    name: str
    x: float
    mean: float
    low: float
    high: float
    look: Look


_Box = tuple[float, float, float, float]  # left, bottom, right, top


def draw_scatter(dots: Sequence[Dot], labels: tuple[str, str], alt: str) -> Picture:
    """Dots with vertical intervals, named; a faint line joins those that no cheaper one surpasses.

    Args:
        labels: of the two axes.
    """

    def paint(figure: Figure) -> None:
        axes = _place_axes(figure, 40, 14, 36, 24)
        axes.grid()
        _set_cost_scale(axes, [dot.x for dot in dots])
        front = find_frontier(dots)
        xs, means = [dot.x for dot in front], [dot.mean for dot in front]
        axes.step(xs, means, where="post", color=FAINT, linewidth=4, zorder=0.8)
        for dot in dots:
            if math.isfinite(dot.low + dot.high):
                axes.plot([dot.x, dot.x], [dot.low, dot.high], color=dot.look.colour, linewidth=1.2)
            axes.plot(dot.x, dot.mean, marker=dot.look.marker, color=dot.look.colour, markersize=6)
        axes.margins(x=0.12, y=0.06)
        _set_ticks(axes, "x", 5)
        _set_ticks(axes, "y", 5)
        axes.set_xlabel(labels[0])
        axes.set_title(labels[1], x=-0.08)
        axes.autoscale_view()  # names are placed where the dots will be
        _name_dots(axes, dots)

    return _draw_picture((400, 300), alt, paint)


def find_frontier(dots: Sequence[Dot]) -> list[Dot]:
    """The dots that are better than every cheaper or equally cheap one, in order of cost."""
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda one: (one.x, -one.mean)):
        if not found or dot.mean > found[-1].mean:
            found.append(dot)
    return found


def _set_cost_scale(axes: Axes, values: Sequence[float]) -> None:
    """A horizontal scale for these figures, none below 0: logarithmic where they differ much.

    It spans three orders of magnitude at most.  Below them it is linear, so that tiny figures and 0
    have a place.
    """
    least = max(values) / 1000
    if min(values) < least:
        axes.set_xscale("symlog", linthresh=least)
        first = math.ceil(math.log10(1.5 * least))
        axes.set_xticks([0, *(10.0**power for power in range(first, first + 4))])
    elif _is_wide(values):
        axes.set_xscale("log")


def _name_dots(axes: Axes, dots: Sequence[Dot]) -> None:
    """Put each name beside its dot where there is room, else above or below it, with a line."""
    places = axes.transData.transform([(dot.x, dot.mean) for dot in dots]).tolist()
    taken: list[_Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    inside, height = axes.get_window_extent(), FONT + 2
    for dot, (x, y) in sorted(zip(dots, places, strict=True), key=lambda one: one[0].mean):
        width = _label_width(dot.name)
        end = 0 if x + 8 + width <= inside.x1 + 12 else 1  # of the name, next to the dot
        left = (x + 8, x - 8 - width)[end]
        heights = [*range(round(y), round(inside.y1), 3), *range(round(y), round(inside.y0), -3)]
        tried = [(left, at - height / 2, left + width, at + height / 2) for at in heights]
        free = (one for one in tried if not any(_overlap(one, other) for other in taken))
        taken.append(next(free, tried[0]))
        line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "relpos": (end, 0.5)}
        axes.annotate(
            shorten_label(dot.name),
            (dot.x, dot.mean),
            (left + end * width, sum(taken[-1][1::2]) / 2),
            textcoords="figure pixels",
            ha=("left", "right")[end],
            va="center_baseline",
            fontsize=FONT - 0.5,
            annotation_clip=False,
            arrowprops=None if taken[-1] == tried[0] else line,
        )


def _overlap(one: _Box, other: _Box) -> bool:
    across = min(one[2], other[2]) > max(one[0], other[0])
    return across and min(one[3], other[3]) > max(one[1], other[1])
