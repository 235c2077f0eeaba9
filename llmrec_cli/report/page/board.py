"""The leaderboard: every metric, what differs from the baseline, and what does not compare."""

from __future__ import annotations

from dataclasses import replace

from llmrec_cli.report.comparison import Comparison, Contrast, Policy, Standing
from llmrec_cli.report.page.common import (
    HISTORY,
    LEVEL,
    comparable,
    headline_first,
    table_of,
)
from llmrec_cli.report.page.document import Block, Cell, Prose, Section, Table, plain_table
from llmrec_cli.report.page.words import count, ends, figure, name_of, shown
from llmrec_cli.report.tables import sheets
from llmrec_cli.report.tables.sheets import NONE, p_value


def leaderboard(comparison: Comparison) -> Section:
    """Every metric under every policy, and what differs from the baseline."""
    blocks: list[Block] = [Prose(in_short(comparison))]
    for policy in headline_first(comparison):
        seen = replace(comparison, headline=policy)
        blocks.append(_quality(seen))
        if comparison.baseline is not None:
            blocks.append(_against(seen, comparison.headline))
        if policy == comparison.headline and _has_seeds(comparison):
            blocks.append(table_of(sheets.over_seeds(comparison), "Over seeds"))
    if comparison.baseline is not None:
        blocks.append(_every_contrast(comparison))
    blocks.append(_entries(comparison))
    return Section("leaderboard", "Leaderboard", tuple(blocks))


def lead(comparison: Comparison) -> str:
    """What is compared on what, in a sentence."""
    entries = count(len(comparison.standings), "way to recommend", "ways to recommend")
    rows = count(comparison.n_rows, f"{comparison.split} row")
    apart = len(comparison.standings) - len(comparable(comparison))
    rest = (
        f" {apart} of them, marked so, {_agree(apart, 'does', 'do')} not compare." if apart else ""
    )
    return f"{entries}, on {rows} of {count(comparison.n_users, 'user')}.{rest}"


def _agree(n: int, one: str, several: str) -> str:
    return one if n == 1 else several


def in_short(comparison: Comparison) -> str:
    """What the board says, in two sentences."""
    metric, policy = comparison.compared, comparison.headline
    best = max(comparable(comparison), key=lambda one: one.metrics[policy][metric].mean)
    own = best.metrics[policy][metric]
    text = (
        f"Highest {metric.upper()}, {HISTORY[policy]}: {name_of(best.name)} with "
        f"{figure(own.mean)} {ends(own.low, own.high)}."
    )
    found = [(one, one.contrasts[policy].get(metric)) for one in comparison.standings]
    tested = [(one, contrast) for one, contrast in found if contrast is not None]
    if not tested or comparison.baseline is None:
        return text
    differ = [contrast.mean for _, contrast in tested if contrast.p_holm < LEVEL]
    above = sum(mean > 0 for mean in differ)
    base = name_of(comparison.baseline)
    return (
        f"{text} Of {count(len(tested), 'entry', 'entries')} set against {base}, {above} "
        f"{_agree(above, 'is', 'are')} above it and {len(differ) - above} below at the 5 % "
        f"level, corrected for {count(len(tested), 'comparison')}; from the other "
        f"{len(tested) - len(differ)} these rows do not tell it apart."
    )


def _has_seeds(comparison: Comparison) -> bool:
    return any(len(standing.seeds) > 1 for standing in comparison.standings)


def _quality(comparison: Comparison) -> Table:
    policy = comparison.headline
    sheet = sheets.quality(comparison)
    best = {}
    for column, heading in enumerate(sheet.headings[1:], start=1):
        means = {
            row: standing.metrics[policy][heading.lower()].mean
            for row, standing in enumerate(comparison.standings)
            if standing.why_not is None
        }
        best[column] = max(means, key=means.__getitem__)
    marked = (
        row if standing.why_not is None else ((*row[0], "does not compare"), *row[1:])
        for row, standing in zip(sheet.rows, comparison.standings, strict=True)
    )
    return table_of(replace(sheet, rows=tuple(marked)), HISTORY[policy].capitalize(), best)


def _against(comparison: Comparison, headline: Policy) -> Table:
    """The compared metric against the baseline; why not, only where it was asked."""
    sheet = sheets.contrasts(comparison)
    if comparison.headline != headline:
        rows = tuple(row[:-1] for row in sheet.rows)
        sheet = replace(sheet, headings=sheet.headings[:-1], rows=rows, prose=frozenset())
    base = name_of(comparison.baseline or "")
    label = f"{HISTORY[comparison.headline].capitalize()}: {comparison.compared.upper()}"
    return table_of(sheet, f"{label} against {base}")


def _entries(comparison: Comparison) -> Table:
    """What stands behind the names."""
    rows = [
        [
            name_of(standing.name),
            standing.kind,
            ", ".join(map(str, standing.seeds)) or NONE,
            shown(", ".join(standing.sources)),
        ]
        for standing in comparison.standings
    ]
    headings = ("entry", "kind", "seeds", "runs or files")
    return plain_table("What the entries are", headings, rows, prose=(1, 2, 3))


def _every_contrast(comparison: Comparison) -> Table:
    """Differences of every metric under every policy, folded away."""
    headings: tuple[str, ...] = (
        "entry",
        "history",
        "metric",
        "difference",
        "p",
        "p (Holm)",
        "detectable",
    )
    if _has_seeds(comparison):
        headings = (*headings, "each seed")
    rows = tuple(
        _contrast_row(standing, policy, metric, contrast)[: len(headings)]
        for policy in headline_first(comparison)
        for standing in comparison.standings
        for metric, contrast in standing.contrasts[policy].items()
    )
    label = "Differences of every metric"
    return Table(label, headings, rows, prose=frozenset({1, 2}), folded=True)


def _contrast_row(
    standing: Standing, policy: Policy, metric: str, contrast: Contrast
) -> tuple[Cell, ...]:
    difference = (figure(contrast.mean, "+"), ends(contrast.low, contrast.high, "+"))
    texts = [
        (name_of(standing.name),),
        (HISTORY[policy].removeprefix("history "),),
        (metric.upper(),),
        difference,
        (p_value(contrast.p),),
        (p_value(contrast.p_holm),),
        (figure(contrast.detectable),),
        (", ".join(figure(value, "+") for value in contrast.by_seed),),
    ]
    return tuple(Cell(text) for text in texts)
