"""``python -m tests.robustness.faults``: every file operation of a save fails, or is the last.

The operations of each kind of writing are counted in a dry run.  Then number i is refused (no
space, input/output error, no permission), or the process is killed right before it; besides, a real
limit on the size of a file.  Each time: exit code 3 and one line that names a path (or the writing
went through all the same), what was there before is still valid, and when the same is written again
nothing is left over.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NoReturn

from llmrec_cli.cli import exit_codes
from tests.robustness.faults_subjects import SUBJECTS, Subject
from tests.robustness.operations import REFUSALS, announced

Work = Callable[[Path], None]
Fault = Callable[[], AbstractContextManager[object]]
Run = Callable[[Work, Path], tuple[int, str]]
KILLED = -signal.SIGKILL
LIMITS = (0, 1, 300, 1_000, 6_000, 8_000, 20_000)  # bytes of the largest file


@dataclass
class Swept:
    """What was tried on one kind of writing."""

    name: str
    operations: list[str]
    tried: Counter[str] = field(default_factory=Counter)  # by reason
    refused: int = 0  # of these, how many ended with exit code 3; the others went through
    problems: list[str] = field(default_factory=list)


def sweep(subject: Subject, scratch: Path, *, kills: bool = True) -> Swept:
    """Refuse each operation of a writing for each reason, and kill before each."""
    found = Swept(subject.name, _operations(subject, scratch / f"{subject.name}-dry"))
    for number in range(1, len(found.operations) + 1):
        at = f"{subject.name}-{number}"
        for reason, error in REFUSALS.items():
            refused = partial(announced, _Strike(number, partial(_refuse, error)))
            _try(subject, scratch / f"{at}-{reason}", reason, partial(_command, refused), found)
        if kills:
            killed = partial(_in_child, partial(announced, _Strike(number, _kill)))
            _try(subject, scratch / f"{at}-SIGKILL", "SIGKILL", killed, found)
    for limit in LIMITS:
        small = partial(_command, partial(_largest_file, limit))
        _try(subject, scratch / f"{subject.name}-{limit}", "EFBIG", small, found)
    return found


def _try(subject: Subject, folder: Path, reason: str, run: Run, found: Swept) -> None:
    """One fault: what it ends in, what it leaves, and the same again without it."""
    folder.mkdir()
    subject.before(folder)
    code, said = run(subject.write, folder)
    found.tried[reason] += 1
    found.refused += code == 3
    problems = [] if code in (0, KILLED) else _wrong_end(code, said, folder, reason)
    if code == 0 and not subject.written(folder):
        problems.append("said to be written, and is not")
    if not subject.intact(folder):
        problems.append("what was there before is damaged")
    again, said = _command(nullcontext, subject.write, folder)
    left = [path.name for path in folder.rglob("*.tmp")]
    if again or left or not subject.written(folder):
        problems.append(f"written again: exit code {again}, left over {left}: {said}")
    found.problems += [f"{folder.name}: {problem}" for problem in problems]


def _wrong_end(code: int, said: str, folder: Path, reason: str) -> list[str]:
    words = os.strerror(getattr(errno, reason))
    lines = said.splitlines()
    right = code == 3 and len(lines) == 1 and str(folder) in said and words in said
    return [] if right else [f"exit code {code}: {said}"]


def _operations(subject: Subject, folder: Path) -> list[str]:
    """Names of the operations of a writing that nothing disturbs, in order."""
    folder.mkdir()
    subject.before(folder)
    names: list[str] = []
    with announced(lambda name, path: names.append(name)):
        subject.write(folder)
    return names


class _Strike:
    """Does something at operation ``number``."""

    def __init__(self, number: int, act: Callable[[str], None]) -> None:
        self._left, self._act = number, act

    def __call__(self, name: str, path: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._act(path)


def _refuse(number: int, path: str) -> NoReturn:
    raise OSError(number, os.strerror(number), path)


def _kill(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _largest_file(limit: int) -> Iterator[None]:
    """A real refusal, by the kernel: no file may grow over so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _command(fault: Fault, work: Work, folder: Path) -> tuple[int, str]:
    """Exit code of some work as the command line gives it, and what it says."""

    def faulty() -> None:
        with fault():
            work(folder)

    with redirect_stderr(StringIO()) as said:
        code = exit_codes.catch_errors(faulty)
    return code, said.getvalue()


def _in_child(fault: Fault, work: Work, folder: Path) -> tuple[int, str]:
    """The same in a process of its own, which may not come to its end."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code, _ = _command(fault, work, folder)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ""


def main() -> int:
    """Sweep all kinds of writing; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.faults", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write what was tried to this file")
    arguments = parser.parse_args()
    sys.argv = ["llmrec"]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        swept = [sweep(subject, Path(scratch)) for subject in SUBJECTS]
    for found in swept:
        print(f"{found.name}: {len(found.operations)} operations, {dict(found.tried)}")
        print("".join(f"  {problem}\n" for problem in found.problems), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(found) for found in swept], indent=2) + "\n")
    return 1 if any(found.problems for found in swept) else 0


if __name__ == "__main__":
    sys.exit(main())
