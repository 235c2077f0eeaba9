"""Stopping between two updates: a signal waits until the work in hand is whole and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Hold back SIGINT and SIGTERM inside the block, and deliver the first one after it.

    Yields a function that tells whether one has arrived.  Further ones do no harm.  Outside the
    main thread, where Python has no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: arrived.append(number)) for n in SIGNALS}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])
