"""What a stage takes of the machine: its device, its processes and its highest memory.

Nothing here ever ends a run: where the machine does not tell, nothing is recorded.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmrec_cli.engine.ranks import Ranks

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_HIGHEST = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass
class Usage:
    """Filled when the block has ended."""

    seconds: float = 0.0  # by the clock on the wall
    peak_bytes: int = 0  # of this process: a GPU's allocated memory, else resident; 0: unknown

    def recorded(self, ranks: Ranks) -> dict[str, Any]:
        """JSON-able; the highest of all processes, which come here together."""
        peak = ranks.most(self.peak_bytes)
        return {
            "seconds": round(self.seconds, 3),
            "device": device_name(ranks.device),
            "processes": ranks.count,
            "peak_bytes": peak or None,
        }


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Usage]:
    """Time and highest memory of the block, apart from what came before it.

    On Linux the kernel's high-water mark is set back first (``clear_refs``, proc(5)).  Elsewhere it
    is that of the whole process so far.
    """
    _set_back(device)
    usage, begun = Usage(), time.perf_counter()
    yield usage
    usage.seconds, usage.peak_bytes = time.perf_counter() - begun, _peak(device)


def device_name(device: torch.device) -> str:
    """``cpu``, or what a GPU calls itself."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError, AssertionError):
            return str(torch.cuda.get_device_name(device))
    return str(device.type)


def _set_back(device: torch.device) -> None:
    with contextlib.suppress(OSError, RuntimeError, AssertionError):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _RESET.write_bytes(b"5")


def _peak(device: torch.device) -> int:
    with contextlib.suppress(OSError, RuntimeError, AssertionError, ImportError):
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device))
        status = _STATUS.read_bytes().decode(errors="replace") if _STATUS.exists() else ""
        found = _HIGHEST.search(status)
        return int(found[1]) * 1024 if found else _of_the_process()
    return 0


def _of_the_process() -> int:
    """Where there is no /proc; Windows has no ``resource`` either."""
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
