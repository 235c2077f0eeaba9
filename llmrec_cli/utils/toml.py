"""Parsing of TOML from other people, with limits on size and depth."""

from __future__ import annotations

import tomllib
from datetime import date, time
from typing import Any

MAX_DEPTH = 50  # tables and lists; dotted keys nest them without end
_BITS = 64  # TOML's own bound for a whole number; Python has none


def parse(text: str) -> dict[str, Any]:
    """The tables of a TOML document.

    Raises:
        ValueError: not TOML, nested more than ``MAX_DEPTH`` deep, or a whole number beyond 64 bits.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    require_bounds(table)
    return table


_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def require_bounds(table: dict[str, Any]) -> None:
    """Refuse what is nested too deeply, and numbers that nothing can hold.

    Raises:
        ValueError: which of the two it is.
    """
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        values = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
        if any(isinstance(v, int) and v.bit_length() >= _BITS for v in values):
            raise ValueError(f"a whole number beyond {_BITS} bits")
        level = [value for value in values if isinstance(value, dict | list)]
    if level:
        raise ValueError(_TOO_DEEP)


def format_value(value: object) -> str:
    """A value as a recipe would write it, cut to one short line."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    text = value.isoformat() if isinstance(value, date | time) else text
    text = text.replace("'", '"') if isinstance(value, str | list) else text
    return text if len(text) <= 60 else text[:57] + "..."
