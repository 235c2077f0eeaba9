"""Titles and names come from other people's files: what a terminal or a report may be shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

# A terminal's own commands, 7-bit and C1 forms: ESC [ ... letter; ESC ] ... BEL or ESC \ and its
# like (only where they end: otherwise the text after them is kept); ESC with one letter.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)
_JOINERS = "\u200c\u200d"  # shape letters and emoji, never direction or layout
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#!|~&$@])")
_SPACES = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")


def plain(title: str) -> str:
    """``title`` as one harmless line.

    Terminal escape sequences, control characters, bidirectional overrides and invisible format
    characters are removed; line breaks and runs of spaces become one space; a lone surrogate (which
    no file could be written with) becomes U+FFFD.  Markup such as ``[/]`` and ``<b>`` and formulas
    such as ``=cmd`` stay as text: whoever renders must not interpret them.
    """
    return " ".join(harmless(title).split())


def markdown(text: str) -> str:
    """One harmless line of Markdown that shows ``text`` as it is: no markup, HTML, or new cell."""
    return _MARKDOWN.sub(r"\\\1", plain(text))


def build_markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """A table of cells that are Markdown already.

    Args:
        left: numbers of the columns that stand to the left.
    """
    rules = [":--" if at in left else "--:" for at in range(len(headings))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rules, *rows))


def harmless(line: str) -> str:
    """``line`` without what ``plain`` removes, its spaces as they are."""
    return "".join(map(_harmless, _ESCAPES.sub("", line)))


def _harmless(char: str) -> str:
    if char in _SPACES:
        return " "
    kind = unicodedata.category(char)
    if kind == "Cs":
        return "\ufffd"
    return "" if kind in {"Cc", "Cf"} and char not in _JOINERS else char
