"""A comparison's figures for other programs: CSV with all digits, and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from llmrec_cli.report.comparison import Comparison, Cost, Policy, Standing
from llmrec_cli.report.report_json import jsonable
from llmrec_cli.report.text import plain

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ESTIMATE = ("mean", "low", "high", "seed_low", "seed_high")
_CONTRAST = ("mean", "low", "high", "p", "p_holm", "detectable", "seed_low", "seed_high")
_COST = tuple(field.name for field in fields(Cost))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The values of ``report.comparison`` for ``json.dump``; unknown ends are null."""
    found: dict[str, Any] = jsonable(asdict(comparison))
    return found


def to_csv(comparison: Comparison) -> str:
    """One line per entry, policy and metric; what is unknown is empty.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _name_columns(), lineterminator="\n")
    writer.writeheader()
    for standing in comparison.standings:
        for policy in comparison.policies:
            for row in _metric_rows(standing, policy, comparison):
                writer.writerow({name: _guard_cell(value) for name, value in row.items()})
    return out.getvalue()


def _name_columns() -> list[str]:
    of_contrast = [_name_difference(name) for name in _CONTRAST]
    first = ["entry", "kind", "seeds", "split", "seen", "metric"]
    return [*first, *_ESTIMATE, *of_contrast, "comparable", *_COST]


def _metric_rows(
    standing: Standing, policy: Policy, comparison: Comparison
) -> Iterator[dict[str, Any]]:
    for metric, estimate in standing.metrics[policy].items():
        contrast = standing.contrasts[policy].get(metric)
        yield {
            "entry": plain(standing.name),
            "kind": standing.kind,
            "seeds": " ".join(map(str, standing.seeds)),
            "split": comparison.split,
            "seen": policy,
            "metric": metric,
            **{name: getattr(estimate, name) for name in _ESTIMATE},
            **{_name_difference(name): getattr(contrast, name, None) for name in _CONTRAST},
            "comparable": standing.why_not or "yes",
            **{name: getattr(standing.cost, name) for name in _COST},
        }


def _name_difference(name: str) -> str:
    return name if name in ("p", "p_holm", "detectable") else f"difference_{name}"


def _guard_cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
