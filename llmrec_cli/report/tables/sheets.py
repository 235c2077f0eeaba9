"""What the tables of a comparison hold, as text: the one source of all formats.

A cell is a few words that a narrow format may put on lines of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from llmrec_cli.report.comparison import Comparison, Contrast, Cost, Estimate, Standing
from llmrec_cli.report.text import plain

Cell = tuple[str, ...]

POLICIES: Final = {
    "keep": 'history kept (seen = "keep")',
    "remove": 'history removed (seen = "remove")',
    "pairs": "two candidates",
}
NONE: Final = "-"
_NAME_CELLS = 60


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


def sheets(comparison: Comparison, *, full: bool = True) -> list[Sheet]:
    """The tables of a comparison, under the headline policy.

    Args:
        full: with what the lists look like, and what they cost.
    """
    found = [quality(comparison), contrasts(comparison)]
    if any(len(standing.seeds) > 1 for standing in comparison.standings):
        found.append(over_seeds(comparison))
    if full and any(standing.auc for standing in comparison.standings):
        found.append(auc(comparison))
    if full and comparison.headline != "pairs":
        found.append(lists(comparison))
    return [*found, costs(comparison)] if full else found


def quality(comparison: Comparison) -> Sheet:
    """Every metric with its interval over users."""
    headline = comparison.headline
    title = f"{comparison.split}: {comparison.n_rows:,} rows of {comparison.n_users:,} users, "
    title += comparison.candidates
    if headline != "pairs":
        title += f", {POLICIES[headline]}"
    names = [name for name in comparison.metrics if name != "ndcg@1"]  # which is hr@1
    rows = []
    for standing in comparison.standings:
        estimates = [standing.metrics[headline][name] for name in names]
        rows.append((_name(standing), *map(_estimate, estimates)))
    over = "users" if headline == "pairs" else "rows"
    caption = f"mean over {over} [95 % interval, bootstrap over users]"
    headings = ("entry", *(name.upper() for name in names))
    return Sheet(plain(title), headings, tuple(rows), caption)


def contrasts(comparison: Comparison) -> Sheet:
    """The compared metric against the baseline, and what compares with it."""
    metric, headline = comparison.compared, comparison.headline
    rows = []
    for standing in comparison.standings:
        contrast = standing.contrasts[headline].get(metric)
        own = standing.metrics[headline][metric]
        rows.append(
            (
                _name(standing),
                _estimate(own),
                *_contrast(contrast),
                _comparable(standing, comparison),
            )
        )
    if comparison.baseline is None:
        caption = "no baseline: name one with --baseline; comparable: with the first entry"
    else:
        caption = (
            f"difference: {metric} minus that of {_label(comparison.baseline)} over the same rows "
            "[95 % interval, users drawn]; p: sign-flip test over users; Holm: p corrected for all "
            "entries compared; detectable: the smallest true difference found with 80 % power at "
            "the 5 % level"
        )
    headings = ("entry", metric.upper(), "difference", "p", "p (Holm)", "detectable", "comparable")
    return Sheet(
        f"{metric.upper()} against the baseline", headings, tuple(rows), caption, frozenset({6})
    )


def over_seeds(comparison: Comparison) -> Sheet:
    """The second level: how much seeds differ, for entries that have several."""
    metric, headline = comparison.compared, comparison.headline
    rows = []
    for standing in comparison.standings:
        if len(standing.seeds) < 2:
            continue
        own, contrast = standing.metrics[headline][metric], standing.contrasts[headline].get(metric)
        rows.append(
            (
                _name(standing),
                (", ".join(map(str, standing.seeds)),),
                (_number(own.mean), _ends(own.seed_low, own.seed_high)),
                (", ".join(map(_number, own.by_seed)),),
                (_number(contrast.mean, "+"), _ends(contrast.seed_low, contrast.seed_high, "+"))
                if contrast
                else (NONE,),
            )
        )
    headings = ("entry", "seeds", metric.upper(), "each seed", "difference")
    caption = "mean over seeds [95 % interval, seeds drawn: Student's t]"
    return Sheet("over seeds", headings, tuple(rows), caption, frozenset({1, 3}))


def auc(comparison: Comparison) -> Sheet:
    """The generate task's AUC, of the entries that have one."""
    rows = []
    for standing in comparison.standings:
        if standing.auc:
            found = standing.auc["metrics"].values()
            cells = [(_number(m["mean"]), _ends(m["low"], m["high"])) for m in found]
            rows.append((_name(standing), *cells))
    return Sheet(
        "each target beside one item that its user does not own",
        ("entry", "AUC_PAIRED", "AUC_POOLED"),
        tuple(rows),
        "paired within users, and pooled over them [95 % interval, bootstrap over users]",
    )


