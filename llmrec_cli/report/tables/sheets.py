"""What the tables of a comparison hold, as text: the one source of all formats.

A cell is a few words that a narrow format may put on lines of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmrec_cli.report.comparison import Comparison, Contrast, Cost, Estimate, Standing
from llmrec_cli.report.formatting import (
    NAME,
    NONE,
    POLICY_NAMES,
    cut_text,
    format_detectable,
    format_ends,
    format_figure,
    format_memory,
    format_p,
    format_seconds,
    format_thousands,
)
from llmrec_cli.report.text import plain

Cell = tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        rows: a cell per heading; the first one is the entry's name.
        prose: numbers of the columns that hold sentences rather than figures.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    prose: frozenset[int] = frozenset()


def tabulate_comparison(comparison: Comparison, *, full: bool = True) -> list[Sheet]:
    """The tables of a comparison, under the headline policy.

    Args:
        full: with what the lists look like, and what they cost.
    """
    found = [tabulate_quality(comparison), tabulate_contrasts(comparison)]
    if any(len(standing.seeds) > 1 for standing in comparison.standings):
        found.append(tabulate_seeds(comparison))
    if full and any(standing.auc for standing in comparison.standings):
        found.append(tabulate_auc(comparison))
    if full and comparison.headline != "pairs":
        found.append(tabulate_lists(comparison))
    return [*found, tabulate_costs(comparison)] if full else found


def tabulate_quality(comparison: Comparison) -> Sheet:
    """Every metric with its interval over users."""
    headline = comparison.headline
    title = f"{comparison.split}: {comparison.n_rows:,} rows of {comparison.n_users:,} users, "
    title += comparison.candidates
    if headline != "pairs":
        title += f', {POLICY_NAMES[headline]} (seen = "{headline}")'
    names = [name for name in comparison.metrics if name != "ndcg@1"]  # which is hr@1
    rows = []
    for standing in comparison.standings:
        estimates = [standing.metrics[headline][name] for name in names]
        rows.append((_name_cell(standing), *map(_estimate_cell, estimates)))
    over = "users" if headline == "pairs" else "rows"
    caption = f"mean over {over} [95 % interval, bootstrap over users]"
    headings = ("entry", *(name.upper() for name in names))
    return Sheet(plain(title), headings, tuple(rows), caption)


def tabulate_contrasts(comparison: Comparison) -> Sheet:
    """The compared metric against the baseline, and what compares with it."""
    metric, headline = comparison.compared, comparison.headline
    rows = []
    for standing in comparison.standings:
        contrast = standing.contrasts[headline].get(metric)
        own = standing.metrics[headline][metric]
        rows.append(
            (
                _name_cell(standing),
                _estimate_cell(own),
                *_contrast_cells(contrast),
                _comparable_cell(standing, comparison),
            )
        )
    if comparison.baseline is None:
        caption = "no baseline: name one with --baseline; comparable: with the first entry"
    else:
        base = cut_text(comparison.baseline, NAME)
        caption = (
            f"difference: {metric} minus that of {base} over the same rows "
            "[95 % interval, users drawn]; p: sign-flip test over users; Holm: p corrected for all "
            "entries compared; detectable: the smallest true difference found with 80 % power at "
            "the 5 % level"
        )
    headings = ("entry", metric.upper(), "difference", "p", "p (Holm)", "detectable", "comparable")
    return Sheet(
        f"{metric.upper()} against the baseline", headings, tuple(rows), caption, frozenset({6})
    )


def tabulate_seeds(comparison: Comparison) -> Sheet:
    """The second level: how much seeds differ, for entries that have several."""
    metric, headline = comparison.compared, comparison.headline
    rows = []
    for standing in comparison.standings:
        if len(standing.seeds) < 2:
            continue
        own, contrast = standing.metrics[headline][metric], standing.contrasts[headline].get(metric)
        rows.append(
            (
                _name_cell(standing),
                (", ".join(map(str, standing.seeds)),),
                _interval_cell(own.mean, own.seed_low, own.seed_high),
                (", ".join(map(format_figure, own.by_seed)),),
                _interval_cell(contrast.mean, contrast.seed_low, contrast.seed_high, "+")
                if contrast
                else (NONE,),
            )
        )
    headings = ("entry", "seeds", metric.upper(), "each seed", "difference")
    caption = "mean over seeds [95 % interval, seeds drawn: Student's t]"
    return Sheet("over seeds", headings, tuple(rows), caption, frozenset({1, 3}))


def tabulate_auc(comparison: Comparison) -> Sheet:
    """The generate task's AUC, of the entries that have one."""
    rows = []
    for standing in comparison.standings:
        if standing.auc:
            found = standing.auc["metrics"].values()
            cells = [_interval_cell(m["mean"], m["low"], m["high"]) for m in found]
            rows.append((_name_cell(standing), *cells))
    return Sheet(
        "each target beside one item that its user does not own",
        ("entry", "AUC_PAIRED", "AUC_POOLED"),
        tuple(rows),
        "paired within users, and pooled over them [95 % interval, bootstrap over users]",
    )


