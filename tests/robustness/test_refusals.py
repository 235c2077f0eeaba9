"""Commands on a machine that refuses; ``make refusals`` types all of them on all such machines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec_cli.cli import app
from tests import experiments
from tests.robustness.refusals import SAYING, WRITING, half_written, wrong_end
from tests.robustness.refusals_disk import content

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LINE = "llmrec sft: error: runs/new: cannot be written: No space left on device"


def test_no_command_is_forgotten() -> None:
    lines = [*WRITING.values(), *SAYING.values()]
    typed = {name for name in app.COMMANDS if any(line.startswith(name) for line in lines)}
    assert set(app.COMMANDS) - typed == {"download", "recipes show", "runs show"}  # ask, or show


def test_a_full_disk_and_a_full_stdout_cost_one_line_and_no_file() -> None:
    name_space = ["unshare", "--map-root-user", "--mount", "true"]
    if not shutil.which("unshare") or subprocess.run(name_space, check=False).returncode:
        pytest.skip("no right to mount a disk here")
    words = ["tests.robustness.refusals", "--faults", "full", "stdout full", "stdout unread"]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--commands", "sft", "export", "compare"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("5 tried, 4 refused, 0 wrong\n")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, LINE),
        (2, LINE),
        (3, f"{LINE}\n{LINE}"),
        (3, "llmrec sft: error: No space left on device"),
        (3, "llmrec sft: error: runs/new: cannot be written"),
        (3, f"Traceback (most recent call last)\n{LINE}"),
        (3, f"{LINE}\nException ignored in"),
    ],
)
def test_a_wrong_end_would_be_told(code: int, said: str) -> None:
    assert not wrong_end(3, f"reading\n{LINE}", ["runs/"], "No space")
    assert wrong_end(code, said, ["runs/"], "No space")


def test_what_is_half_written_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    before = content(tmp_path)
    (tmp_path / ".new.tmp").write_text("half")
    (tmp_path / "metrics.jsonl").touch()
    assert half_written(tmp_path, before) == []
    (tmp_path / "report.json").write_text('{"a')
    (tmp_path / "other.json").write_text('{"a')
    (tmp_path / "list.csv").touch()
    assert half_written(tmp_path, before) == [
        "changed: report.json",
        "empty: list.csv",
        "half-written: other.json",
    ]


def test_memory_that_is_refused_is_one_line(tmp_path: Path) -> None:
    """A limit of the system, and a model that wants several times as much."""
    pytest.importorskip("resource")
    (tmp_path / "tiny.toml").write_text(experiments.RECIPE)
    program = (
        "import resource, sys; from llmrec_cli.cli.app import main;"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); main()"
    )
    wide = ["model.scratch.hidden=65536", "model.scratch.feed_forward=65536"]
    for words in (["prepare"], ["sft", "--quiet", "model.scratch.layers=2", *wide]):
        done = subprocess.run(
            [sys.executable, "-c", program, words[0], "tiny.toml", *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("llmrec sft: error: out of memory; lower ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("debug.log"))
    assert not list(tmp_path.rglob("*.safetensors"))
