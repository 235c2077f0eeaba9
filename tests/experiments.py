"""Small finished experiments, made in this process, for the tests of what reads them.

Several workers test at once.  Each experiment is made by the first that needs it, under a lock; the
others copy it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from benchmarks.small import RECIPE
from llmrec_cli import Recommender
from llmrec_cli.cli import app, exit_codes
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.decoding.guide import log_probabilities
from llmrec_cli.decoding.ranker import GuidedRanker
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.pipeline.run import run
from llmrec_cli.report.outputs import write_reports
from llmrec_cli.utils.progress import Silent

SHARED = "TESTS_SHARED"
"""The variable that names the folder of what the workers of this session share."""


def make_experiment(home: Path, name: str, *overrides: str) -> Path:
    """The finished recipe under a name, in ``home``: made there, or copied from who made it."""
    words = "\n".join((name, *overrides))
    kept = Path(os.environ[SHARED]) / hashlib.sha256(words.encode()).hexdigest()
    with FileLock(kept.with_suffix(".lock")):
        if kept.is_dir():
            (home / "tiny.toml").write_text(RECIPE)
            return Path(shutil.copytree(kept, home / "runs" / name))
        folder = run_experiment(home, name, *overrides)
        Path(shutil.copytree(folder, kept.with_suffix(".whole"))).rename(kept)
        return folder


def run_experiment(home: Path, name: str, *overrides: str) -> Path:
    """Run the recipe under a name; ``home`` is the working folder meanwhile."""
    (home / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        recipe = read_recipe("tiny.toml", [f"name={name}", *overrides])
        write_reports(recipe, run(recipe, progress=Silent()), Silent())
    return home / recipe.folder


def require_joined_lists(folder: Path, scored_by: ScoredBy) -> None:
    """Whether a guided run's kept lists are the entries sorted by the joined score of all of them.

    Args:
        scored_by: what the guide's scores are.
    """
    opened = Recommender.load(folder)
    assert isinstance(opened.ranker, GuidedRanker)
    rows = pd.read_parquet(folder / "predictions.parquet")
    limit = opened.finished.recipe.data.history
    histories = [history[-limit:].tolist() for history in rows["history"]]
    language, guide = opened.ranker.language, opened.ranker.guide
    weight = json.loads((folder / "manifest.json").read_text())["outcome"]["weight"]
    assert guide.scored_by is scored_by
    guide_BL = log_probabilities(guide.score_all(histories), guide.scored_by).numpy()
    joined_BL = language.score_all(histories) + weight * guide_BL
    for ranked, scores, joined_L in zip(rows["ranked"], rows["scores"], joined_BL, strict=True):
        best = np.sort(joined_L)[::-1][: len(scores)]
        np.testing.assert_allclose(scores, best, atol=1e-4)
        leaves = opened.leaves.leaf_of_item_I[ranked]
        np.testing.assert_allclose(joined_L[leaves], best, atol=1e-4)


def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a folder that several tests change; it is the working folder."""
    copy = tmp_path / "home"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    return copy


@dataclass(frozen=True)
class Ended:
    """How a command ended that ran in this process."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr, without notes on keys that play no part."""
        return [line for line in self.err.splitlines() if not line.startswith("note: ")]


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> Ended:
    """A command line as the entry point carries it out, without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["llmrec", *words])
        code = exit_codes.catch_errors(app.app)
    shown = capsys.readouterr()
    return Ended(code, shown.out, shown.err)


@dataclass(frozen=True)
class Told:
    """Progress that remembers what it was told."""

    said: list[str]

    def say(self, text: str) -> None:
        self.said.append(text)

    def say_once(self, subject: str, text: str) -> None:
        self.said.append(f"{subject}: {text}")

    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Any:
        return Silent().track(label, total, done, unit)
