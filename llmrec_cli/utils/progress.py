"""Progress that stories report and ``cli.py`` shows: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from llmrec_cli.utils.text import strip_controls

Advance = Callable[..., None]
"""``advance(n=1, note="")``: n more units are done; ``note`` shows the latest figures."""


class Progress(Protocol):
    """What a story may say while it works."""

    def say(self, text: str) -> None:
        """One line about what happens now."""

    def track(
        self, label: str, total: int, done: int = 0, unit: str = "it"
    ) -> AbstractContextManager[Advance]:
        """A context in which work of a known size advances."""


class Silent:
    """Says nothing (library use, tests, ranks other than the first)."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Advance]:
        """Nothing."""
        yield lambda n=1, note="": None


class Lines:
    """Plain lines, a few per task, for logs and pipes."""

    def __init__(
        self,
        stream: TextIO | None = None,
        every: float = 10.0,
        write: Callable[[str], object] | None = None,
    ) -> None:
        self.stream: TextIO | None = stream or sys.stderr
        self.every = every  # seconds between two lines of one task
        self.write = write or self._print

    def say(self, text: str) -> None:
        """Write one line; where nobody can read it any more, the work goes on."""
        self.write(strip_controls(text))

    def _print(self, line: str) -> None:
        if self.stream is None:  # stderr was closed by whoever started this
            return
        with suppress(OSError):
            print(line, file=self.stream, flush=True)

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Advance]:
        """Write a line every few seconds, and one at the end with the rate."""
        begun = last = time.monotonic()
        count, begun_at, latest = done, done, ""

        def line(now: float) -> None:
            rate = (count - begun_at) / max(now - begun, 1e-9)
            self.say(f"{label}: {count}/{total} {unit}, {rate:.3g} {unit}/s {latest}".rstrip())

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal count, last, latest
            count, latest = count + n, note or latest
            now = time.monotonic()
            if now - last >= self.every:
                last = now
                line(now)

        yield advance
        line(time.monotonic())


class Rich:
    """Progress bars with rates and the time left, for terminals."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(strip_controls(text), markup=False, highlight=False)

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Advance]:
        """Show a bar."""
        bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
        )
        with bars:
            task = bars.add_task(label, total=total, completed=done, rate="", note="")
            begun, count = time.monotonic(), 0

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal count
                count += n
                rate = f"{count / max(time.monotonic() - begun, 1e-9):.3g} {unit}/s"
                fields: dict[str, Any] = {"rate": rate, **({"note": note} if note else {})}
                bars.update(task, advance=n, **fields)

            yield advance
