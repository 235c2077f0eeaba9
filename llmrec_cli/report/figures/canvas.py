"""A drawing surface for pictures inside a page: settings, looks, and names as stand-ins.

Names come from other people's files: matplotlib sees a stand-in for each (what XML or its fonts do
not know would stop it), and the name takes its place as a text node in ``svg.py``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from llmrec_cli.report.figures.svg import Words, page_element

INK, QUIET, FAINT, PAPER = "#111111", "#666660", "#ddddd0", "#fffffa"
SERIES: Final = ("#1f4fd8", "#cf5f1c", "#00594d", "#8a1a86", "#1296cc", "#5a4508")
"""Told apart with any colour vision (CIE76 at least 18 after Machado et al. 2009), 3:1 on paper."""
VARIABLES: Final = {
    INK: "--ink",
    QUIET: "--quiet",
    FAINT: "--faint",
    PAPER: "--paper",
    **{colour: f"--s{place}" for place, colour in enumerate(SERIES, start=1)},
}
"""The page's colours, by what stands for them in a drawing."""

Dash = tuple[int, tuple[float, ...]]
DASHES: Final[tuple[Dash, ...]] = (
    (0, ()),
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
FONT: Final = 10.5  # units of a picture, about CSS pixels
LONGEST: Final = 28  # characters of a name in a picture

_SETTINGS: Final[dict[Any, Any]] = {  # matplotlib types every key on its own
    "svg.fonttype": "none",
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


@dataclass(frozen=True, slots=True)
class Look:
    """How one series differs from the others, in three ways at once."""

    colour: str
    dash: Dash
    marker: str


def look(place: int) -> Look:
    """The look of the series of that number; the first 210 differ."""
    return Look(
        SERIES[place % len(SERIES)], DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]
    )


@dataclass
class Names:
    """Stand-ins for the names within one picture."""

    known: dict[str, str] = field(default_factory=dict)

    def stand_in(self, name: str, longest: int = LONGEST) -> str:
        """What matplotlib is given in place of a name, which is cut to so many characters."""
        mark = f"name{len(self.known):04d}"
        self.known[mark] = shortened(name, longest)
        return mark


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name as pictures have room for."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def draw(words: Words, size: tuple[float, float], paint: Callable[[Figure, Names], None]) -> Markup:
    """One picture as an ``svg`` element; equal drawings are equal bytes.

    Args:
        words: its key within the page, title and description.
        size: width and height, about CSS pixels.
        paint: fills the empty figure, in the colours of this module.
    """
    names, stream = Names(), io.BytesIO()
    with _own_settings():
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        FigureCanvasSVG(figure)
        paint(figure, names)
        figure.savefig(stream, format="svg", transparent=True)
    return page_element(stream.getvalue(), words, size, names.known, VARIABLES)


@contextmanager
def _own_settings() -> Iterator[None]:
    """matplotlib's defaults with ours, whatever ``matplotlibrc`` says; put back after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield
