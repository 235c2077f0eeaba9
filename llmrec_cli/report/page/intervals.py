"""Forest plots of the compared metric, and of its differences from the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmrec_cli.report.comparison import Comparison, Policy, Standing
from llmrec_cli.report.figures.forest import Whisker, forest
from llmrec_cli.report.figures.svg import Words
from llmrec_cli.report.page.common import (
    HISTORY,
    LEVEL,
    LOOKS,
    comparable,
    headline_first,
    kinds_legend,
)
from llmrec_cli.report.page.document import Figure, Section, Table, plain_table
from llmrec_cli.report.page.words import ends, figure, name_of
from llmrec_cli.report.tables.sheets import NONE


def intervals(comparison: Comparison) -> Section:
    """Forest plots of the compared metric and of its paired differences."""
    blocks = tuple(_forests(comparison, policy) for policy in headline_first(comparison))
    return Section("intervals", "Intervals", blocks)


def _forests(comparison: Comparison, policy: Policy) -> Figure:
    metric, key = comparison.compared, f"forest-{policy}"
    means = [_whisker(standing, policy, metric) for standing in comparison.standings]
    differences = [_difference(standing, policy, metric) for standing in comparison.standings]
    at = next((one.mean for one in means if one.name == _base(comparison)), None)
    title = f"{metric.upper()}, {HISTORY[policy]}"
    panels = [forest(Words(key, title, _told(means, "")), means, title, at)]
    if any(math.isfinite(one.mean) for one in differences):
        title = f"{metric.upper()} minus that of {_base(comparison)}, {HISTORY[policy]}"
        words = Words(f"{key}-difference", title, _told(differences, "+"))
        label = f"difference in {metric.upper()}, {HISTORY[policy]}"
        panels.append(forest(words, differences, label, 0.0))
    return Figure(
        tuple(panels),
        _caption(comparison, policy, differences=len(panels) > 1),
        _data(policy, means, differences),
        kinds_legend(comparison, key),
    )


def _base(comparison: Comparison) -> str | None:
    return None if comparison.baseline is None else name_of(comparison.baseline)


def _told(lines: Sequence[Whisker], sign: str) -> str:
    return "; ".join(
        f"{line.name} {figure(line.mean, sign)} {ends(line.low, line.high, sign)}"
        for line in lines
        if math.isfinite(line.mean)
    )


def _caption(comparison: Comparison, policy: Policy, *, differences: bool) -> str:
    text = f"{comparison.compared.upper()} with 95 % intervals over users, {HISTORY[policy]}."
    if comparison.baseline is not None:
        text += " The dashed line is the baseline."
    if len(comparable(comparison)) < len(comparison.standings):
        text += " A hollow mark does not compare."
    if differences:
        text += (
            " Beside it the paired differences from the baseline: a hollow mark is a difference "
            "that Holm's correction leaves undecided at the 5 % level."
        )
    return text


def _whisker(standing: Standing, policy: Policy, metric: str) -> Whisker:
    own = standing.metrics[policy][metric]
    look, name = LOOKS[standing.kind], name_of(standing.name)
    return Whisker(name, own.mean, own.low, own.high, look, filled=standing.why_not is None)


def _difference(standing: Standing, policy: Policy, metric: str) -> Whisker:
    """An entry without a contrast keeps its line, empty, so that lines face each other."""
    look, name = LOOKS[standing.kind], name_of(standing.name)
    own = standing.contrasts[policy].get(metric)
    if own is None:
        return Whisker(name, math.nan, math.nan, math.nan, look)
    return Whisker(name, own.mean, own.low, own.high, look, filled=own.p_holm < LEVEL)


def _data(policy: Policy, means: Sequence[Whisker], differences: Sequence[Whisker]) -> Table:
    rows = [
        [line.name, *_numbers(line, ""), *_numbers(difference, "+")]
        for line, difference in zip(means, differences, strict=True)
    ]
    headings = ("entry", "mean", "low", "high", "difference", "low", "high")
    return plain_table(f"Data: {HISTORY[policy]}", headings, rows)


def _numbers(line: Whisker, sign: str) -> list[str]:
    values = (line.mean, line.low, line.high)
    return [figure(value, sign) if math.isfinite(line.mean) else NONE for value in values]
