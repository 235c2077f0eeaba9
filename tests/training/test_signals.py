"""Signals wait until the block ends, the first one counts, and ignored ones stay ignored."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

from llmrec_cli.training import launch
from llmrec_cli.training.launch import (
    SIGNALS,
    Stop,
    Stopped,
    Wait,
    defer_signals,
    list_heeded_signals,
)

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
        assert stop.first_signal == 0
        signal.raise_signal(signal.SIGINT)
        for number in SIGNALS:
            signal.raise_signal(number)
        assert stop.first_signal == signal.SIGINT
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
        assert stop.first_signal == 0
    assert got == []
    assert signal.getsignal(number) == signal.SIG_IGN


def test_what_another_process_heeded_ends_this_one_too(got: list[int]) -> None:
    """Otherwise half a training would pass for a whole one."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(Stopped) as stopped, defer_signals() as stop:
        stop.agreed = signal.SIGHUP
    assert stopped.value.exit_code == 143
    assert got == []


def wait_until_heard(stop: Stop) -> None:
    """Until the thread that listens has read what was sent."""
    until = time.monotonic() + 30
    while not stop.insists and time.monotonic() < until:
        time.sleep(0.001)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_answered_at_once_and_once(number: int, got: list[int]) -> None:
    """Also while the main thread is busy: another one says it."""
    told, heard = list[tuple[str, bool]](), threading.Event()
    moments = iter(["finishing update 12, then saving", "saving after update 12"])

    def say(line: str) -> None:
        told.append((line, threading.current_thread() is threading.main_thread()))
        heard.set()

    with defer_signals(lambda: Wait(next(moments), "at checkpoint step-8"), say):
        signal.raise_signal(number)
        assert heard.wait(30)
        signal.raise_signal(signal.SIGTERM)
    again = " again" if number == signal.SIGINT else ""
    line = f"finishing update 12, then saving; Ctrl-C{again} stops now, at checkpoint step-8"
    assert told == [(f"{SIGNALS[number]}: {line}", False)]


@pytest.mark.parametrize("first", SIGNALS)
def test_others_behind_the_first_change_nothing(
    first: int, got: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch systems send theirs more than once."""
    monkeypatch.setattr(launch, "AGAIN", 0.0)
    with defer_signals() as stop:
        for number in (first, *HELD):
            signal.raise_signal(number)
    assert not stop.insists  # the thread has read all of them
    assert got == [first]


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_behind_another_signal_delivers_the_first_one_at_once(
    first: int, got: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "AGAIN", 0.0)
    with defer_signals() as stop:
        signal.raise_signal(first)
        assert got == []
        signal.raise_signal(signal.SIGINT)
        wait_until_heard(stop)
        assert stop.obeyed.wait(30)
        assert got == [first]
    assert got[0] == first


def test_one_ctrl_c_that_arrives_by_two_ways_is_one(
    got: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal sends it to all processes, and a launcher passes it on."""
    monkeypatch.setattr(launch, "AGAIN", 3600.0)
    with defer_signals() as stop:
        for _ in range(5):
            signal.raise_signal(signal.SIGINT)
        assert got == []
    assert not stop.insists
    assert got == [signal.SIGINT]


def test_a_program_that_listens_for_signals_hears_of_them_behind_the_block(got: list[int]) -> None:
    """An event loop around this package has a wake-up of its own."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())
    try:
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
        assert ours.recv(2) == bytes([signal.SIGTERM])
    finally:
        assert signal.set_wakeup_fd(before) == theirs.fileno()
        ours.close()
        theirs.close()
