"""Signals wait until the block ends, the first one counts, and ignored ones stay ignored."""

from __future__ import annotations

import signal

import pytest

from llmrec_cli.training.launch import SIGNALS, Stopped, defer_signals, list_heeded_signals

pytestmark = pytest.mark.usefixtures("signals_as_before")
HELD = [n for n in SIGNALS if n != signal.SIGINT]


@pytest.fixture
def got() -> list[int]:
    """The signals that arrive outside of a block."""
    arrived: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: arrived.append(number))
    return arrived


def test_the_signals_that_systems_send_before_they_kill() -> None:
    names = {signal.Signals(number).name for number in SIGNALS}
    assert names == {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}


@pytest.mark.parametrize("agreed", [0, *HELD])
def test_the_signal_agreed_on_or_else_the_first_is_delivered_once_the_block_ends(
    agreed: int, got: list[int]
) -> None:
    with defer_signals() as stop:
        assert stop.asked == 0
        signal.raise_signal(signal.SIGINT)
        for number in SIGNALS:
            signal.raise_signal(number)
        assert stop.asked == signal.SIGINT
        assert got == []
        stop.agreed = agreed
    assert got == [agreed or signal.SIGINT]
    signal.raise_signal(signal.SIGTERM)
    assert got[1:] == [signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: int, got: list[int]) -> None:
    signal.signal(number, signal.SIG_IGN)
    assert number not in list_heeded_signals()
    with defer_signals() as stop:
        signal.raise_signal(number)
        assert stop.asked == 0
    assert got == []
    assert signal.getsignal(number) == signal.SIG_IGN


def test_what_another_process_heeded_ends_this_one_too(got: list[int]) -> None:
    """Otherwise half a training would pass for a whole one."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(Stopped) as stopped, defer_signals() as stop:
        stop.agreed = signal.SIGHUP
    assert stopped.value.exit_code == 143
    assert got == []
