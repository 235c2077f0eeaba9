"""What every benchmark delivers: rows with the peer's way beside ours, timed in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WINDOW = 0.3  # seconds
MOST = 200  # times, of a work that takes next to nothing


@dataclass(frozen=True)
class Row:
    """One comparison.  The median of paired ratios is held against ``bar``; ``None``: no bar."""

    name: str
    peer: str  # whose way it is timed against
    peer_seconds: list[float]
    our_seconds: list[float]
    agrees: bool  # both gave the same answer
    bar: float | None
    detail: str = ""
    unit: str = "s"  # of both figures; less is better

    @property
    def ratios(self) -> list[float]:
        """The peer's figure over ours, for each time that they were taken in turn."""
        return [p / o for p, o in zip(self.peer_seconds, self.our_seconds, strict=True)]


def alternate(
    peer: Callable[[], object], ours: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each, run in turn, so that a machine that drifts does so for both.

    A short work runs again and again until ``WINDOW`` has passed, and the median of all but the
    first time counts: it would be the other side's freed memory that is timed otherwise, many
    times the work itself.
    """
    peer_seconds, our_seconds = [], []
    for _ in range(repeats):
        peer_seconds.append(_settled_seconds(peer))
        our_seconds.append(_settled_seconds(ours))
    return peer_seconds, our_seconds


def median_seconds(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each of several works, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(_seconds(work))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _settled_seconds(work: Callable[[], object]) -> float:
    taken = [_seconds(work)]
    while sum(taken) < WINDOW and len(taken) < MOST:
        taken.append(_seconds(work))
    return statistics.median(taken[1:] or taken)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
