"""Formatting of names, titles and numbers for tables, pages and figures."""

from __future__ import annotations

import re
from typing import Final

from rich.cells import cell_len, set_cell_size

from llmrec_cli.utils.text import clean_line

NONE: Final = "-"
POLICY_NAMES: Final = {
    "keep": "history kept",
    "remove": "history removed",
    "pairs": "two candidates",
}
NAME, TITLE = 60, 110  # cells of a name, of a title
_LEADING_ZERO = re.compile(r"^([+-]?)0\.")
_NOTHING = 1e-12  # smaller differences come from rounding


def cut_text(text: str, cells: int = TITLE) -> str:
    """Foreign text as one harmless line of at most so many cells (a wide letter takes two)."""
    line = clean_line(text[: 20 * cells])
    return line if cell_len(line) <= cells else set_cell_size(line, cells - 1).rstrip() + "…"


def cut_name(name: str) -> str:
    """An entry's or an experiment's name; never empty."""
    return cut_text(name, NAME) or "(no name)"


def format_figure(value: float | None, sign: str = "") -> str:
    """Four digits in the field's short form: .0782, +.0080; ? where unknown."""
    return "?" if value is None or value != value else strip_zero(f"{value:{sign}.4f}")


def format_ends(low: float | None, high: float | None, sign: str = "") -> str:
    """An interval: [.0631, .0940]."""
    return f"[{format_figure(low, sign)}, {format_figure(high, sign)}]"


def format_p(p: float) -> str:
    """Two significant digits: .032, .0005, 1."""
    return strip_zero(f"{p:.2g}")


def format_detectable(value: float) -> str:
    """A detectable difference; "-" where all users differ by the same, such as not at all."""
    return NONE if abs(value) < _NOTHING else format_figure(value)


def strip_zero(number: str) -> str:
    """The field's short form of numbers below 1; 10.5 stays as it is."""
    return _LEADING_ZERO.sub(r"\1.", number)


def format_thousands(value: float) -> str:
    """A count: 812, 58.3 k, 1.24 M, 3.5 G."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:g}"


def format_memory(value: float) -> str:
    """Bytes: 812 MiB, 3.2 GiB."""
    mebibytes = value / 2**20
    return f"{mebibytes:,.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.3g} GiB"


def format_count(n: int, noun: str, nouns: str = "") -> str:
    """1 row, 969 rows."""
    return f"{n:,} {noun if n == 1 else nouns or f'{noun}s'}"


# On a page, where a minus is a true one.


def set_minus(figures: str) -> str:
    """Figures with a true minus."""
    return figures if figures == NONE else figures.replace("-", "\N{MINUS SIGN}")


def typeset_figure(value: float | None, sign: str = "") -> str:
    """``format_figure`` on a page."""
    return set_minus(format_figure(value, sign))


def typeset_ends(low: float | None, high: float | None, sign: str = "") -> str:
    """``format_ends`` on a page."""
    return set_minus(format_ends(low, high, sign))


def typeset_quantity(value: float) -> str:
    """Any logged number in a few digits: 0.6931, 12.3, 1.2e-05."""
    return set_minus(f"{value:.4g}")