def lists(comparison: Comparison) -> Sheet:
    """What the recommended lists look like as a whole."""
    rows = []
    for standing in comparison.standings:
        found = standing.lists[comparison.headline]
        error = standing.beam_error
        cells = [
            _number(found["coverage"]),
            _number(found["gini"]),
            f"{found['popularity']:,.1f}",
            _number(found["long_tail"]),
            f"{found['short']:,.0f}",
            NONE if error is None else _number(error),
        ]
        rows.append((_name(standing), *((cell,) for cell in cells)))
    return Sheet(
        "what is recommended",
        ("entry", "coverage", "Gini", "popularity", "long tail", "short lists", "beam error"),
        tuple(rows),
        "coverage: share of the catalogue in any list; popularity: mean training interactions of a "
        "recommended entry; long tail: share outside the most popular fifth; beam error: share of "
        "lists that are not the exact ones",
    )


def costs(comparison: Comparison) -> Sheet:
    """What every entry took."""
    rows = [(_name(standing), *_cost(standing.cost)) for standing in comparison.standings]
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


def _cost(cost: Cost) -> tuple[Cell, ...]:
    device = cost.device if cost.processes in (None, 1) else f"{cost.processes} x {cost.device}"
    cells = [
        _shown(cost.train_seconds, seconds),
        _shown(cost.lineage_seconds, seconds),
        _shown(cost.device_seconds, seconds),
        _shown(cost.tokens, thousands),
        _shown(cost.peak_bytes, memory),
        _shown(cost.eval_seconds, seconds),
        _shown(cost.milliseconds_per_row, lambda value: f"{value:.3g}"),
        NONE if device is None else plain(device),
    ]
    return tuple((cell,) for cell in cells)


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return NONE if value is None else show(value)


def seconds(value: float) -> str:
    """A time: 0.31 s, 38.2 s, 12 min 5 s, 3 h 20 min."""
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours:,} h {minutes} min"


def thousands(value: float) -> str:
    """A count: 812, 58.3 k, 1.24 M, 3.5 G."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:g}"


def memory(value: float) -> str:
    """Bytes: 812 MiB, 3.2 GiB."""
    mebibytes = value / 2**20
    return f"{mebibytes:,.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.3g} GiB"


def _name(standing: Standing) -> Cell:
    return (_label(standing.name),)


def _label(name: str) -> str:
    """A name as one harmless line of at most ``_NAME_CELLS`` terminal cells."""
    shown = plain(name)
    if cell_len(shown) <= _NAME_CELLS:
        return shown
    return set_cell_size(shown, _NAME_CELLS - 1).rstrip() + "…"


def _estimate(estimate: Estimate) -> Cell:
    return _number(estimate.mean), _ends(estimate.low, estimate.high)


def _contrast(contrast: Contrast | None) -> tuple[Cell, Cell, Cell, Cell]:
    if contrast is None:
        return (NONE,), (NONE,), (NONE,), (NONE,)
    difference = (_number(contrast.mean, "+"), _ends(contrast.low, contrast.high, "+"))
    return (
        difference,
        (p_value(contrast.p),),
        (p_value(contrast.p_holm),),
        (_number(contrast.detectable),),
    )


def _comparable(standing: Standing, comparison: Comparison) -> Cell:
    if standing.name == comparison.baseline:
        return ("baseline",)
    return (plain(standing.why_not) if standing.why_not else "yes",)


def p_value(p: float) -> str:
    """Two significant digits: .032, .0005, 1."""
    return _without_zero(f"{p:.2g}")


def _ends(low: float | None, high: float | None, sign: str = "") -> str:
    return f"[{_number(low, sign)}, {_number(high, sign)}]"


def _number(value: float | None, sign: str = "") -> str:
    """Four digits in the field's short form: .0782, +.0080; ? where unknown."""
    if value is None or value != value:
        return "?"
    return _without_zero(f"{value:{sign}.4f}")


def _without_zero(number: str) -> str:
    """The field's short form of numbers below 1; 10.5 stays as it is."""
    return re.sub(r"^([+-]?)0\.", r"\1.", number)
