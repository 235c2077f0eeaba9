"""What every kind of template shares: placeholders, and titles that stay on their line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_PLACEHOLDER: Final = re.compile(r"\{(\w*)\}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def expect_placeholders(text: str, names: Sequence[str]) -> str:
    """``text`` if it has each of ``names`` in braces once, in this order, and no other.

    Raises:
        ValueError: it has not; says what was expected.
    """
    if _PLACEHOLDER.findall(text) != list(names):
        listed = ", then one ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"expected one {listed}, and no other name in braces")
    return text


def count_placeholders(text: str) -> list[str]:
    """The names in braces, sorted."""
    return sorted(_PLACEHOLDER.findall(text))


def one_line(title: str) -> str:
    """A title with line breaks and control characters as spaces: it cannot leave its line."""
    return title if title.isprintable() else _CONTROL.sub(" ", title)
