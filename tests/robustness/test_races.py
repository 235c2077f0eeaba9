"""Pairs of commands at once; ``make races`` tries 50 of every pair there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec_cli.utils.files import write_folder
from tests.robustness import races

ROOT = Path(__file__).resolve().parents[2]


def test_a_race_that_goes_wrong_would_be_seen(tmp_path: Path) -> None:
    """The control."""
    ends = [(3, "no such file"), (2, "x: is finished and is never overwritten; choose")]
    assert list(races.wrong_ends(["prepare", "sft"], ends)) == [
        "prepare ended with 3: no such file",
        "both were refused",
    ]
    assert list(races.wrong_ends(["prepare", "sft"], [(0, ""), ends[1]])) == []

    def write_a(folder: Path) -> None:
        (folder / "a").write_text("a")

    write_folder(tmp_path / "base", write_a)
    assert list(races.wrong_files(tmp_path)) == []
    (tmp_path / "base/a").write_text("b")
    (tmp_path / "x.tmp").touch()
    damaged, left = races.wrong_files(tmp_path)
    assert "base/a: damaged" in damaged
    assert left == "left over: ['x.tmp']"


@pytest.mark.slow
def test_pairs_of_commands_at_random_offsets() -> None:
    """One of each pair of those that train."""
    words = ["--pairs", "1", "--commands", "prepare", "sft", "baseline", "align"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.races", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 pairs of commands at random offsets, 0 wrong" in done.stdout
