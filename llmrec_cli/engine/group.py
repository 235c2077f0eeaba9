"""This process as one of a group: whether it is, what it leaves behind, and with whom it ends."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

FAILURES = "LLMREC_FAILURES"
"""Environment variable: the folder in which ranks leave what ended them."""

LAUNCHER = "LLMREC_LAUNCHER"
"""Environment variable: the process id of whoever started this one (a launcher, a sweep)."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_JOINED = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # set by torchrun, by accelerate launch
_RESUMABLE = ("sft", "align", "baseline")
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def is_rank() -> bool:
    """Whether this process was started as one of a group."""
    return any(name in os.environ for name in _JOINED)


def is_started() -> bool:
    """Whether another process of llmrec, or a launcher, started this one and waits for it."""
    return is_rank() or LAUNCHER in os.environ


def is_first_rank() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def how_to_go_on() -> str:
    """What to type after an interruption; the commands that do not train just begin again."""
    command = next(iter(sys.argv[1:]), "")
    if command in _RESUMABLE:
        return "go on with --resume"
    return "go on with the same command"


def restarted() -> bool:
    """Whether torchrun or SLURM started this command again after a failure."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in _RESTARTS)


def note_failure(message: str, code: int, *, secondary: bool) -> bool:
    """Leave this rank's message to the launcher; False where there is none that would read it.

    Args:
        secondary: it is a consequence of what happened elsewhere.
    """
    folder = os.environ.get(FAILURES)
    if folder is None or not is_rank() or not Path(folder).is_dir():
        return False
    note = {"message": message, "code": code, "secondary": secondary, "time": time.time()}
    path = Path(folder) / f"rank-{os.environ.get('RANK', '0')}.json"
    path.with_suffix(".tmp").write_text(json.dumps(note))
    path.with_suffix(".tmp").replace(path)
    return True


def end_with_launcher(every: float = 0.25) -> None:
    """End this process when the one that started it is gone: no orphan goes on writing.

    A child of our own launcher is ended by the kernel where that can be asked for (Linux).
    """
    parent, launcher = os.getppid(), int(os.environ.get(LAUNCHER, 0))
    if parent == launcher:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if launcher and not _alive(launcher):  # before this rank had come here
        os._exit(128 + signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
