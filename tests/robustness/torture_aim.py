"""Where the next kill goes: drawn over the command's time, its phases, and its saves."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

from tests.robustness.operations import REFUSALS
from tests.robustness.torture_attempt import START, WRITING, Attempt, Kill

SAVES, REFUSED, ALONE = 0.6, 0.12, 0.25  # shares; some that aim at a save come a moment late
LAST_OPERATION = 24  # of a save, a little more than it has


def drawn(straight: Attempt, left: float, processes: int, draw: random.Random) -> Kill:
    """A kill, or now and then a refused operation.

    Args:
        straight: the uninterrupted run, for the durations.
        left: share of the updates that are still to be done.
        processes: of several ranks, one alone is killed now and then.
    """
    if draw.random() < REFUSED:
        phase = draw.choice(_phases(straight))
        number = draw.choice(list(REFUSALS.values()))
        operation = draw.randint(1, LAST_OPERATION if phase in WRITING else 4)
        return Kill("refused", phase, operation=operation, refused=number)
    if draw.random() < SAVES:
        return _of_a_save(straight, draw)
    kill = _anywhere(straight, left, draw)
    if processes == 1 or draw.random() >= ALONE:
        return kill
    return replace(kill, kind=f"{kill.kind}, one rank", alone=draw.randrange(processes))


def _of_a_save(straight: Attempt, draw: random.Random) -> Kill:
    phase, nth = draw.choice([*WRITING, "save", "save"]), draw.randint(1, 3)
    if draw.random() < 0.5:
        operation = draw.randint(1, LAST_OPERATION)
        return Kill("before an operation of a save", phase, nth, operation=operation)
    return Kill("inside a save", phase, nth, delay=_within(straight, phase, draw))


def _anywhere(straight: Attempt, left: float, draw: random.Random) -> Kill:
    if draw.random() < 0.5:
        start = next((at for at, phase in straight.events if phase == "training"), 0.0)
        expected = start + left * (straight.seconds - start)
        return Kill("any moment", delay=draw.random() * expected)
    phase = draw.choice([phase for phase in _phases(straight) if phase not in WRITING])
    nth = draw.randint(1, min(len(straight.spans(phase)), 2))
    return Kill("in a phase", phase, nth, delay=_within(straight, phase, draw))


def _phases(straight: Attempt) -> list[str]:
    return sorted({phase for _, phase in straight.events} - {START})


def _within(straight: Attempt, phase: str, draw: random.Random) -> float:
    return draw.random() * 0.8 * statistics.median(straight.spans(phase))
