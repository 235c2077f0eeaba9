"""Signals wait until the block ends, and the first one counts."""

from __future__ import annotations

import signal

import pytest

from llmrec_cli.engine.stop import SIGNALS, deferred_signals


@pytest.mark.parametrize("agreed", [0, signal.SIGUSR1])
def test_the_signal_agreed_on_or_else_the_first_is_delivered_once_the_block_ends(
    agreed: int,
) -> None:
    got: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: got.append(number)) for n in SIGNALS}
    try:
        with deferred_signals() as stop:
            assert stop.asked == 0
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked == signal.SIGINT
            assert got == []
            stop.agreed = agreed
        assert got == [agreed or signal.SIGINT]
        signal.raise_signal(signal.SIGTERM)
        assert got[1:] == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
