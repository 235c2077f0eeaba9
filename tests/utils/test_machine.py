"""What the kernel says of memory and processor, from folders that look like its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec_cli.utils.machine import (
    Memory,
    find_free_memory,
    has_bf16_units,
    measure_own_memory,
)

GB = 1 << 30


def write_kernel(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """A /proc with 8 GB free, and control groups."""
    known = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n"}
    for name, text in (known | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "proc", root / "groups"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8 * GB),
        ({"proc/self/cgroup": "0::/\n", "groups/memory.max": "max\n"}, 8 * GB),
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "groups/job/memory.max": f"{4 * GB}\n",
                "groups/job/memory.current": f"{3 * GB}\n",
                "groups/job/memory.stat": f"anon 5\ninactive_file {GB}\n",
                "groups/job/step/memory.max": "max\n",
                "groups/job/step/memory.current": f"{GB}\n",
            },
            2 * GB,
        ),
        (
            {
                "proc/self/cgroup": "0::/job\n",
                "groups/job/memory.max": f"{GB}\n",
                "groups/job/memory.current": f"{2 * GB}\n",
            },
            0,
        ),
        (
            {
                "proc/self/cgroup": "7:cpu,cpuacct:/job\n5:memory:/job\n",
                "groups/memory/job/memory.limit_in_bytes": f"{3 * GB}\n",
                "groups/memory/job/memory.usage_in_bytes": f"{GB}\n",
                "groups/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "groups/memory/memory.usage_in_bytes": f"{GB}\n",
            },
            2 * GB,
        ),
    ],
    ids=["machine", "no limit", "a limit above", "over the limit", "version 1"],
)
def test_the_least_of_machine_and_groups_is_free(
    files: dict[str, str], free: int, tmp_path: Path
) -> None:
    source = "RAM" if free == 8 * GB else "the control group's limit"
    assert find_free_memory(*write_kernel(tmp_path, files)) == Memory(free, source)


def test_without_a_kernel_that_tells_nothing_is_known(tmp_path: Path) -> None:
    assert find_free_memory(tmp_path, tmp_path) is None
    assert measure_own_memory(tmp_path) is None
    assert has_bf16_units(tmp_path) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512f avx2", False),
        ("Features\t: fp asimd bf16", True),
        ("Features\t: fp asimd", False),
    ],
)
def test_units_for_bfloat16_are_among_the_processors_flags(
    line: str, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: x\n{line}\nbugs\t\t: bf16\n")
    assert has_bf16_units(tmp_path) is expected
