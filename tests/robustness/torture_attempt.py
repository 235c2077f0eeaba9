"""One attempt at a command, in processes forked from this one, and how it is killed.

This process has imported everything and computes nothing, so a fork starts within milliseconds and
inherits no threads.  Rank 0 tells through a pipe which phase it is in: kills are aimed by that, and
what was hit is known afterwards.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.dataset
import torch
import torch._dynamo
import transformers.models.llama.modeling_llama as llama

from llmrec_cli.cli import app
from llmrec_cli.pipeline import baseline, prepare, provenance, requirements, setup, train
from llmrec_cli.pipeline import train as align
from llmrec_cli.pipeline import train as sft
from llmrec_cli.runs import tracking
from llmrec_cli.training import checkpoint
from llmrec_cli.training.negatives import Miner
from llmrec_cli.training.trainer import Trainer
from tests.robustness.operations import announced

PHASES: list[tuple[Any, str, str]] = [  # where a function is looked up, and its phase
    (setup, "ensure_scratch", "base"),
    (provenance, "start_run", "opening"),
    (requirements, "load_item_scores", "scores"),
    (requirements, "store_reference", "reference"),
    (Miner, "_open_lists", "mining"),
    (tracking.MetricsLog, "keep_until", "log cut"),
    (Trainer, "run_update", "training"),
    (tracking.MetricsLog, "append", "log"),
    (Trainer, "validate", "validation"),
    (checkpoint.Checkpoints, "save", "save"),
    (checkpoint.Checkpoints, "prune", "prune"),
    (train, "write_result", "model"),
    (provenance, "finish_run", "finish"),
]
WRITING = ("save", "prune")
START, LEFT = "start-up", "in between"
LOADED = (align, sft, prepare, baseline, pyarrow.dataset, torch._dynamo, llama)
"""Imported before the fork, where commands import them late; as are ``transformers``' classes."""
LIMIT = 600.0  # seconds after which an attempt hangs
ALONE = 90.0  # seconds after which a rank must have noticed that the other one is gone
SWALLOWED = ("unlink", "rmdir")  # of what is no longer needed: done again at the next chance


@dataclass(frozen=True)
class Kill:
    """When to end an attempt.

    ``delay`` seconds after its start; or after it has begun a phase for the ``nth`` time; or in
    that phase right before file operation number ``operation``.  ``alone``: only this rank is
    killed, and the others have to notice.  ``refused``: that operation fails with this error number
    instead.
    """

    kind: str = "never"
    phase: str = ""
    nth: int = 1
    delay: float = LIMIT
    operation: int = 0
    alone: int | None = None
    refused: int = 0


@dataclass
class Attempt:
    """What became of it."""

    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    hung: bool = False
    events: list[tuple[float, str]] = field(default_factory=list)  # seconds, phase begun

    @property
    def struck(self) -> bool:
        """Whether it did not come to its end."""
        return any(self.codes)

    @property
    def phase(self) -> str:
        """The one it ended in."""
        return self.events[-1][1] if self.events else START

    def spans(self, phase: str) -> list[float]:
        """Seconds of each time in this phase."""
        ends = [*(at for at, _ in self.events[1:]), self.seconds]
        return [
            end - at for (at, name), end in zip(self.events, ends, strict=True) if name == phase
        ]


def attempt(words: Sequence[str], folder: Path, processes: int, kill: Kill) -> Attempt:
    """Run ``llmrec *words`` in ``folder`` as so many ranks; what they print goes to ``log.txt``."""
    reading, writing = os.pipe()
    port, children = str(_free_port()), list[int]()
    begun = time.monotonic()
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.close(reading)
            group = children[0] if children else 0
            environment = _environment(rank, processes, port) if processes > 1 else {}
            _run(words, folder, environment, group, partial(_tell, writing, rank, kill))
        os.setpgid(child, children[0] if children else child)
        children.append(child)
    os.close(writing)
    ended = Attempt()
    try:
        _follow(reading, children, kill, begun, ended)
    finally:
        os.close(reading)
        _wait(children, ended)
        ended.seconds = time.monotonic() - begun
    return ended


def _follow(
    reading: int, children: Sequence[int], kill: Kill, begun: float, ended: Attempt
) -> None:
    """Read the phases until rank 0 is gone; send the signal when its moment has come."""
    deadline = begun + (LIMIT if kill.phase else kill.delay)
    times, unread, told = 0, b"", False
    while True:
        wait = max(deadline - time.monotonic(), 0)
        if not told and not select.select([reading], [], [], wait)[0]:
            ended.hung = kill.kind == "never"
            _send(children, kill.alone)
            told = True
        chunk = os.read(reading, 65536)
        if not chunk:
            return
        *lines, unread = (unread + chunk).split(b"\n")
        for line in lines:
            phase = line.decode()
            ended.events.append((time.monotonic() - begun, phase))
            times += phase == kill.phase
            if phase == kill.phase and times == kill.nth and not kill.operation:
                deadline = time.monotonic() + kill.delay


def _send(children: Sequence[int], alone: int | None) -> None:
    if alone is None:
        os.killpg(children[0], signal.SIGKILL)
    else:
        os.kill(children[alone], signal.SIGKILL)


def _wait(children: Sequence[int], ended: Attempt) -> None:
    """Collect the exit codes of all; whoever outlives rank 0 for long hangs, and is ended."""
    deadline, codes = time.monotonic() + ALONE, dict[int, int]()
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                ended.hung = True
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    ended.codes = [codes[child] for child in children]


def _environment(rank: int, processes: int, port: str) -> dict[str, str]:
    """What torchrun tells a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def _run(
    words: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    group: int,
    instrumented: Callable[[], Any],
) -> NoReturn:
    """The child: as a process that was started anew, with random state of its own."""
    code = 70
    try:
        os.setpgid(0, group)
        os.chdir(folder)
        os.environ |= environment
        output = os.open("log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for reseed in (random.seed, np.random.seed, torch.seed):
            reseed()
        sys.argv = ["llmrec", *words]
        with instrumented():
            app.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _tell(pipe: int, rank: int, kill: Kill) -> Iterator[None]:
    """Instrument rank 0: phases into the pipe, and the kill before an operation."""
    if rank:
        os.close(pipe)  # or its end would not be seen
        yield
        return
    told = _Told(pipe, kill)
    for owner, name, phase in PHASES:
        setattr(owner, name, told.during(getattr(owner, name), phase))
    if not kill.operation:
        yield
        return
    with announced(told.operation):
        yield


class _Told:
    """Tells the phases, and counts the operations of the one that is to be hit."""

    def __init__(self, pipe: int, kill: Kill) -> None:
        self._pipe, self._kill = pipe, kill
        self._open: list[str] = []
        self._times = self._operations = 0

    def during(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self._open.append(phase)
            self._times += phase == self._kill.phase
            self._say(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._open.pop()
                self._say(self._open[-1] if self._open else LEFT)

        return called

    def operation(self, name: str, path: str) -> None:
        within = self._kill.phase in self._open and self._times == self._kill.nth
        if self._kill.refused and name in SWALLOWED:
            return
        self._operations += within
        if within and self._operations == self._kill.operation:
            self._say(f"{self._kill.phase}: {name}")
            if self._kill.refused:
                raise OSError(self._kill.refused, os.strerror(self._kill.refused), path)
            os.killpg(0, signal.SIGKILL)

    def _say(self, phase: str) -> None:
        os.write(self._pipe, f"{phase}\n".encode())
