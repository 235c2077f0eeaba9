"""What this machine has: memory that a process may take, and units for half precision.

Nothing here fails: what cannot be told is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
_BF16_UNITS: Final = ("avx512_bf16", "amx_bf16", "bf16")  # the last one: of ARM
_FLAGS: Final = re.compile(r"^(?:flags|Features)\s*:\s*(.+)$", re.MULTILINE)
_V1_FREE: Final = 1 << 60  # version 1 writes "no limit" as a number beyond any memory


class Memory(NamedTuple):
    """Memory that a process may still take."""

    free: int  # bytes
    source: str  # what sets that, in words


def find_free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory | None:
    """The least of what the machine has left and what every control group leaves.

    Args:
        proc, cgroups: where the kernel shows them (tests have their own).
    """
    found = [*_read_machine(proc), *_read_groups(proc, cgroups)]
    return min(found, default=None)


def measure_own_memory(proc: Path = PROC) -> int | None:
    """Resident bytes of this process now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", _read(proc / "self/status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def has_bf16_units(proc: Path = PROC) -> bool | None:
    """Whether the processor multiplies bfloat16 itself; without, torch emulates it in float32."""
    found = _FLAGS.search(_read(proc / "cpuinfo"))
    return None if found is None else not set(_BF16_UNITS).isdisjoint(found[1].split())


def _read_machine(proc: Path) -> Iterator[Memory]:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(proc / "meminfo"), re.MULTILINE)
    if found:
        yield Memory(int(found[1]) * 1024, "RAM")


def _read_groups(proc: Path, cgroups: Path) -> Iterator[Memory]:
    """What is left of the limits of this process's control group, and of those above it."""
    for line in _read(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inner = path.strip("/")
        if not controllers:
            root, limit, usage = cgroups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit = cgroups / "memory", "memory.limit_in_bytes"
            usage = "memory.usage_in_bytes"
        else:
            continue
        for folder in (root / inner, *(root / inner).parents):
            yield from _read_group(folder, limit, usage)
            if folder == root:
                break


def _read_group(folder: Path, limit: str, usage: str) -> Iterator[Memory]:
    most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if not most.isdecimal() or not used.isdecimal() or int(most) >= _V1_FREE:
        return
    cache = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.M)
    kept = int(used) - (int(cache[1]) if cache else 0)  # what is read again is no need
    yield Memory(max(int(most) - kept, 0), "the control group's limit")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
