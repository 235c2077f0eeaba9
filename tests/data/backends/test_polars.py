"""The embedded engine: its budget is this `prepare`'s only, and memory stays flat."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from llmrec_cli.data.backends import in_process

BUDGET = "POLARS_OOC_MEMORY_BUDGET_MB"


@pytest.mark.parametrize("before", [None, "77"])
def test_the_budget_ends_with_the_engine(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv(BUDGET, raising=False)
    if before is not None:
        monkeypatch.setenv(BUDGET, before)
    with in_process(640):
        assert os.environ[BUDGET] == "640"
    assert os.environ.get(BUDGET) == before


def test_a_refusal_of_the_disk_is_an_os_error() -> None:
    def fail(message: str) -> None:
        with in_process(1024):
            raise pl.exceptions.ComputeError(message)

    with pytest.raises(OSError, match="No space left on device") as refused:
        fail("parquet: underlying IO error: No space left on device (os error 28)")
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(pl.exceptions.ComputeError, match="something else"):
        fail("something else")


PEAK = """
import json, sys
from pathlib import Path
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.config.recipe import Recipe

prepare_data(Recipe.model_validate(json.loads(sys.argv[1])), Path)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
@pytest.mark.slow
def test_memory_does_not_follow_the_number_of_lines(tmp_path: Path) -> None:
    few, many = (peak(tmp_path, lines, memory=64) for lines in (150_000, 900_000))
    assert many - few < 150 << 10, f"{few} KiB, then {many} KiB"


def peak(folder: Path, lines: int, memory: int) -> int:
    """KiB in use at most while that many lines are prepared."""
    file = folder / f"{lines}.csv"
    with file.open("w") as out:
        out.write("user_id,parent_asin,rating,timestamp\n")
        for n in range(lines):
            user, item = n * 7919 % (lines // 10), n * n % 1009
            out.write(f"AUSER{user:024},B{item:09},{1 + n % 5}.0,{1_500_000_000_000 + n}\n")
    data = {"format": "ratings2023", "reviews": str(file), "untitled": "id", "memory": memory}
    recipe = {"name": str(lines), "out": str(folder / "out"), "data": data}
    command = [sys.executable, "-c", PEAK, json.dumps(recipe)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)
