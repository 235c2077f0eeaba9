"""Commands as users type them, for the tests of whole experiments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SMALL = [
    "data.sample.train=400",
    "data.sample.valid=40",
    "data.sample.test=60",
    "data.history=5",
    "model.scratch.hidden=16",
    "model.scratch.layers=1",
    "model.scratch.feed_forward=16",
    "model.scratch.vocabulary=400",
    "train.epochs=2",
    "train.batch=32",
    "eval.resamples=100",
]


def llmrec(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmrec_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout
