"""What a run took: time, tokens and memory, as its folder and those of its parents tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmrec_cli.engine.log import MetricsLog
from llmrec_cli.report.comparison import Cost
from llmrec_cli.runs.run import Run, RunKind, name_run, run_at

_WHOLE = ("tokens", "peak_bytes", "eval_peak_bytes")
UNKNOWN = Cost(*[None] * len(fields(Cost)))


def measure_cost(run: Run, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> Cost:
    """The cost of one evaluated run; older runs have recorded less.

    Args:
        run: its parents lie beside it.
        manifest: its manifest.json.
        report: its report.json.
    """
    own, took = _measure_training(run, manifest), _read_measured(manifest)
    lineage = [own, *map(_measure_ancestor, find_ancestors(run, manifest))]
    asked = report.get("cost", {})
    per_second = asked.get("rows_per_second")
    return Cost(
        train_seconds=own.seconds,
        lineage_seconds=_total([stage.seconds for stage in lineage]),
        valid_seconds=own.valid_seconds,
        device=took.get("device"),
        processes=took.get("processes"),
        device_seconds=_total([stage.device_seconds for stage in lineage]),
        tokens=_total([stage.tokens for stage in lineage]),
        peak_bytes=took.get("peak_bytes"),
        eval_seconds=asked.get("seconds"),
        eval_peak_bytes=asked.get("peak_bytes"),
        milliseconds_per_row=1000 / per_second if per_second else None,
    )


def find_ancestors(run: Run, manifest: Mapping[str, Any]) -> list[Run]:
    """The runs beside it that a run stands on: its parents, and models that score items for it."""
    facts = manifest.get("facts", {})
    scores = (name_run(RunKind.BASELINE, table) for table in facts.get("scores", {}))
    return [run_at(run.folder.parent / name) for name in (*facts.get("lineage", [])[1:], *scores)]


def average_costs(costs: Sequence[Cost]) -> Cost:
    """Means over seeds; unknown where one of them is, or where devices or processes differ."""
    found: dict[str, Any] = {}
    for field in fields(Cost):
        values = [getattr(cost, field.name) for cost in costs]
        if field.name in ("device", "processes"):
            found[field.name] = values[0] if len(set(values)) == 1 else None
        elif None in values:
            found[field.name] = None
        else:
            mean = sum(values) / len(values)
            found[field.name] = round(mean) if field.name in _WHOLE else mean
    return Cost(**found)


@dataclass(frozen=True, slots=True)
class _Training:
    """What the updates of one stage took; None: not recorded."""

    seconds: float | None = None
    valid_seconds: float | None = None
    device_seconds: float | None = None
    tokens: int | None = None


def _measure_ancestor(run: Run) -> _Training:
    """Of a run that another one stands on; unknown where it is gone."""
    there = run.manifest_file.is_file()
    return _measure_training(run, run.read_manifest()) if there else _Training()


def _read_measured(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of a stage; older runs have only counted their processes."""
    return {**manifest.get("outcome", {}), **manifest.get("cost", {})}


def _measure_training(run: Run, manifest: Mapping[str, Any]) -> _Training:
    took = _read_measured(manifest)
    if "train" not in manifest.get("settings", {}).get("stage", {}):
        return _Training(took.get("seconds"), 0.0, took.get("seconds"), 0)  # counted, not trained
    logged = MetricsLog(run.metrics_file).rows()
    rows = [row for row in logged if {"seconds", "tokens"} <= row.keys()]
    if not rows:
        return _Training()
    seconds, processes = sum(row["seconds"] for row in rows), took.get("processes")
    validations = [row.get("valid_seconds") for row in rows if "valid_loss" in row]
    return _Training(
        seconds=seconds,
        valid_seconds=_total(validations),
        device_seconds=seconds * processes if processes else None,
        tokens=sum(row["tokens"] for row in rows),
    )


def _total(values: Sequence[Any]) -> Any:
    return None if None in values else sum(values)
