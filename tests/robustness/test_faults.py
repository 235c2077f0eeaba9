"""Disks that refuse: exit code 3 with the path, and the sweep that tries every operation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec_cli.errors import MachineError
from llmrec_cli.runs.tracking import MetricsLog
from tests.robustness.faults import sweep
from tests.robustness.faults_subjects import Subject

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WRITERS = {"checkpoint", "prune", "result", "manifest", "metrics", "reference", "negatives"}


def test_every_operation_of_every_writing_may_fail_or_be_the_last(tmp_path: Path) -> None:
    """In a process of its own, which forks for the kills."""
    report = tmp_path / "swept.json"
    command = [sys.executable, "-m", "tests.robustness.faults", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    swept = {found["name"]: found for found in json.loads(report.read_text())}
    assert swept.keys() == WRITERS
    for found in swept.values():
        assert {"fsync", "rename"} & set(found["operations"])
        assert found["refused"] > 0
        for reason in ("ENOSPC", "EIO", "EACCES", "SIGKILL"):
            assert found["tried"][reason] == len(found["operations"])


def test_a_file_written_under_its_own_name_would_be_told_apart(tmp_path: Path) -> None:
    """The control: without a temporary name, a refusal leaves half a file."""

    def put(folder: Path, text: str) -> None:
        (folder / "file").write_text(text)

    naive = Subject(
        "naive",
        before=lambda folder: put(folder, "as it was"),
        write=lambda folder: put(folder, "as written"),
        intact=lambda folder: (folder / "file").read_text() in ("as it was", "as written"),
        written=lambda folder: (folder / "file").read_text() == "as written",
    )
    problems = sweep(naive, tmp_path, kills=False).problems
    assert any("what was there before is damaged" in problem for problem in problems)


def test_a_full_device_is_named(tmp_path: Path) -> None:
    """A real one: whatever is written to /dev/full is refused."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(MachineError, match=r"metrics\.jsonl: .*No space left on device"):
        MetricsLog(tmp_path / "metrics.jsonl").append({"step": 1})
