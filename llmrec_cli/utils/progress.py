"""Progress of a command: bars on a terminal, plain lines elsewhere.

with progress.track("sft", 30, unit="updates") as advance:     a Work of 30 units
    with advance.within("passes", 8) as passed:                the parts of its next unit
        passed(1, tokens=1024)
    with progress.track("validation", 453, unit="rows") ...    another Work meanwhile
    advance(1, "loss 3.2")
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from llmrec_cli.utils.text import format_seconds, strip_controls

Clock = Callable[[], float]
"""Seconds from some moment on."""


class Advance(Protocol):
    """What a piece of work tells of itself."""

    def __call__(self, n: int = 1, note: str = "", *, tokens: int = 0) -> None:
        """``n`` more units are done.

        Args:
            note: the latest figures.
            tokens: how many tokens were computed for them, by all processes.
        """

    def within(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """A context in which the parts of the next unit advance; ``label`` names them."""


@dataclass
class Work:
    """Work of a known size: how far it has come, how fast, and when it will end; an ``Advance``.

    Attributes:
        heard: called after every change.
    """

    label: str
    total: int
    done: int = 0  # units, those of an earlier process too
    unit: str = "it"  # plural
    heard: Callable[[], object] = lambda: None
    clock: Clock = time.monotonic
    note: str = ""
    _first: int = field(init=False)
    _begun: float = field(init=False)
    _latest: float = field(init=False)  # when something was last done
    _part: Work | None = None  # of the next unit; it stays until that unit is done
    _goes_on: bool = True  # of a part
    _tokens: int = 0
    _computing: float = 0.0  # seconds in which these tokens were computed

    def __post_init__(self) -> None:
        self._first = self.done
        self._begun = self._latest = self.clock()

    def __call__(self, n: int = 1, note: str = "", *, tokens: int = 0) -> None:
        """As ``Advance``."""
        self.done, self.note = min(self.done + n, self.total), note or self.note
        before, self._part, self._latest = self._latest, None, self.clock()
        if tokens:
            self._tokens += tokens
            self._computing += self._latest - before
        self.heard()

    @contextmanager
    def within(self, label: str, total: int) -> Iterator[Advance]:
        """As ``Advance``."""

        def hear() -> None:
            self._latest = part._latest
            self.heard()

        self._part = part = Work(label, total, heard=hear, clock=self.clock)
        yield part
        self._tokens += part._tokens
        self._computing += self.clock() - part._begun
        part._tokens = 0  # they count from here on as those of a part that has ended
        part.done, part._goes_on = part.total, False

    @property
    def fraction(self) -> float:
        """The share of the next unit that its parts have done, in [0, 1]."""
        return self._part.done / self._part.total if self._part and self._part.total else 0.0

    def count_seconds(self) -> float:
        """Seconds since it began, or until it ended."""
        ended = self.done >= self.total
        return (self._latest if ended else self.clock()) - self._begun

    def measure_rate(self) -> float | None:
        """Units per second, of this process; None: nothing is done yet."""
        here, seconds = self.done - self._first + self.fraction, self._latest - self._begun
        return here / seconds if here > 0 and seconds > 0 else None

    def estimate_left(self) -> float | None:
        """Seconds until the end, at the rate so far; None: nothing is done yet."""
        rate = self.measure_rate()
        if rate is None:
            return None
        left = (self.total - self.done - self.fraction) / rate
        return max(left - (self.clock() - self._latest), 0.0)

    def measure_tokens(self) -> float | None:
        """Tokens per second of computing; None: nobody counts them here."""
        tokens, seconds = self._tokens, self._computing
        if self._part is not None and self._part._tokens:
            tokens += self._part._tokens
            seconds += self._part._latest - self._part._begun
        return tokens / seconds if tokens and seconds > 0 else None

    def describe_count(self) -> str:
        """How far: ``3/30 updates (passes 5/8)``."""
        part = self._part
        shows = part is not None and part._goes_on and part.total > 1
        inner = f" ({part.label} {part.done}/{part.total})" if part and shows else ""
        return f"{self.done}/{self.total} {self.unit}{inner}"

    def describe_speed(self) -> str:
        """How fast, and how long: ``48.2 s each, 141 tokens/s, 21 min 4 s left, loss 3.2``."""
        rate, tokens, left = self.measure_rate(), self.measure_tokens(), self.estimate_left()
        shown = []
        if rate is not None:
            shown.append(_format_rate(rate, self.unit))
        if tokens is not None:
            shown.append(f"{tokens:,.0f} tokens/s")
        if self.done >= self.total:
            shown.append(f"in {format_seconds(self.count_seconds())}")
        elif left is not None:
            shown.append(f"{format_seconds(round(left))} left")
        else:
            shown.append(f"{format_seconds(round(self.count_seconds()))} so far")
        return ", ".join([*shown, self.note] if self.note else shown)


def _format_rate(rate: float, unit: str) -> str:
    """1,620 rows/s, 3.1 rows/s; slower than one a second: 48.2 s each."""
    if rate < 1:
        return f"{format_seconds(1 / rate)} each"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


def advance_for_all(
    advance: Callable[[int], object], own: int, whole: int
) -> Callable[[int], None]:
    """This process's share of some work, as progress of the whole: all work equally fast.

    Args:
        own: units of this process.
        whole: units of all processes.
    """
    done = 0

    def tell(n: int) -> None:
        nonlocal done
        before, done = done, done + n
        advance(done * whole // own - before * whole // own)

    return tell


class Progress(Protocol):
    """What a story may say while it works."""

    def say(self, text: str) -> None:
        """One line about what happens now."""

    def say_once(self, subject: str, text: str) -> None:
        """``subject: text``, unless the same text was said before, of whatever subject."""

    def track(
        self, label: str, total: int, done: int = 0, unit: str = "it"
    ) -> AbstractContextManager[Advance]:
        """A context in which work of a known size advances; one may stand inside another."""


class Silent:
    """Says nothing (library use, tests, ranks other than the first)."""

    def say(self, text: str) -> None:
        """Nothing."""

    def say_once(self, subject: str, text: str) -> None:
        """Nothing."""

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Advance]:
        """Nothing."""
        yield Work(label, total, done, unit)


class Lines:
    """Plain lines, a few per task, for logs and pipes."""

    def __init__(
        self,
        stream: TextIO | None = None,
        every: float = 10.0,
        write: Callable[[str], object] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.stream: TextIO | None = stream or sys.stderr
        self.every = every  # seconds between two lines, of whatever work
        self.write = write or self._print
        self.clock = clock
        self._said = set[str]()
        self._open = list[Work]()  # the outermost first
        self._last = 0.0  # when a line of progress was written

    def say(self, text: str) -> None:
        """Write one line; where nobody can read it any more, the work goes on."""
        self.write(strip_controls(text))

    def say_once(self, subject: str, text: str) -> None:
        """As ``Progress``."""
        if text not in self._said:
            self._said.add(text)
            self.say(f"{subject}: {text}")

    def _print(self, line: str) -> None:
        if self.stream is None:  # stderr was closed by whoever started this
            return
        with suppress(OSError):
            print(line, file=self.stream, flush=True)

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Advance]:
        """Write a line every few seconds, and one at the end of what is not inside of another."""
        work = Work(label, total, done, unit, self._hear, self.clock)
        outer = not self._open
        if outer:
            self._last = self.clock()
        self._open.append(work)
        try:
            yield work
        finally:
            self._open.remove(work)
        if outer:
            self.say(f"{label}: {work.describe_count()}, {work.describe_speed()}")

    def _hear(self) -> None:
        now, work = self.clock(), self._open[-1]
        ends = len(self._open) == 1 and work.done >= work.total  # the last line says it
        if now - self._last >= self.every and not ends:
            self._last = now
            places = [f"{one.label}: {one.describe_count()}" for one in self._open]
            self.say(f"{', '.join(places)}, {work.describe_speed()}")


class Rich:
    """Progress bars with rates and the time left, for terminals."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._said = set[str]()
        self._bars: Bars | None = None  # of all work that goes on

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(strip_controls(text), markup=False, highlight=False)

    def say_once(self, subject: str, text: str) -> None:
        """As ``Progress``."""
        if text not in self._said:
            self._said.add(text)
            self.say(f"{subject}: {text}")

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Advance]:
        """Show a bar; work inside of other work has one below it, until it is done."""
        if self._bars is not None:
            with self._show(self._bars, Work(label, total, done, unit)) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            _Figures(),
        )
        with Bars(*columns, console=self.console) as self._bars:
            try:
                with self._show(self._bars, Work(label, total, done, unit), stays=True) as advance:
                    yield advance
            finally:
                self._bars = None

    @contextmanager
    def _show(self, bars: Bars, work: Work, *, stays: bool = False) -> Iterator[Advance]:
        bar: TaskID = bars.add_task(work.label, total=work.total, completed=work.done, work=work)
        work.heard = lambda: bars.update(bar, completed=work.done + work.fraction)
        try:
            yield work
        finally:
            if not stays:
                bars.remove_task(bar)


class _Figures(ProgressColumn):
    """Count, rate and time left beside a bar, as they are at the moment."""

    def render(self, task: Bar) -> Text:
        work: Work = task.fields["work"]
        return Text(strip_controls(f"{work.describe_count()}, {work.describe_speed()}"))
