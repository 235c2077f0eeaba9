"""The figures of a run's report, as its model card shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import REPORT_FILE, read_json
from llmrec_cli.report.model_card import Rows

_HISTORY = {"keep": "history kept", "remove": "history removed"}


@dataclass(frozen=True)
class CardScores:
    """Figures of the test split; all empty where it was not evaluated."""

    protocol: str = ""
    headings: tuple[str, ...] = ()
    rows: Rows = ()
    headline: tuple[tuple[str, float], ...] = ()  # metric and mean, under the headline policy


def read_scores(folder: Path, manifest: Mapping[str, Any]) -> CardScores:
    """What ``report.json`` says.

    Raises:
        ArtefactError: the report is damaged.
    """
    if not (folder / REPORT_FILE).is_file():
        return CardScores()
    try:
        return _scores(read_json(folder / REPORT_FILE), manifest)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ArtefactError(f"{folder / REPORT_FILE}: not a report of llmrec eval") from None


def _scores(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> CardScores:
    protocol = report["protocol"]
    if "seen" in protocol:
        policies = sorted(_HISTORY, key=lambda policy: policy != protocol["seen"])
        metrics = {_HISTORY[policy]: report[policy]["metrics"] for policy in policies}
    else:
        metrics = {"two candidates": report["metrics"]}
    first = next(iter(metrics.values()))
    names = sorted((name for name in first if name != "ndcg@1"), key=_order)  # which is hr@1
    rows = [(name.upper(), *(_figure(found[name]) for found in metrics.values())) for name in names]
    return CardScores(
        _protocol(report, manifest.get("opened", {}).get("test", 1)),
        ("metric", *metrics),
        rows,
        tuple((name, round(first[name]["mean"], 6)) for name in names),
    )


def _order(name: str) -> tuple[str, int]:
    metric, _, cutoff = name.partition("@")
    return metric, int(cutoff or 0)


def _figure(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "-"
    low, high = (found[end] for end in ("low", "high"))
    ends = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
    return f"{found['mean']:.4f}{ends}"


def _protocol(report: Mapping[str, Any], opened: int) -> str:
    protocol = report["protocol"]
    times = "once" if opened == 1 else f"{opened} times"
    found = (
        f"The {protocol['split']} split, {report['rows']:,} rows of {report['users']:,} users; "
        f"candidates: {protocol['candidates']}; it was opened {times} for this run."
    )
    if "decoder" in protocol:
        chosen = ", ".join(f"{key} = {value}" for key, value in protocol["decoder"].items())
        found += f" Decoder: {chosen}."
    return found
