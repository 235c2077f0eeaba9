"""Ways of doing one piece of work on a device: time, memory, host synchronisations, report."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import as_line

Loss = Callable[[], Tensor]
TOLERANCE = 1e-3  # relative, of loss and gradients in float32


@dataclass(frozen=True)
class Line:
    """One way of doing one piece of work; the first line of a piece of work is its peer."""

    work: str
    way: str
    seconds: list[float]  # empty: out of memory
    peak_mb: float | None  # None: no CUDA device
    same: bool | None  # the answer is the peer's; None: there is none to compare
    users: int | None = None  # decoded in one call


@dataclass
class Report:
    """Everything that is written."""

    machine: dict[str, str]
    lines: list[Line] = field(default_factory=list)
    synchronisations: dict[str, dict[str, int] | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """Where and how ways are measured."""

    device: torch.device
    dtype: torch.dtype
    repeats: int

    def timed(
        self,
        work: str,
        ways: Mapping[str, Callable[[], object]],
        same: Mapping[str, bool],
        users: int | None = None,
    ) -> list[Line]:
        """Every way in turn, after a warm-up that also measures memory."""
        peaks: dict[str, float | None] = {}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for way, call in ways.items():
            with suppress(torch.OutOfMemoryError):
                peaks[way] = self.peak(call)
        for _ in range(self.repeats):
            for way in peaks:
                seconds[way].append(self.seconds(ways[way]))
        return [Line(work, way, seconds[way], peaks.get(way), same.get(way), users) for way in ways]

    def seconds(self, work: Callable[[], object]) -> float:
        """Time of one call: CUDA events on a CUDA device, else the clock."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000

    def peak(self, work: Callable[[], object]) -> float | None:
        """MB by which a call raises the memory of a CUDA device, after two to warm up."""
        for _ in range(2):
            work()
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def synchronisations(self, work: Callable[[], object]) -> Counter[str] | None:
        """Where one call makes the host wait for the device: file and line, with how often."""
        if self.device.type != "cuda":
            return None
        work()
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in caught if "synchronizing CUDA" in str(w.message)]
        return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)

    def to_device(self, value: Any, dtype: torch.dtype = torch.float32) -> Any:
        """A copy with every tensor on the device, floating-point ones in ``dtype``, as leaves."""
        if isinstance(value, Tensor):
            moved = value.detach().to(self.device, dtype if value.is_floating_point() else None)
            return moved.requires_grad_(value.requires_grad)
        if not is_dataclass(value) or isinstance(value, type):
            return value
        parts = {f.name: self.to_device(getattr(value, f.name), dtype) for f in fields(value)}
        return replace(value, **parts)


def agreement(ways: Mapping[str, Loss], leaves: Sequence[Tensor]) -> dict[str, bool]:
    """Whether each way has the first one's loss and gradients; what does not fit is left out."""
    expected: list[Tensor] = []
    same = {}
    for way, loss in ways.items():
        for leaf in leaves:
            leaf.grad = None
        try:
            total = loss()
            torch.autograd.backward(total)
        except torch.OutOfMemoryError:
            continue
        answer = [total.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        expected = expected or answer
        same[way] = all(
            bool((mine - theirs).norm() <= TOLERANCE * theirs.norm())
            for mine, theirs in zip(answer, expected, strict=True)
        )
    for leaf in leaves:
        leaf.grad = None
    return same


def backward_of(ways: Mapping[str, Loss]) -> dict[str, Callable[[], object]]:
    """Each loss with its backward pass."""
    return {way: partial(_backward, loss) for way, loss in ways.items()}


def _backward(loss: Loss) -> None:
    torch.autograd.backward(loss())


def device_facts(device: torch.device) -> dict[str, str]:
    """Name and memory of the device, and the CUDA that torch was built for."""
    if device.type != "cuda":
        return {"device": "cpu"}
    found = torch.cuda.get_device_properties(device)
    return {
        "device": f"{found.name}, {found.total_memory / 2**30:.0f} GiB",
        "cuda": str(torch.version.cuda),
    }


def write(folder: Path, report: Report) -> None:
    """``gpu.json`` with every repeat, and ``gpu.md``."""
    (folder / "gpu.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    (folder / "gpu.md").write_text(as_text(report))


def as_text(report: Report) -> str:
    """The report as Markdown."""
    names = ("work", "way", "ms", "spread", "faster", "MB", "users/s", "same answer")
    table = [list(names), ["---"] * len(names)]
    peers = {line.work: line for line in reversed(report.lines)}
    table += [_cells(line, peers[line.work]) for line in report.lines]
    parts = [as_line(report.machine), "\n".join(f"| {' | '.join(row)} |" for row in table)]
    for work, places in report.synchronisations.items():
        if places is None:
            parts.append(f"{work}: host synchronisations are counted on a CUDA device only")
            continue
        listed = ", ".join(f"{place} ({times})" for place, times in places.items())
        parts.append(f"{work}: {sum(places.values())} host synchronisations: {listed or 'none'}")
    parts += [f"{suite} FAILED: {error}" for suite, error in report.failed.items()]
    return "\n\n".join(parts) + "\n"


def _cells(line: Line, peer: Line) -> list[str]:
    same = {True: "yes", False: "NO", None: ""}[line.same]
    if not line.seconds:
        return [line.work, line.way, "out of memory", "", "", "", "", same]
    middle = statistics.median(line.seconds)
    return [
        line.work,
        line.way,
        f"{1e3 * middle:.4g}",
        f"{1e3 * min(line.seconds):.4g}..{1e3 * max(line.seconds):.4g}",
        f"{statistics.median(peer.seconds) / middle:.3g}" if peer.seconds else "",
        "" if line.peak_mb is None else f"{line.peak_mb:,.0f}",
        f"{line.users / middle:,.0f}" if line.users else "",
        same,
    ]
