"""``python -m benchmarks.growth``: how the decoder's time and memory grow, as curves.

Exact search (k = 10) with a small random Llama, and the building of its trie, along five axes:
items, users at once, title length, history length and list length.  Every point is measured in a
fresh process (``growth_point``).  Beside each curve stands the prefill of the same prompts alone,
which no decoder can go below.  The exit code is 1 when a list is not the true top k.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.machine import as_line, machine

Size = Literal["ci", "full"]
Catalogue = Literal["titles", "semantic IDs"]
CATALOGUES: tuple[Catalogue, ...] = ("titles", "semantic IDs")


@dataclass(frozen=True)
class Point:
    """What is decoded; one of its numbers grows along a curve."""

    catalogue: Catalogue = "titles"
    items: int = 10_000
    title: int = 10  # tokens, on average
    users: int = 16  # decoded at once
    prompt: int = 200  # tokens, at most
    k: int = 10
    vocabulary: int = 32_000
    repeats: int = 5


@dataclass(frozen=True)
class Measured:
    """Seconds of every repeat, and megabytes above what was resident before."""

    build_seconds: list[float]  # of the trie
    prefill_seconds: list[float]  # of all users
    decode_seconds: list[float]  # of all users, prefill included
    build_mb: float
    prefill_mb: float
    decode_mb: float
    process_mb: float  # the largest resident set, libraries, weights and catalogue included
    trie_mb: float
    trie_nodes: int
    right: bool | None  # the lists are the true ones; None: too many items to score them all


Taken = tuple[Point, Measured]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: several quantities of the same unit."""

    label: str
    series: dict[str, Callable[[Point, Measured], list[float]]]


@dataclass(frozen=True)
class Curve:
    """One axis of growth: a field of ``Point``, its values at each size, and what is drawn."""

    axis: str
    label: str
    values: dict[Size, tuple[int, ...]]
    panels: tuple[Panel, ...]
    catalogues: tuple[Catalogue, ...] = ("titles",)

    def points(self, size: Size) -> list[Point]:
        base = BASE[size]
        return [
            replace(base, catalogue=kind, **{self.axis: value})
            for kind in self.catalogues
            for value in self.values[size]
        ]


