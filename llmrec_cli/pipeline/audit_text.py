"""An audit as text: lines for logs, a table for terminals.  Examples come from hostile files."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llmrec_cli.data.audit import (
    Verdict,
    select_raised,
)
from llmrec_cli.utils.text import clean_line

_LONGEST = 40  # characters of an example
_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow"}


def verdict_lines(found: Sequence[Verdict]) -> list[str]:
    """One line per verdict."""
    return [f"{v.level}: {v.check}: {v.text}{_examples(v)}" for v in found]


def short_lines(found: Sequence[Verdict]) -> list[str]:
    """What needs attention, a few words each."""
    return [f"{v.level}: {v.check}{_count(v)}" for v in select_raised(found)]


def verdict_table(found: Sequence[Verdict], title: str) -> Table:
    """The same for a terminal; nothing in it is taken for markup."""
    table = Table(title=Text(clean_line(title)), title_justify="left", show_lines=True)
    for heading in ("verdict", "check", "what it means"):
        table.add_column(heading)
    for v in found:
        meaning = Text(v.text + _examples(v))
        table.add_row(Text(v.level, style=_COLOURS[v.level]), Text(v.check), meaning)
    return table


def _count(verdict: Verdict) -> str:
    if verdict.count is None:
        return ""
    of = "" if verdict.of is None else f" of {verdict.of:,}"
    return f": {verdict.count:,}{of}"


def _examples(verdict: Verdict) -> str:
    shown = [_cut(clean_line(example)) for example in verdict.examples]
    return f" For example: {', '.join(shown)}." if shown else ""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
