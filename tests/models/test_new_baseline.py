"""A new conventional model is one file and a recipe table: no other module knows its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import RecipeError
from llmrec_cli.methods.contract import Options
from llmrec_cli.models import baselines
from llmrec_cli.models.baselines.contract import Baseline
from tests.commands import TINY

COUNTED = '''
"""Follows: what other users took right behind the last item of a history."""

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines.contract import Baseline


class FollowsOptions(Options):
    weight: float = 1.0


def _count(options, users, n_leaves):
    import numpy as np

    taken = np.zeros((n_leaves, n_leaves), np.float32)
    for leaves in users:
        taken[np.ix_(leaves, leaves)] += options.weight
    return {"taken": taken}


def _load(options, arrays, leaves):
    from llmrec_cli.models.base import FullScoreRanker, ScoredBy

    taken = arrays["taken"]

    def score_all(histories):
        import numpy as np

        last = (leaves.leaf_of_item_I[list(history[-1:])] for history in histories)
        return np.stack([taken[leaf].sum(0) for leaf in last])  # of no history: zeros

    return FullScoreRanker(score_all, leaves, ScoredBy.SIMILARITY)


BASELINE = Baseline("what follows", FollowsOptions, load=_load, count=_count)
'''
TRAINED = '''
"""Bag: the mean of all items so far."""

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines.contract import Baseline


class BagOptions(Options):
    hidden: int = 16


def _build(options, n_leaves, longest):
    import torch

    from llmrec_cli.models.sequential import Sequential

    class Mean(torch.nn.Module):
        def forward(self, hidden_BTD):
            places = torch.arange(1, 1 + hidden_BTD.shape[1], device=hidden_BTD.device)
            return hidden_BTD.cumsum(1) / places[None, :, None]

    return Sequential(Mean(), n_leaves, options.hidden, 0.0)


BASELINE = Baseline("the mean of all items", BagOptions, build=_build, train={"epochs": 3})
'''
COMMANDS = """
import sys
from llmrec_cli.models import baselines
_, own, run = sys.argv
baselines.__path__.append(own)  # where a checkout has its own file
from llmrec_cli import Recommender
from llmrec_cli.cli import app, exit_codes
for words in WORDS:
    sys.argv = ["llmrec", *words]
    if exit_codes.catch_errors(app.app):
        sys.exit(1)
print(len(Recommender.load(run).recommend([], k=3)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "key"),
    [("follows", COUNTED, "weight=2.0"), ("bag", TRAINED, "hidden=8")],
    ids=["counted", "trained"],
)
def test_a_file_is_a_model_that_is_fitted_evaluated_and_recommends(
    name: str, source: str, key: str, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / f"{name}.py").write_text(source)
    words = ["quickstart", *TINY, f"baseline.{name}.{key}", "eval.auc=true"]
    run = tmp_path / "runs" / "quickstart" / f"baseline-{name}"
    commands = [
        ["prepare", *words],
        ["baseline", "--model", name, *words],
        ["eval", "--run", f"baseline-{name}", "--run", "baseline-pop", *words],
    ]
    code = COMMANDS.replace("WORDS", repr(commands))
    child = [sys.executable, "-c", code, str(tmp_path / "own"), str(run)]
    done = subprocess.run(child, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "report.json").read_text())
    assert done.stdout.splitlines()[-1] == "3"
    assert 0 < found["keep"]["lists"]["coverage"] <= 1
    assert 0 < found["auc"]["metrics"]["auc_paired"]["mean"] <= 1
    assert len(pd.read_parquet(run / "predictions.parquet")) == 60
    resolved = (run / "recipe.toml").read_text()
    assert f"[baseline.{name}" in resolved


def test_every_file_holds_a_model_with_options_and_a_summary() -> None:
    assert baselines.baseline_names() == ["pop", "itemknn", "sasrec", "gru4rec", "caser"]
    assert baselines.trained_names() == ["sasrec", "gru4rec", "caser"]
    for name in baselines.baseline_names():
        found = baselines.find_baseline(name)
        assert issubclass(found.options, Options)
        assert found.summary
        assert "\n" not in found.summary


def test_what_is_no_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    (tmp_path / "other.py").write_text("BASELINE = 3\n")
    (tmp_path / "_shared.py").write_text("")
    assert baselines.baseline_names()[-1] == "other"
    with pytest.raises(TypeError, match=r"models/baselines/other\.py: BASELINE is int"):
        baselines.find_baseline("other")
    for name in ("_shared", "contract", "nothing"):
        with pytest.raises(KeyError):
            baselines.find_baseline(name)
    with pytest.raises(ValueError, match="expected one of load and build"):
        Baseline("neither", Options)
    with pytest.raises(RecipeError, match="unknown model"):
        read_recipe("quickstart", ["baseline.nothing.hidden=3"])