BASE: dict[Size, Point] = {
    "ci": Point(items=1_000, users=4, prompt=40, vocabulary=4_000, repeats=3),
    "full": Point(),
}
TIME = Panel(
    "milliseconds for all users",
    {
        "exact top k": lambda _, m: [1e3 * s for s in m.decode_seconds],
        "prefill alone": lambda _, m: [1e3 * s for s in m.prefill_seconds],
    },
)
MEMORY = Panel(
    "MB above the resident model",
    {
        "exact top k": lambda _, m: [m.decode_mb],
        "prefill alone": lambda _, m: [m.prefill_mb],
    },
)
BUILD = Panel("seconds to build the trie", {"trie": lambda _, m: m.build_seconds})
SPACE = Panel(
    "MB",
    {
        "trie": lambda _, m: [m.trie_mb],
        "building it, at its peak": lambda _, m: [m.build_mb],
        "whole process, at its peak": lambda _, m: [m.process_mb],
    },
)
RATE = Panel(
    "users a second",
    {
        "exact top k": lambda p, m: [p.users / s for s in m.decode_seconds],
        "prefill alone": lambda p, m: [p.users / s for s in m.prefill_seconds],
    },
)
PER_USER = Panel(
    "MB a user, above the resident model",
    {
        "exact top k": lambda p, m: [m.decode_mb / p.users],
        "prefill alone": lambda p, m: [m.prefill_mb / p.users],
    },
)
CURVES = (
    Curve(
        "items",
        "items of the catalogue",
        {"ci": (300, 1_000), "full": (1_000, 10_000, 100_000, 1_000_000)},
        (TIME, BUILD, SPACE),
        CATALOGUES,
    ),
    Curve(
        "users",
        "users decoded at once",
        {"ci": (1, 4), "full": (1, 2, 4, 8, 16, 32, 64, 128, 256)},
        (RATE, PER_USER),
    ),
    Curve(
        "title",
        "tokens of a title, on average",
        {"ci": (5, 10), "full": (5, 10, 20, 40, 80)},
        (TIME, MEMORY, BUILD),
    ),
    Curve(
        "prompt",
        "tokens of a prompt (history), at most",
        {"ci": (20, 40), "full": (50, 100, 200, 400, 800)},
        (TIME, MEMORY),
    ),
    Curve(
        "k",
        "list length k",
        {"ci": (1, 10), "full": (1, 2, 5, 10, 20, 50, 100)},
        (TIME, MEMORY),
    ),
)
COLUMNS: dict[str, Callable[[Point, Measured], str]] = {
    "catalogue": lambda p, m: p.catalogue,
    "exact top k, ms": lambda p, m: _spread([1e3 * s for s in m.decode_seconds]),
    "prefill alone, ms": lambda p, m: _spread([1e3 * s for s in m.prefill_seconds]),
    "ratio": lambda p, m: (
        f"{statistics.median(m.decode_seconds) / statistics.median(m.prefill_seconds):.2f}"
    ),
    "users/s": lambda p, m: f"{p.users / statistics.median(m.decode_seconds):,.0f}",
    "decoding, MB": lambda p, m: f"{m.decode_mb:.1f}",
    "prefill, MB": lambda p, m: f"{m.prefill_mb:.1f}",
    "trie, s": lambda p, m: _spread(m.build_seconds),
    "trie nodes": lambda p, m: f"{m.trie_nodes:,}",
    "trie, MB": lambda p, m: f"{m.trie_mb:.2f}",
    "building it, MB": lambda p, m: f"{m.build_mb:.1f}",
    "process, MB": lambda p, m: f"{m.process_mb:,.0f}",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every curve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--size", choices=("ci", "full"), default="ci")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-growth"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = machine()
    taken: dict[Point, Measured] = {}  # curves share the point where all numbers are the base's
    for curve in CURVES:
        for point in curve.points(arguments.size):
            if point not in taken:
                taken[point] = in_a_process(point)
                print(f"{curve.axis}: {_told(point, taken[point])}", flush=True)
    write(arguments.out, arguments.size, taken, facts)
    print(f"{arguments.out}: written")
    wrong = [point for point, measured in taken.items() if measured.right is False]
    for point in wrong:
        print(f"{point}: not the true top k")
    return 1 if wrong else 0


def in_a_process(point: Point) -> Measured:
    """Measure one point in a fresh process, so that no other point has grown its memory."""
    command = [sys.executable, "-m", "benchmarks.growth_point", json.dumps(asdict(point))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ourselves
    return Measured(**json.loads(done.stdout))


def write(folder: Path, size: Size, taken: dict[Point, Measured], facts: dict[str, str]) -> None:
    """``growth.json``, ``growth.md``, and a PNG and an SVG of every curve."""
    curves = {c.axis: [(point, taken[point]) for point in c.points(size)] for c in CURVES}
    document = {
        "size": size,
        "machine": facts,
        "curves": {
            axis: [{"point": asdict(p), "measured": asdict(m)} for p, m in rows]
            for axis, rows in curves.items()
        },
    }
    (folder / "growth.json").write_text(json.dumps(document, indent=2) + "\n")
    tables = [as_line(facts), *(_table(curve, curves[curve.axis]) for curve in CURVES)]
    (folder / "growth.md").write_text("\n\n".join(tables) + "\n")
    for curve in CURVES:
        draw(curve, curves[curve.axis], folder / f"growth-{curve.axis}")


def draw(curve: Curve, rows: Sequence[Taken], path: Path) -> None:
    """One picture: medians as lines, least to greatest as bars, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(4.6 * len(curve.panels), 4.2), layout="constrained")
    for panel, axes in zip(curve.panels, figure.subplots(1, len(curve.panels)), strict=True):
        for kind in curve.catalogues:
            chosen = [(p, m) for p, m in rows if p.catalogue == kind]
            x = [getattr(point, curve.axis) for point, _ in chosen]
            for name, quantity in panel.series.items():
                samples = [quantity(point, measured) for point, measured in chosen]
                middle = [statistics.median(s) for s in samples]
                below = [m - min(s) for m, s in zip(middle, samples, strict=True)]
                above = [max(s) - m for m, s in zip(middle, samples, strict=True)]
                label = f"{name}, {kind}" if len(curve.catalogues) > 1 else name
                axes.errorbar(
                    x, middle, (below, above), label=label, marker="o", capsize=3,
                    linestyle="--" if name.startswith("prefill") else "-",
                )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=curve.label, ylabel=panel.label)
        axes.set_xticks(x, labels=[f"{value:,}" for value in x], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="major", alpha=0.3)
        axes.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _table(curve: Curve, rows: Sequence[Taken]) -> str:
    names = [curve.label, *COLUMNS]
    lines = [
        [f"{getattr(point, curve.axis):,}", *(show(point, m) for show in COLUMNS.values())]
        for point, m in rows
    ]
    table = [names, ["---"] * len(names), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _told(point: Point, measured: Measured) -> str:
    numbers = f"{point.items:,} {point.catalogue}, title {point.title}, {point.users} users"
    shown = {name: show(point, measured) for name, show in COLUMNS.items() if name != "catalogue"}
    return f"{numbers}, prompt {point.prompt}, k {point.k}: " + ", ".join(
        f"{name} {value}" for name, value in shown.items()
    )


def _spread(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):.3g} ({min(samples):.3g}..{max(samples):.3g})"


if __name__ == "__main__":
    sys.exit(main())
