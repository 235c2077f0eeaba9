"""The part of the page on semantic IDs: how their tokens are used, and what they know of users."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

from llmrec_cli.report.figures import (
    Line,
    Whisker,
    choose_look,
    draw_forest,
    draw_shares,
    draw_swatch,
)
from llmrec_cli.report.formatting import format_count
from llmrec_cli.report.page.blocks import (
    PageBlock,
    PageSection,
    PageTable,
    Panels,
    build_data,
)
from llmrec_cli.report.page.data import IdUse

_POINTS: Final = 100  # of a curve
_TEXT: Final = (
    "An item is a few tokens. On the left, the share of items that the commonest tokens of a place "
    "have together: on the diagonal all tokens are used equally often, and a curve that rises at "
    "once is a place that says little. On the right, how often two items that follow each other in "
    "training histories begin with the same tokens, beside pairs that are drawn apart: equal "
    "shares would mean that the IDs know nothing of what users do."
)


def build_semantic_ids(ids: Sequence[IdUse]) -> PageSection:
    """The section; without IDs that llmrec made it has no blocks."""
    blocks = [PageBlock("panels", _draw_use(use, named=len(ids) > 1)) for use in ids]
    prose = [PageBlock("prose", _TEXT)] if blocks else []
    return PageSection("semantic-ids", "Semantic IDs", (*prose, *blocks))


def _draw_use(use: IdUse, *, named: bool) -> Panels:
    looks = [choose_look(place) for place in range(len(use.levels))]
    lines = [
        Line(*_accumulate(items, use.codes), look, marked=False)
        for items, look in zip(use.levels, looks, strict=True)
    ]
    names = [f"token {place}" for place in range(1, len(use.levels) + 1)]
    rows = list(_list_rows(use))
    shares = draw_shares(
        lines,
        ("share of the tokens, commonest first", "share of the items"),
        f"use of tokens, {use.name}: "
        + "; ".join(
            f"{name}: {format_count(len(items), 'token')} in use, the commonest has "
            f"{items[0]:,} items"
            for name, items in zip(names, use.levels, strict=True)
        ),
    )
    pictures = [shares]
    if use.neighbourhood:
        alt = "; ".join(f"{what}: {value}" for what, value in rows[len(names) :])
        pictures.append(draw_forest(list(_list_pairs(use)), "share of pairs", None, alt))
    return Panels(
        tuple(pictures),
        f"Semantic IDs of {use.name}" if named else "Use of tokens, and neighbourhood",
        _list_data(rows),
        tuple((draw_swatch(look), name) for look, name in zip(looks, names, strict=True)),
    )


def _accumulate(items: Sequence[int], codes: int) -> tuple[list[float], list[float]]:
    """Shares of tokens and of items, both rising from 0 to 1; unused codes have no items."""
    tokens, total = max(codes, len(items)), sum(items)
    whole = [0, *itertools.accumulate(items), *([total] if len(items) < tokens else [])]
    xs = [*range(len(items) + 1), *([tokens] if len(items) < tokens else [])]
    kept = sorted({round(at * (len(xs) - 1) / _POINTS) for at in range(_POINTS + 1)})
    return [xs[at] / tokens for at in kept], [whole[at] / total for at in kept]


def _list_pairs(use: IdUse) -> Iterator[Whisker]:
    for depth, share, chance in use.neighbourhood:
        look = choose_look(depth - 1)
        alike = _name_depth(depth)
        yield Whisker(alike, share, math.nan, math.nan, look)
        yield Whisker("by chance", chance, math.nan, math.nan, look, filled=False)


def _name_depth(depth: int) -> str:
    return "same first token" if depth == 1 else f"same first {depth} tokens"


def _list_rows(use: IdUse) -> Iterator[tuple[str, str]]:
    for place, items in enumerate(use.levels, start=1):
        yield f"token {place}", f"{len(items):,} in use, most on one {items[0]:,}"
    for depth, share, chance in use.neighbourhood:
        alike = _name_depth(depth)
        yield alike, f"{share:.1%} of neighbours, {chance:.1%} by chance"


def _list_data(rows: Sequence[tuple[str, str]]) -> PageTable:
    return build_data("The figures behind these pictures", ("what", "figure"), rows, prose=(1,))
