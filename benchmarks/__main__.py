"""``python -m benchmarks --size ci|full``: every row timed beside its peer, as a table and JSON.

A ratio is the peer's time over ours, measured in turn in this run; the median of them counts, the
lowest and highest are the spread.  The exit code is 1
when an answer differs, or in the CI size when a ratio falls under its floor (``floors.json``, well
under the measured medians, since machines are noisy).  Bars stand in the table; a row
under its bar at the full size is a finding, not a failure.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.table import Row

SUITES = (
    "sampler",
    "loss_head",
    "training_step",
    "preferences",
    "rollouts",
    "cross_layer",
    "memory",
    "decoding",
    "guided",
    "pretrained",
    "reading",
    "startup",
)
FLOORS = Path(__file__).with_name("floors.json")


def main() -> int:
    """Run the suites; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", choices=("ci", "full"), default="ci")
    parser.add_argument("--only", choices=SUITES, help="one suite")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    console = Console(width=140)
    measured = []
    for suite in [arguments.only] if arguments.only else SUITES:
        console.print(f"{suite} ...")
        for row in importlib.import_module(f"benchmarks.{suite}").rows(arguments.size):
            measured.append(_figures(suite, row))
            console.print(f"  {row.name}, beside {row.peer}: {measured[-1]['ratio']:.3g}")
    console.print(_table(measured, arguments.size))
    if arguments.json:
        document = {"size": arguments.size, "machine": _machine(), "rows": measured}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    faults = [f"{row['name']}: the answers differ" for row in measured if not row["agrees"]]
    if arguments.size == "ci":
        faults += _under_floor(measured)
    for fault in faults:
        console.print(fault)
    return 1 if faults else 0


def _figures(suite: str, row: Row) -> dict[str, Any]:
    return {
        "suite": suite,
        "name": row.name,
        "peer": row.peer,
        "peer_figure": statistics.median(row.peer_seconds),
        "our_figure": statistics.median(row.our_seconds),
        "ratio": statistics.median(row.ratios),
        "lowest": min(row.ratios),
        "highest": max(row.ratios),
        "bar": row.bar,
        "unit": row.unit,
        "agrees": row.agrees,
        "detail": row.detail,
    }


def _table(measured: list[dict[str, Any]], size: str) -> Table:
    table = Table(title=f"{size} size; {_machine()}", title_justify="left")
    for name in ("work", "peer", "peer's", "ours", "ratio", "spread", "bar", "same", "detail"):
        table.add_column(name)
    for row in measured:
        table.add_row(
            row["name"],
            row["peer"],
            f"{row['peer_figure']:.4g} {row['unit']}",
            f"{row['our_figure']:.4g} {row['unit']}",
            f"{row['ratio']:.3g}",
            f"{row['lowest']:.3g}..{row['highest']:.3g}",
            "" if row["bar"] is None else f"{row['bar']:g}",
            "yes" if row["agrees"] else "NO",
            row["detail"],
        )
    return table


def _under_floor(measured: list[dict[str, Any]]) -> list[str]:
    floors = json.loads(FLOORS.read_text())
    faults = []
    for row in measured:
        floor = floors.get(f"{row['name']} | {row['peer']}")
        if floor is not None and row["ratio"] < floor:
            faults.append(f"{row['name']} against {row['peer']}: {row['ratio']:.3g} < {floor}")
    return faults


def _machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
