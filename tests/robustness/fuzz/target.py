"""One parser under attack, and the property: it succeeds, or says in one line what is wrong."""

from __future__ import annotations

import contextlib
import errno
import io
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from types import FrameType
from typing import Final
from unicodedata import category

from llmrec_cli.cli.exit_codes import format_message
from llmrec_cli.errors import LlmrecError, MachineError, RecipeError, UserError
from tests.robustness.fuzz.mutate import Files, mutated

LONGEST: Final = 5.0  # seconds for one small input
_BREAKS: Final = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, ends of lines


class Wrong(Exception):
    """An outcome that breaks the property."""


class TooLong(BaseException):
    """The parser did not come to an end; a BaseException, which nothing swallows."""


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        seeds: makes the right inputs, each of some files.
        run: reads the files of a folder, and raises ``Wrong`` where what it got cannot be; what
            else it draws comes from the ``Random``.
        fixed: files that are never changed.
        machine: whether a ``MachineError`` is a right answer too.
    """

    name: str
    seeds: Callable[[], Sequence[Files]]
    run: Callable[[Path, Random], object]
    fixed: tuple[str, ...] = ()
    machine: bool = False

    @cached_property
    def corpus(self) -> Sequence[Files]:
        """The right inputs, made once."""
        return self.seeds()

    def input(self, seed: int, number: int) -> tuple[Files, Random]:
        """Input ``number`` of a seed, the same on every machine."""
        rng = Random(f"{self.name}/{seed}/{number}")
        files = rng.choice(self.corpus)
        # now and then a right input, which shows that the target reads those at all
        return (files if rng.random() < 0.02 else mutated(files, rng, fixed=self.fixed)), rng


@dataclass
class Tried:
    """What a target made of its inputs."""

    name: str
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by kind of error
    found: list[tuple[int, str]] = field(default_factory=list)  # number of the input, what happened

    @property
    def inputs(self) -> int:
        return self.read + self.refused.total() + len(self.found)


def attempt(target: Target, seed: int, number: int, tried: Tried) -> Files:
    """Give a target one input and note what it makes of it."""
    files, rng = target.input(seed, number)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        lay_out(files, Path(name))
        try:
            with _quiet(), _within(LONGEST), contextlib.chdir(name):
                target.run(Path(name), rng)
        except LlmrecError as error:
            problem = wrong_message(error)
            right = (UserError, MachineError) if target.machine else UserError
            if problem is None and not isinstance(error, right):
                problem = f"a {type(error).__name__}"
            if problem is None:
                tried.refused[type(error).__name__] += 1
            else:
                tried.found.append((number, f"{problem}\n{traceback.format_exc()}"))
        except OSError as error:  # exits.py has a line for it, with the file's name
            if error.errno == errno.ENAMETOOLONG:
                tried.refused["file name too long"] += 1
            else:
                tried.found.append((number, traceback.format_exc()))
        except TooLong:
            tried.found.append((number, f"over {LONGEST:g} s\n{traceback.format_exc()}"))
        except Exception:
            tried.found.append((number, traceback.format_exc()))
        else:
            tried.read += 1
    return files


def lay_out(files: Files, folder: Path) -> None:
    """Write the files of an input; their names may hold folders."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def wrong_message(error: LlmrecError) -> str | None:
    """What is wrong with an error's message, as the command line would show it."""
    _, *others = str(error).split("\n")
    if others and not (isinstance(error, RecipeError) and all(o.startswith("  ") for o in others)):
        return "a message of several lines"
    for line in format_message(str(error)).split("\n"):
        if not line.strip() or any(category(sign) in _BREAKS for sign in line):
            return "an empty or unprintable message"
    return None


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the terminal; a warning of Python's counts as a crash, as in the test suite."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        yield
