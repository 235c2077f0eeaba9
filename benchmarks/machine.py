"""Where a measurement was taken, for the head of every table, and the memory that work takes."""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

PROCESS = Path("/proc/self")  # Linux only
T = TypeVar("T")


def machine() -> dict[str, str]:
    """Date, processor and versions; no host name and no path."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        **{name: version(name) for name in ("torch", "transformers")},
    }


def as_line(facts: dict[str, str]) -> str:
    """The same in one line, for titles."""
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def _processor() -> str:
    lines = Path("/proc/cpuinfo")
    if lines.exists():
        names = [x for x in lines.read_text().splitlines() if x.startswith("model name")]
        if names:
            return names[0].partition(":")[2].strip()
    return platform.machine()


def memory_of(work: Callable[[], T]) -> tuple[T, float, float]:
    """What ``work`` returns, by how many MB the resident set rose, and its peak.

    What was freed before is given back first, so that nothing hides in it.
    """
    gc.collect()
    with suppress(AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")  # the peak starts anew; getrusage's would not
    before = _resident("VmRSS")
    result = work()
    peak = _resident("VmHWM")
    return result, peak - before, peak


def _resident(field: str) -> float:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(field)) / 1024
