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

from llmrec_cli.engine.variables import Group, find_group
from llmrec_cli.errors import UserError

FAILURES = "LLMREC_FAILURES"
"""Environment variable: the folder in which ranks leave what ended them."""

LAUNCHER = "LLMREC_LAUNCHER"
"""Environment variable: the process id of the llmrec that started this one (a launcher, a sweep).

Only llmrec sets it, and nothing else makes this process the child of another one.
"""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_RESUMABLE = ("sft", "align", "baseline")
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def is_rank() -> bool:
    """Whether this process was started as one of a group."""
    return FAILURES in os.environ or _find_group() is not None


def is_first_rank() -> bool:
    """Whether this process is the one that prints."""
    group = _find_group()
    return group is None or group.rank == 0


def _find_group() -> Group | None:
    """The group; half of a launcher's variables are refused where a group would be joined."""
    try:
        return find_group()
    except UserError:
        return None


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
    path.with_suffix(".tmp").write_bytes(json.dumps(note).encode())
    path.with_suffix(".tmp").replace(path)
    return True


def end_with_launcher(every: float = 0.25) -> None:
    """End this process when the llmrec that started it is gone: no orphan goes on writing.

    The kernel ends it where that can be asked for (Linux).  Nothing happens without ``LAUNCHER``:
    whoever else started this process, a shell or a launcher, may end before it.

    Raises:
        UserError: ``LAUNCHER`` is no process id.
    """
    known = os.environ.get(LAUNCHER)
    if known is None:
        return
    if not known.isdecimal() or int(known) == 0:
        raise UserError(f"{LAUNCHER}={known}: only llmrec sets this variable; unset it")
    parent, launcher = os.getppid(), int(known)
    if parent == launcher:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def is_gone() -> bool:
        return os.getppid() != parent if parent == launcher else not _is_alive(launcher)

    if is_gone() or not _is_alive(launcher):  # before this rank had come here
        with suppress(OSError, AttributeError):
            sys.stderr.write(f"llmrec: ended with process {launcher} ({LAUNCHER}), which is gone\n")
        os._exit(128 + signal.SIGKILL)

    def watch() -> None:
        while not is_gone():
            time.sleep(every)
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
