"""Commands as users type them, for the tests of whole experiments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import warm

TINY = [
    "data.sample.train=400",
    "data.sample.valid=40",
    "data.sample.test=60",
    "data.history=5",
    "model.scratch.hidden=16",
    "model.scratch.layers=2",
    "model.scratch.feed_forward=16",
    "model.scratch.vocabulary=400",
    "train.epochs=2",
    "train.batch=32",
    "train.validate_rows=20",
    "eval.resamples=100",
]
SMALL = [  # quickstart, with all its tables
    *TINY,
    *(f"baseline.{name}.hidden=16" for name in ("sasrec", "gru4rec", "caser")),
    *(f"baseline.{name}.train.epochs=2" for name in ("sasrec", "gru4rec", "caser")),
    *(f"align.{name}.train.max_steps=2" for name in ("dmpo", "sdpo", "dpo", "sprec", "grpo")),
]


def llmrec(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own (``tests.warm``)."""
    if (done := warm.run(cwd, words)) is not None:
        return done
    command = [sys.executable, "-m", "llmrec_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout
