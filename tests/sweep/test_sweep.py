"""``llmrec sweep`` as a user types it: real trainings, Ctrl-C, and the test split out of reach."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from tests import experiments

pytestmark = pytest.mark.slow

NO_TEST_ROWS = '''
"""Loaded by every Python process: whoever reads test rows is ended."""
from llmrec_cli.data.prepared import Prepared

def split(self, name, read=Prepared.split):
    if name == "test":
        raise AssertionError("test rows were read")
    return read(self, name)

Prepared.split = split
'''
WORDS = ["sweep", "tiny.toml", "--grid", "align.msl.tau=1,2", "--json"]
LONG = ["align.msl.train.max_steps=120", "align.msl.train.save_every=10"]


def start(home: Path) -> subprocess.Popen[str]:
    python_path = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "llmrec_cli", *WORDS, *LONG],
        cwd=home,
        env={**os.environ, "PYTHONPATH": python_path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_sweep_is_interrupted_goes_on_and_never_reads_test_rows(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(experiments.RECIPE)
    (tmp_path / "sitecustomize.py").write_text(NO_TEST_ROWS)
    study = tmp_path / "runs/tiny/sweep/study"
    first = start(tmp_path)
    training = "point-*/align-msl/checkpoints/step-*"
    while not list(study.glob(training)) and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert f"go on with: llmrec {shlex.join([*WORDS, *LONG])}\n" in said
    (begun,) = {path.parents[2] for path in study.glob(training)}
    trained = (tmp_path / "runs/tiny/sft/model/model.safetensors").stat()

    shown, said = start(tmp_path).communicate(timeout=240)
    board = json.loads(shown)
    assert [trial["state"] for trial in board["trials"]] == ["complete"] * 2, said
    assert board["split"] == "valid"
    assert "terminated; go on with: llmrec align" in (begun / "sweep.log").read_text()
    for point in study.glob("point-*"):  # both stand on one SFT, which was trained once
        shared = (point / "sft/model/model.safetensors").stat()
        assert (shared.st_ino, shared.st_mtime_ns) == (trained.st_ino, trained.st_mtime_ns)
        manifest = json.loads((point / "align-msl/manifest.json").read_text())
        assert (manifest["status"], "opened" in manifest) == ("done", False)
    rows = (begun / "align-msl/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 121))
    assert read_recipe(str(tmp_path / board["recipe"])).name == "tiny-best"
