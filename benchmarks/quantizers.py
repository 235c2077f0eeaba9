"""``python -m benchmarks.quantizers``: how the making of semantic IDs grows with the catalogue.

Synthetic vectors in clusters, three levels of 256 codes, one thread.  Every point is measured in a
process of its own: seconds to fit and to encode, and the memory above what the vectors take.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.machine import as_line, machine
from llmrec_cli.tokens.quantizers import find_quantizer, quantizer_names
from llmrec_cli.tokens.quantizers.contract import Size
from llmrec_cli.utils.progress import Silent

SIZE = Size(levels=3, codes=256)
CLUSTERS, SPREAD = 1000, 0.5


@dataclass(frozen=True)
class Point:
    """What is quantized."""

    quantizer: str
    items: int
    width: int = 384  # of a vector: MiniLM's
    epochs: int | None = None  # of an autoencoder; None: the default


@dataclass(frozen=True)
class Measured:
    """What it took."""

    fit_seconds: float
    encode_seconds: float
    megabytes: float  # the largest resident set, less what it was with the vectors alone
    distinct: float  # share of items with codes of their own
    lost: float  # share of the variance that three levels lose


def draw_clusters(items: int, width: int) -> Tensor:
    """Vectors [I, D] of length 1 around ``CLUSTERS`` centres, always the same."""
    generator = torch.Generator().manual_seed(0)
    centres_CD = torch.randn(CLUSTERS, width, generator=generator)
    of_item_I = torch.randint(CLUSTERS, (items,), generator=generator)
    vectors_ID = torch.randn(items, width, generator=generator).mul_(SPREAD)
    for start in range(0, items, 1 << 16):  # in place: a million rows are 1.5 GB
        part = slice(start, start + (1 << 16))
        vectors_ID[part] += centres_CD[of_item_I[part]]
        vectors_ID[part] /= vectors_ID[part].norm(dim=1, keepdim=True)
    return vectors_ID


def measure(point: Point) -> Measured:
    """Fit, then encode, in this process."""
    quantizer = find_quantizer(point.quantizer)
    options = quantizer.options()
    if point.epochs is not None:
        options = options.model_copy(update={"epochs": point.epochs})
    vectors_ID = draw_clusters(point.items, point.width)
    before = _peak()
    begun = time.perf_counter()
    with Silent().track("fit", quantizer.work(options, SIZE)) as advance:
        tensors = quantizer.fit(options, vectors_ID, SIZE, 0, advance)
    fitted = time.perf_counter()
    codes = quantizer.encode(options, tensors, vectors_ID, SIZE)
    encoded = time.perf_counter()
    _, counts = torch.unique(codes.code_IL, dim=0, return_counts=True)
    return Measured(
        fitted - begun,
        encoded - fitted,
        _peak() - before,
        int((counts == 1).sum()) / point.items,
        codes.error_L[-1],
    )


def _peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_apart(point: Point) -> Measured:
    """``measure`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quantizers", "--point", json.dumps(asdict(point))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ourselves
    return Measured(**json.loads(done.stdout))


def format_row(point: Point, found: Measured) -> str:
    """A line of the table."""
    epochs = "" if point.epochs is None else f", {point.epochs} epochs"
    return (
        f"| {point.quantizer}{epochs} | {point.items:,} | {found.fit_seconds:.1f} | "
        f"{found.encode_seconds:.2f} | {found.megabytes:,.0f} | {found.distinct:.1%} | "
        f"{found.lost:.3f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every point that is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantizers", description=__doc__)
    parser.add_argument("--quantizer", nargs="+", default=quantizer_names())
    parser.add_argument("--items", nargs="+", type=int, default=[1_000, 10_000])
    parser.add_argument("--width", type=int, default=Point.width)
    parser.add_argument("--epochs", type=int, help="of the autoencoders")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.point:
        print(json.dumps(asdict(measure(Point(**json.loads(asked.point))))))
        return 0
    print(as_line(machine()))
    print("\n| quantizer | items | fit, s | encode, s | memory, MB | own codes | variance lost |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in asked.quantizer:
        epochs = asked.epochs if "epochs" in find_quantizer(name).options.model_fields else None
        for items in asked.items:
            point = Point(name, items, asked.width, epochs)
            print(format_row(point, measure_apart(point)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
