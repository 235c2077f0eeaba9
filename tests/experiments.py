"""Small finished experiments, made in this process, for the tests of what reads them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.small import RECIPE
from llmrec_cli import cli, exits
from llmrec_cli.progress import Silent
from llmrec_cli.recipe.file import load_recipe
from llmrec_cli.run import run


def make_experiment(home: Path, name: str, *overrides: str) -> Path:
    """Run the recipe under a name; ``home`` is the working folder meanwhile."""
    (home / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        recipe = load_recipe("tiny.toml", [f"name={name}", *overrides])
        run(recipe, progress=Silent())
    return home / recipe.folder


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
    """A command line as ``exits`` and ``cli`` carry it out, without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["llmrec", *words])
        code = exits.guarded(cli.app)
    shown = capsys.readouterr()
    return Ended(code, shown.out, shown.err)
