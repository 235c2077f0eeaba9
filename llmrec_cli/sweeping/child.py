"""A command of llmrec as a process of its own, followed by its folder's ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmrec_cli.engine.group import LAUNCHER
from llmrec_cli.errors import LlmrecError, MachineError, NumbersError, UserError
from llmrec_cli.files import METRICS_FILE, machine_errors

_POLL = 0.2  # seconds
_ENDS: Mapping[int, type[LlmrecError]] = {2: UserError, 3: MachineError, 4: NumbersError}


class Interrupted(Exception):
    """The sweep is being stopped."""


class Pruned(Exception):
    """A point is not worth going on with."""


@dataclass(frozen=True)
class Watch:
    """What somebody wants of a command while it runs."""

    validated: Callable[[int, float], bool] = lambda number, score: False
    """Told each validation's number (from 1) and score; true stops the command."""
    alive: Callable[[], None] = lambda: None
    stopping: Callable[[], bool] = lambda: False


def follow(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    judged: tuple[Path, str] | None,
    watch: Watch,
    patience: float,
) -> None:
    """Carry out ``llmrec WORDS`` to its end, or until ``watch`` wants it stopped.

    Args:
        environment: what differs from this process's own.
        log: receives what the command says on stderr.
        judged: the folder of the run that it trains, and its ``train.select``.
        patience: seconds that a stopped command has to write its checkpoint.

    Raises:
        Pruned, Interrupted: ``watch`` said so, and the command has ended.
        UserError, MachineError, NumbersError, LlmrecError: it failed; with its own line.
    """
    with machine_errors(log), log.open("ab") as said:
        begun = said.tell()
        child = subprocess.Popen(  # nosec B603 # noqa: S603 - our own command, no shell
            [sys.executable, "-m", "llmrec_cli", *words],
            env={**os.environ, **environment, LAUNCHER: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
        )
    try:
        reason = _followed(child, judged, watch)
    except BaseException:
        _stop(child, patience)
        raise
    if reason is not None:
        _stop(child, patience)
        raise reason
    if child.returncode:
        raise _failure(child.returncode, words[0], log, begun)


def _followed(
    child: subprocess.Popen[bytes], judged: tuple[Path, str] | None, watch: Watch
) -> Exception | None:
    """Why the command is to be stopped; None: it has ended by itself."""
    told, size = 0, -1
    while True:
        ended = child.poll() is not None
        if not ended and watch.stopping():
            return Interrupted()
        file = judged[0] / METRICS_FILE if judged else None
        grown = file.stat().st_size if file and file.is_file() else -1
        if judged and file and grown != size:
            size, fresh = grown, list(_scores(file, judged[1]))[told:]
            for score in fresh:
                told += 1
                if watch.validated(told, score) and not ended:
                    return Pruned()
        if ended:
            return None
        watch.alive()
        time.sleep(_POLL)


def _scores(file: Path, select: str) -> Iterator[float]:
    """The score of every validation so far, as the training loop chooses by it."""
    for line in file.read_bytes().split(b"\n")[:-1]:
        if b'"valid_loss"' in line:
            row = json.loads(line)
            named = (row[key] for key in row if key.startswith(f"valid_{select}"))
            yield -row["valid_loss"] if select == "loss" else next(named, -row["valid_loss"])


def _stop(child: subprocess.Popen[bytes], patience: float) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _failure(code: int, command: str, log: Path, begun: int) -> LlmrecError:
    """What ended a command, in its own words."""
    with log.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").splitlines()
    if code < 0:
        name = signal.Signals(-code).name
        return MachineError(f"{command} was ended by {name} (out of memory?); see {log}")
    prefix = f"llmrec {command}: error: "
    errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    said = errors[-1] if errors else f"ended with exit code {code}; see {log}"
    return _ENDS.get(code, MachineError if code > 128 else LlmrecError)(f"{command}: {said}")
