"""Sections that show the comparison: leaderboard, intervals, cost, groups of rows, lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from llmrec_cli.evaluation.comparison import Comparison, Contrast, Cost, Standing
from llmrec_cli.evaluation.statistics import Interval
from llmrec_cli.report import tables as sheets
from llmrec_cli.report.figures import (
    GROUPS_ROOM,
    Dot,
    Picture,
    Whisker,
    draw_forest,
    draw_profile,
    draw_scatter,
    draw_swatch,
    format_tick,
)
from llmrec_cli.report.formatting import (
    NONE,
    POLICY_NAMES,
    cut_name,
    cut_text,
    format_count,
    format_detectable,
    format_ends,
    format_figure,
    format_p,
    typeset_ends,
    typeset_figure,
    typeset_quantity,
)
from llmrec_cli.report.page.blocks import (
    LOOKS,
    PageBlock,
    PageSection,
    PageTable,
    Panels,
    build_data,
    order_policies,
    select_comparable,
)
from llmrec_cli.report.page.data import BeamError, Page, RowGroup, Slicing
from llmrec_cli.report.tables import Cell, Sheet
from llmrec_cli.tasks.base import SeenPolicy

LEVEL = 0.05  # of a difference that counts, after Holm's correction
_TITLES: Final = {
    "popularity": "By popularity of the target",
    "history": "By length of the history",
}
_COSTS: Final[tuple[tuple[str, Callable[[Cost], float | None]], ...]] = (
    ("training with parents, seconds", lambda cost: cost.lineage_seconds),
    ("decoding, milliseconds per row", lambda cost: cost.milliseconds_per_row),
)
_COST_CAPTION = (
    "Quality against cost: up is better, left is cheaper. The pale line joins the entries that "
    "nothing as cheap surpasses."
)
_BEAM_TEXT = (
    "A beam keeps a few beginnings of titles at each step and may lose the best entries on the "
    "way; the exact search proves its list. This is how often the two differ."
)


def describe_comparison(comparison: Comparison) -> str:
    """What is compared on what, in a sentence."""
    entries = format_count(len(comparison.standings), "way to recommend", "ways to recommend")
    over = f"{comparison.split} rows that differ"
    if comparison.has_equal_rows:
        rows = format_count(comparison.n_rows, f"{comparison.split} row")
        over = f"{rows} of {format_count(comparison.n_users, 'user')}"
    apart = len(comparison.standings) - len(select_comparable(comparison))
    verb = "does" if apart == 1 else "do"
    rest = f" {apart} of them, marked so, {verb} not compare." if apart else ""
    return f"{entries}, on {over}.{rest}"


# The leaderboard: every metric, differences from the baseline, and comparability.


def build_leaderboard(comparison: Comparison) -> PageSection:
    """Every metric under every policy, and what differs from the baseline."""
    several = any(len(standing.seeds) > 1 for standing in comparison.standings)
    tables = []
    for policy in order_policies(comparison):
        seen = replace(comparison, headline=policy)
        tables.append(_tabulate_metrics(seen))
        if comparison.baseline is not None:
            tables.append(_tabulate_against(seen, comparison.headline))
        if policy == comparison.headline and several:
            tables.append(PageTable(replace(sheets.tabulate_seeds(comparison), title="Over seeds")))
    if comparison.baseline is not None:
        tables.append(_tabulate_every_contrast(comparison, each_seed=several))
    tables.append(_tabulate_sources(comparison))
    blocks = [PageBlock("prose", summarize_board(comparison))]
    blocks += [PageBlock("table", table) for table in tables]
    return PageSection("leaderboard", "Leaderboard", tuple(blocks))


def summarize_board(comparison: Comparison) -> str:
    """The result of the leaderboard, in two sentences."""
    metric, policy = comparison.compared, comparison.headline
    best = max(select_comparable(comparison), key=lambda one: one.metrics[policy][metric].mean)
    own = best.metrics[policy][metric]
    text = (
        f"Highest {metric.upper()}, {POLICY_NAMES[policy]}: {cut_name(best.name)} with "
        f"{typeset_figure(own.mean)} {typeset_ends(own.low, own.high)}."
    )
    found = [standing.contrasts[policy].get(metric) for standing in comparison.standings]
    tested = [contrast for contrast in found if contrast is not None]
    if not tested or comparison.baseline is None:
        return text
    differ = [contrast.mean for contrast in tested if contrast.p_holm < LEVEL]
    above = sum(mean > 0 for mean in differ)
    return (
        f"{text} Of {format_count(len(tested), 'entry', 'entries')} set against "
        f"{cut_name(comparison.baseline)}, {above} {'is' if above == 1 else 'are'} above it and "
        f"{len(differ) - above} below at the 5 % level, corrected for "
        f"{format_count(len(tested), 'comparison')}; from the other {len(tested) - len(differ)} "
        "these rows do not tell it apart."
    )


def _tabulate_metrics(comparison: Comparison) -> PageTable:
    policy, sheet = comparison.headline, sheets.tabulate_quality(comparison)
    best = {}
    for column, heading in enumerate(sheet.headings):
        metric = heading.lower()
        if metric not in comparison.metrics:
            continue
        means = {
            row: standing.metrics[policy][metric].mean
            for row, standing in enumerate(comparison.standings)
            if standing.why_not is None
        }
        best[column] = max(means, key=means.__getitem__)
    rows = tuple(
        row if standing.why_not is None else ((*row[0], "does not compare"), *row[1:])
        for row, standing in zip(sheet.rows, comparison.standings, strict=True)
    )
    return PageTable(replace(sheet, title=POLICY_NAMES[policy].capitalize(), rows=rows), best=best)


def _tabulate_against(comparison: Comparison, headline: SeenPolicy) -> PageTable:
    """The compared metric against the baseline; with reasons under the headline policy alone."""
    sheet, policy = sheets.tabulate_contrasts(comparison), comparison.headline
    if policy != headline:
        rows = tuple(row[:-1] for row in sheet.rows)
        sheet = replace(sheet, headings=sheet.headings[:-1], rows=rows, prose=frozenset())
    metric, base = comparison.compared.upper(), cut_name(comparison.baseline or "")
    return PageTable(
        replace(sheet, title=f"{POLICY_NAMES[policy].capitalize()}: {metric} against {base}")
    )


def _tabulate_sources(comparison: Comparison) -> PageTable:
    """What the entries are: kind, seeds, and runs or files."""
    rows = [
        [
            cut_name(standing.name),
            standing.kind,
            ", ".join(map(str, standing.seeds)) or NONE,
            cut_text(", ".join(standing.sources)),
        ]
        for standing in comparison.standings
    ]
    headings = ("entry", "kind", "seeds", "runs or files")
    return build_data("What the entries are", headings, rows, prose=(1, 2, 3))


def _tabulate_every_contrast(comparison: Comparison, *, each_seed: bool) -> PageTable:
    """Differences of every metric under every policy, folded away."""
    headings = ("entry", "history", "metric", "difference", "p", "p (Holm)", "detectable")
    seeds = ("each seed",) if each_seed else ()
    rows = tuple(
        _contrast_row(standing, policy, metric, contrast)[: len(headings + seeds)]
        for policy in order_policies(comparison)
        for standing in comparison.standings
        for metric, contrast in standing.contrasts[policy].items()
    )
    label = "Differences of every metric"
    return PageTable(Sheet(label, headings + seeds, rows, "", frozenset({1, 2})), folded=True)


def _contrast_row(
    standing: Standing, policy: SeenPolicy, metric: str, contrast: Contrast
) -> tuple[Cell, ...]:
    return (
        (cut_name(standing.name),),
        (POLICY_NAMES[policy].removeprefix("history "),),
        (metric.upper(),),
        (format_figure(contrast.mean, "+"), format_ends(contrast.low, contrast.high, "+")),
        (format_p(contrast.p),),
        (format_p(contrast.p_holm),),
        (format_detectable(contrast.detectable),),
        (", ".join(format_figure(value, "+") for value in contrast.by_seed),),
    )


# Forest plots of the compared metric, and of its differences from the baseline.


def build_intervals(comparison: Comparison) -> PageSection:
    """Forest plots of the compared metric and of its paired differences."""
    panels = [_draw_forests(comparison, policy) for policy in order_policies(comparison)]
    return PageSection("intervals", "Intervals", tuple(PageBlock("panels", one) for one in panels))


def _draw_forests(comparison: Comparison, policy: SeenPolicy) -> Panels:
    metric, baseline = comparison.compared, comparison.baseline
    means = [_mean_whisker(standing, policy, metric) for standing in comparison.standings]
    differences = [_contrast_whisker(one, policy, metric) for one in comparison.standings]
    title, base = f"{metric.upper()}, {POLICY_NAMES[policy]}", baseline and cut_name(baseline)
    at = next((one.mean for one in means if one.name == base), None)
    pictures = [draw_forest(means, title, at, f"{title}: {_describe_whiskers(means, '')}")]
    if any(math.isfinite(one.mean) for one in differences):
        summary = f"{metric.upper()} minus that of {base}, {POLICY_NAMES[policy]}"
        alt = f"{summary}: {_describe_whiskers(differences, '+')}"
        pictures.append(draw_forest(differences, f"difference in {title}", 0.0, alt))
    rows = [
        [line.name, *_whisker_figures(line, ""), *_whisker_figures(difference, "+")]
        for line, difference in zip(means, differences, strict=True)
    ]
    headings = ("entry", "mean", "low", "high", "difference", "low", "high")
    return Panels(
        tuple(pictures),
        _caption_forests(comparison, policy, differences=len(pictures) > 1),
        build_data(f"Data: {POLICY_NAMES[policy]}", headings, rows),
        _kinds_legend(comparison),
    )


def _describe_whiskers(lines: Sequence[Whisker], sign: str) -> str:
    return "; ".join(
        f"{line.name} {typeset_figure(line.mean, sign)} {typeset_ends(line.low, line.high, sign)}"
        for line in lines
        if math.isfinite(line.mean)
    )


def _whisker_figures(line: Whisker, sign: str) -> list[str]:
    values = (line.mean, line.low, line.high)
    return [format_figure(value, sign) if math.isfinite(line.mean) else NONE for value in values]


def _caption_forests(comparison: Comparison, policy: SeenPolicy, *, differences: bool) -> str:
    text = f"{comparison.compared.upper()} with 95 % intervals over users, {POLICY_NAMES[policy]}."
    if comparison.baseline is not None:
        text += " The dashed line is the baseline."
    if len(select_comparable(comparison)) < len(comparison.standings):
        text += " A hollow mark does not compare."
    if differences:
        text += (
            " Beside it the paired differences from the baseline: a hollow mark is a difference "
            "that Holm's correction leaves undecided at the 5 % level."
        )
    return text


def _mean_whisker(standing: Standing, policy: SeenPolicy, metric: str) -> Whisker:
    own = standing.metrics[policy][metric]
    look, name = LOOKS[standing.kind], cut_name(standing.name)
    return Whisker(name, own.mean, own.low, own.high, look, filled=standing.why_not is None)


def _contrast_whisker(standing: Standing, policy: SeenPolicy, metric: str) -> Whisker:
    """Lines of the plot.  An entry without a contrast has an empty one, so that lines match."""
    look, name = LOOKS[standing.kind], cut_name(standing.name)
    own = standing.contrasts[policy].get(metric)
    if own is None:
        return Whisker(name, math.nan, math.nan, math.nan, look)
    return Whisker(name, own.mean, own.low, own.high, look, filled=own.p_holm < LEVEL)


def _kinds_legend(comparison: Comparison) -> tuple[tuple[Picture, str], ...]:
    """What the marks of the kinds of entries look like."""
    present = {standing.kind for standing in comparison.standings}
    if len(present) < 2:
        return ()
    kinds = [(kind, look) for kind, look in LOOKS.items() if kind in present]
    return tuple((draw_swatch(look, line=False), kind) for kind, look in kinds)


# Cost of every entry, and quality against cost.


def build_costs(comparison: Comparison) -> PageSection:
    """Quality against cost, and the table of costs."""
    blocks: list[PageBlock] = []
    found = [(label, _gather_dots(comparison, cost)) for label, cost in _COSTS]
    if shown := [(label, dots) for label, dots in found if len(dots) > 1]:
        blocks.append(PageBlock("panels", _draw_costs(comparison, shown)))
    if any(standing.cost.eval_seconds is not None for standing in comparison.standings):
        sheet = replace(sheets.tabulate_costs(comparison), title="What every entry took")
        blocks.append(PageBlock("table", PageTable(sheet)))
    return PageSection("cost", "Cost", tuple(blocks))


def _gather_dots(comparison: Comparison, cost: Callable[[Cost], float | None]) -> list[Dot]:
    found = []
    for standing in select_comparable(comparison):
        own, x = standing.metrics[comparison.headline][comparison.compared], cost(standing.cost)
        if x is not None:
            look = LOOKS[standing.kind]
            found.append(Dot(cut_name(standing.name), x, own.mean, own.low, own.high, look))
    return found


def _draw_costs(comparison: Comparison, shown: Sequence[tuple[str, list[Dot]]]) -> Panels:
    metric, pictures = f"{comparison.compared.upper()}, {POLICY_NAMES[comparison.headline]}", []
    for label, dots in shown:
        summary = "; ".join(
            f"{dot.name}: {typeset_figure(dot.mean)} at {typeset_quantity(dot.x)}" for dot in dots
        )
        pictures.append(draw_scatter(dots, (label, metric), f"{metric} against {label}: {summary}"))
    caption = _COST_CAPTION
    if any(len(dots) < len(comparison.standings) for _, dots in shown):
        caption += " Entries that do not compare, or have no cost recorded, are left out."
    rows = [
        [dot.name, label, typeset_quantity(dot.x), format_figure(dot.mean)]
        for label, dots in shown
        for dot in dots
    ]
    headings = ("entry", "cost", "value", "mean")
    data = build_data("Data: quality against cost", headings, rows, prose=(1,))
    return Panels(tuple(pictures), caption, data, _kinds_legend(comparison))


# The compared metric by groups of rows.


def build_groups(page: Page) -> Iterator[PageSection]:
    """A section per way to group rows; one group alone would repeat the leaderboard."""
    for slicing in page.slicings:
        if len(slicing.groups) > 1:
            prose = PageBlock("prose", _explain_groups(slicing, page))
            blocks = (prose, PageBlock("panels", _draw_profiles(slicing, page.comparison)))
            yield PageSection(f"by-{slicing.by}", _TITLES[slicing.by], blocks)


def _explain_groups(slicing: Slicing, page: Page) -> str:
    dash, unbroken = "\N{EN DASH}", "\N{WORD JOINER}\N{EN DASH}\N{WORD JOINER}"
    groups = "; ".join(
        f"{_name_bounds(group).replace(dash, unbroken)} ({format_count(group.rows, 'row')}, "
        f"{format_count(group.users, 'user')})"
        for group in slicing.groups
    )
    shown, known = len(slicing.estimates), len(page.comparison.standings)
    left = "" if shown == known else f" {known - shown} entries rank other rows and are left out."
    if slicing.by == "popularity":
        what = "Rows grouped by how often the target's entry occurs in training"
    else:
        cut = f", at most {slicing.longest}" if slicing.longest else ""
        what = f"Rows grouped by the number of items in the history that a model is shown{cut}"
    return f"{what}, in groups of about equal size where ties allow: {groups}.{left}"


def _name_bounds(group: RowGroup) -> str:
    """3-7, or 5."""
    low, high = group.low, group.high
    return f"{low:,}" if low == high else f"{low:,}\N{EN DASH}{high:,}"


def _label_groups(groups: Sequence[RowGroup]) -> list[str]:
    """The same where pictures have room for it, else its lower bound: 16+."""
    names = list(map(_name_bounds, groups))
    if sum(map(len, names)) <= GROUPS_ROOM:
        return names
    return [f"{format_tick(group.low)}{'' if group.low == group.high else '+'}" for group in groups]


def _draw_profiles(slicing: Slicing, comparison: Comparison) -> Panels:
    metric, names = slicing.metric.upper(), list(map(_name_bounds, slicing.groups))
    kinds = {standing.name: standing.kind for standing in comparison.standings}
    pictures, below = [], _label_groups(slicing.groups)
    for entry, own in slicing.estimates.items():
        others = [found for name, found in slicing.estimates.items() if name != entry]
        summary = "; ".join(
            f"{name}: {typeset_figure(one.mean)} {typeset_ends(one.low, one.high)}"
            for name, one in zip(names, own, strict=True)
        )
        shown = cut_name(entry)
        alt = f"{metric} of {shown} by {slicing.by}: {summary}"
        pictures.append(draw_profile(shown, own, others, below, LOOKS[kinds[entry]], alt))
    caption = (
        f"{metric} by group, {POLICY_NAMES[comparison.headline]}, with 95 % intervals over users; "
        "all other entries pale behind. Equal scales."
    )
    rows = tuple(
        ((cut_name(entry),), *map(_interval_cell, own)) for entry, own in slicing.estimates.items()
    )
    label = f"Data: {metric} {_TITLES[slicing.by].lower()}"
    data = PageTable(Sheet(label, ("entry", *names), rows, ""), folded=True)
    return Panels(tuple(pictures), caption, data, size="small")


def _interval_cell(interval: Interval) -> Cell:
    return format_figure(interval.mean), format_ends(interval.low, interval.high)


# Figures over all lists, and how often a beam misses the exact list.


def build_lists(page: Page) -> PageSection:
    """Lists as a whole: their variety, and AUC where it was asked for."""
    comparison, tables = page.comparison, []
    if comparison.headline != "pairs":
        title = f"Variety and popularity, {POLICY_NAMES[comparison.headline]}"
        tables.append(replace(sheets.tabulate_lists(comparison), title=title))
    if any(standing.auc for standing in comparison.standings):
        title = "Target against one other item (AUC)"
        tables.append(replace(sheets.tabulate_auc(comparison), title=title))
    blocks = tuple(PageBlock("table", PageTable(sheet)) for sheet in tables)
    return PageSection("lists", "What is recommended", blocks)


def build_beam_error(page: Page) -> PageSection:
    """How often a beam's list is not the exact list."""
    panels = [_draw_beam_errors(page.beam_errors)] if page.beam_errors else []
    blocks = [PageBlock("prose", _BEAM_TEXT), *(PageBlock("panels", one) for one in panels)]
    return PageSection("beam-error", "Beam error", tuple(blocks) if panels else ())


def _draw_beam_errors(errors: Sequence[BeamError]) -> Panels:
    look = LOOKS["language model"]
    lines = [
        Whisker(cut_name(one.entry), one.share.mean, one.share.low, one.share.high, look)
        for one in errors
    ]
    alt = f"Beam error: {_describe_whiskers(lines, '')}"
    rows = tuple(
        ((cut_name(one.entry),), (f"{one.rows:,}",), _interval_cell(one.share)) for one in errors
    )
    data = PageTable(Sheet("Data: beam error", ("entry", "rows", "share"), rows, ""), folded=True)
    caption = "Share of rows whose beam list is not the exact one; 95 % intervals over users."
    return Panels((draw_forest(lines, "share of rows", None, alt),), caption, data)
