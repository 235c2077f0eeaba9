"""What every entry took, and what that bought."""

from __future__ import annotations

from collections.abc import Callable

from llmrec_cli.report.comparison import Comparison, Cost
from llmrec_cli.report.figures.scatter import Dot, scatter
from llmrec_cli.report.figures.svg import Words
from llmrec_cli.report.page.common import HISTORY, LOOKS, comparable, kinds_legend, table_of
from llmrec_cli.report.page.document import Block, Cell, Figure, Section, Table
from llmrec_cli.report.page.words import figure, name_of, quantity
from llmrec_cli.report.tables import sheets

_AXES: tuple[tuple[str, str, Callable[[Cost], float | None]], ...] = (
    ("training", "training with parents, seconds", lambda cost: cost.lineage_seconds),
    ("decoding", "decoding, milliseconds per row", lambda cost: cost.milliseconds_per_row),
)


def costs(comparison: Comparison) -> Section:
    """Quality against cost, and the table of costs."""
    blocks: list[Block] = []
    dots = [(name, label, _dots(comparison, cost)) for name, label, cost in _AXES]
    shown = [(name, label, found) for name, label, found in dots if len(found) > 1]
    if shown:
        metric = f"{comparison.compared.upper()}, {HISTORY[comparison.headline]}"
        panels = tuple(
            scatter(
                Words(f"cost-{name}", f"{metric} against {label}", _told(found)),
                found,
                (label, metric),
            )
            for name, label, found in shown
        )
        caption = (
            "Quality against cost: up is better, left is cheaper. The pale line joins the entries "
            "that nothing as cheap surpasses."
        )
        if any(len(found) < len(comparison.standings) for _, _, found in shown):
            caption += " Entries that do not compare, or have no cost recorded, are left out."
        data = _data([(label, found) for _, label, found in shown])
        blocks.append(Figure(panels, caption, data, kinds_legend(comparison, "cost")))
    if any(standing.cost.eval_seconds is not None for standing in comparison.standings):
        blocks.append(table_of(sheets.costs(comparison), "What every entry took"))
    return Section("cost", "Cost", tuple(blocks))


def _dots(comparison: Comparison, cost: Callable[[Cost], float | None]) -> list[Dot]:
    found = []
    for standing in comparable(comparison):
        own, x = standing.metrics[comparison.headline][comparison.compared], cost(standing.cost)
        if x is not None:
            look = LOOKS[standing.kind]
            found.append(Dot(name_of(standing.name), x, own.mean, own.low, own.high, look))
    return found


def _told(dots: list[Dot]) -> str:
    return "; ".join(f"{dot.name}: {figure(dot.mean)} at {quantity(dot.x)}" for dot in dots)


def _data(parts: list[tuple[str, list[Dot]]]) -> Table:
    rows = tuple(
        (
            Cell((dot.name,)),
            Cell((label,)),
            *(Cell((text,)) for text in (quantity(dot.x), figure(dot.mean))),
        )
        for label, dots in parts
        for dot in dots
    )
    headings = ("entry", "cost", "value", "mean")
    return Table("Data: quality against cost", headings, rows, prose=frozenset({1}), folded=True)
