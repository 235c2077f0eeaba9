"""Names, titles and numbers as the page shows them."""

from __future__ import annotations

import re

from rich.cells import cell_len, set_cell_size

from llmrec_cli.report.tables.sheets import NONE
from llmrec_cli.report.text import plain

_LEADING_ZERO = re.compile(r"^([+-]?)0\.")
NAME, TITLE = 60, 110  # cells of a name, of a title


def shown(text: str, cells: int = TITLE) -> str:
    """Text of others as one harmless line of at most so many cells (a wide letter takes two)."""
    line = plain(text[: 20 * cells])
    return line if cell_len(line) <= cells else set_cell_size(line, cells - 1).rstrip() + "…"


def name_of(name: str) -> str:
    """An entry's or an experiment's name."""
    return shown(name, NAME) or "(no name)"


def figure(value: float | None, sign: str = "") -> str:
    """Four digits in the field's short form: .0782, +.0080; ? where unknown."""
    if value is None or value != value:
        return "?"
    text = f"{value:{sign}.4f}"
    return typeset(_LEADING_ZERO.sub(r"\1.", text))


def ends(low: float | None, high: float | None, sign: str = "") -> str:
    """An interval: [.0631, .0940]."""
    return f"[{figure(low, sign)}, {figure(high, sign)}]"


def quantity(value: float) -> str:
    """Any logged number in a few digits: 0.6931, 12.3, 1.2e-05."""
    return typeset(f"{value:.4g}")


def typeset(figures: str) -> str:
    """Figures with a true minus."""
    return figures if figures == NONE else figures.replace("-", "\N{MINUS SIGN}")


def count(n: int, noun: str, nouns: str = "") -> str:
    """1 row, 969 rows."""
    return f"{n:,} {noun if n == 1 else nouns or f'{noun}s'}"
