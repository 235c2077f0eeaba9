"""Stopping between two updates: a signal waits until the work in hand is whole and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what batch systems send some time before the end; it means SIGTERM."""


@dataclass
class Stop:
    """What has arrived, and what all processes agreed on."""

    arrived: list[int] = field(default_factory=list)
    agreed: int = 0  # the signal that ends the run on every process; 0: none

    @property
    def asked(self) -> int:
        """The first signal that has arrived here, 0 for none."""
        return self.arrived[0] if self.arrived else 0


@contextmanager
def deferred_signals() -> Iterator[Stop]:
    """Hold back signals inside the block; deliver the one that was agreed on after it.

    Further ones do no harm.  Outside the main thread, where Python has no signals, nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, lambda number, _: stop.arrived.append(number)) for n in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if wanted := stop.agreed or stop.asked:
        signal.raise_signal(wanted)
