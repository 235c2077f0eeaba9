"""Where a measurement was taken: for the head of every table that leaves the terminal."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path


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