def tabulate_lists(comparison: Comparison) -> Sheet:
    """What the recommended lists look like as a whole."""
    rows = []
    for standing in comparison.standings:
        found = standing.lists[comparison.headline]
        error = standing.beam_error
        cells = [
            format_figure(found["coverage"]),
            format_figure(found["gini"]),
            f"{found['popularity']:,.1f}",
            format_figure(found["long_tail"]),
            f"{found['short']:,.0f}",
            NONE if error is None else format_figure(error),
        ]
        rows.append((_name_cell(standing), *((cell,) for cell in cells)))
    return Sheet(
        "what is recommended",
        ("entry", "coverage", "Gini", "popularity", "long tail", "short lists", "beam error"),
        tuple(rows),
        "coverage: share of the catalogue in any list; popularity: mean training interactions of a "
        "recommended entry; long tail: share outside the most popular fifth; beam error: share of "
        "lists that are not the exact ones",
    )


def tabulate_costs(comparison: Comparison) -> Sheet:
    """What every entry took."""
    rows = [
        (_name_cell(standing), *_cost_cells(standing.cost)) for standing in comparison.standings
    ]
    return Sheet(
        "cost",
        (
            "entry",
            "training",
            "with parents",
            "device time",
            "tokens",
            "peak memory",
            "evaluation",
            "ms per row",
            "device",
        ),
        tuple(rows),
        "training: its updates, validation apart; with parents: all stages it stands on; tokens: "
        "padded ones that went through the model; ms per row: decoding; "
        f"{NONE}: not recorded",
        frozenset({8}),
    )


def _cost_cells(cost: Cost) -> tuple[Cell, ...]:
    device = cost.device if cost.processes in (None, 1) else f"{cost.processes} x {cost.device}"
    cells = [
        _show_known(cost.train_seconds, format_seconds),
        _show_known(cost.lineage_seconds, format_seconds),
        _show_known(cost.device_seconds, format_seconds),
        _show_known(cost.tokens, format_thousands),
        _show_known(cost.peak_bytes, format_memory),
        _show_known(cost.eval_seconds, format_seconds),
        _show_known(cost.milliseconds_per_row, lambda value: f"{value:.3g}"),
        NONE if device is None else plain(device),
    ]
    return tuple((cell,) for cell in cells)


def _show_known(value: float | None, show: Callable[[float], str]) -> str:
    return NONE if value is None else show(value)


def _name_cell(standing: Standing) -> Cell:
    return (cut_text(standing.name, NAME),)


def _interval_cell(
    mean: float | None, low: float | None, high: float | None, sign: str = ""
) -> Cell:
    return format_figure(mean, sign), format_ends(low, high, sign)


def _estimate_cell(estimate: Estimate) -> Cell:
    return _interval_cell(estimate.mean, estimate.low, estimate.high)


def _contrast_cells(contrast: Contrast | None) -> tuple[Cell, Cell, Cell, Cell]:
    if contrast is None:
        return (NONE,), (NONE,), (NONE,), (NONE,)
    return (
        _interval_cell(contrast.mean, contrast.low, contrast.high, "+"),
        (format_p(contrast.p),),
        (format_p(contrast.p_holm),),
        (format_detectable(contrast.detectable),),
    )


def _comparable_cell(standing: Standing, comparison: Comparison) -> Cell:
    if standing.name == comparison.baseline:
        return ("baseline",)
    return (plain(standing.why_not) if standing.why_not else "yes",)
