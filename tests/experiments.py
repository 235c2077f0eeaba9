"""Small finished experiments, made in this process, for the tests of what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from llmrec_cli import cli, exits
from llmrec_cli.progress import Silent
from llmrec_cli.recipe.file import load_recipe
from llmrec_cli.run import run

SAMPLE = Path(__file__).parents[1] / "data/sample/amazon2018"
RECIPE = f"""
[data]
format = "amazon2018"
reviews = "{SAMPLE}/Synthetic_Toys.json.gz"
metadata = "{SAMPLE}/meta_Synthetic_Toys.json.gz"
history = 5
[model]
backbone = "scratch"
scratch = {{ hidden = 16, layers = 1, heads = 2, feed_forward = 16, vocabulary = 400 }}
[train]
rows = "sequence"
max_steps = 2
batch = 16
validate_rows = 10
learning_rate = 3e-3
[baseline.itemknn]
[align.msl]
parent = "sft"
[eval]
rows = 60
resamples = 100
"""


def make_experiment(home: Path, name: str, *overrides: str) -> Path:
    """Run the recipe under a name; ``home`` is the working folder meanwhile."""
    (home / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        recipe = load_recipe("tiny.toml", [f"name={name}", *overrides])
        run(recipe, progress=Silent())
    return home / recipe.folder


@dataclass(frozen=True)
class Ended:
    """How a command ended that ran in this process."""

    code: int
    out: str
    err: str


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> Ended:
    """A command line as ``exits`` and ``cli`` carry it out, without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["llmrec", *words])
        code = exits.guarded(cli.app)
    shown = capsys.readouterr()
    return Ended(code, shown.out, shown.err)
