"""Stopping between two updates: a signal waits until the work in hand is whole and saved.

SIGINT means "interrupted", every other signal of the table "terminated".  A signal that was ignored
when this process started (``nohup``, ``trap '' HUP``) stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

_MEANINGS: Final = {
    "SIGINT": "interrupted",
    "SIGTERM": "terminated",
    "SIGHUP": "terminated (SIGHUP)",  # a terminal was closed
    "SIGUSR1": "terminated (SIGUSR1)",  # what batch systems send some time before the end
    "SIGUSR2": "terminated (SIGUSR2)",
    "SIGXCPU": "terminated (SIGXCPU: the limit on processor time)",
}
SIGNALS: Final[Mapping[int, str]] = {
    getattr(signal, name): meaning for name, meaning in _MEANINGS.items() if hasattr(signal, name)
}
"""The signals that end a command, and what its last line calls them."""


class Stopped(BaseException):
    """A signal arrived; not a KeyboardInterrupt, which typer would swallow.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for every other signal."""
        return 128 + passed_on(self.number)

    def __str__(self) -> str:
        return SIGNALS.get(self.number, "terminated")


def passed_on(number: int) -> signal.Signals:
    """What a process that was sent ``number`` sends to those that it started."""
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM


def heeded() -> list[int]:
    """The signals of the table that are not ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def handle_signals(handler: Callable[[int, Any], object]) -> Iterator[list[int]]:
    """Give the signals that are not ignored to ``handler`` inside the block.

    Yields:
        Their numbers.
    """
    before = {number: signal.signal(number, handler) for number in heeded()}
    try:
        yield list(before)
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier or signal.SIG_DFL)  # None: not set by Python


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

    Raises:
        Stopped: the one that was agreed on is ignored by this process; another one heeded it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def hold(number: int, frame: object) -> None:
        stop.arrived.append(number)

    with handle_signals(hold) as numbers:
        yield stop
    if wanted := stop.agreed or stop.asked:
        if wanted not in numbers:
            raise Stopped(wanted)
        signal.raise_signal(wanted)
