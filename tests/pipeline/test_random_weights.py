"""``model.weights = "random"``: the architecture and tokenizer of a backbone, and none of its
pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.utils.progress import Silent
from tests.experiments import typed
from tests.pipeline.sample_backbones import ALL, byte_level, write_checkpoint

Capsys = pytest.CaptureFixture[str]
RANDOM = "model.weights=random"


@pytest.fixture
def based(home: Path) -> Path:
    """The working folder, with a backbone whose weights nobody draws."""
    write_checkpoint(home / "base", byte_level(), ALL)
    return home


def read_weights(*overrides: str) -> dict[str, torch.Tensor]:
    context = setup.open_context(read_recipe("own.toml", [*overrides]), Silent())
    model: Any = load_policy(context, None, train=True)
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def test_weights_are_drawn_by_seed_in_the_backbones_shapes(based: Path, capsys: Capsys) -> None:
    assert typed(capsys, "prepare", "own.toml").code == 0
    trained, drawn, again, other = (
        read_weights(*words)
        for words in ((), (RANDOM, "seed=1"), (RANDOM, "seed=1"), (RANDOM, "seed=2"))
    )
    assert {n: w.shape for n, w in drawn.items()} == {n: w.shape for n, w in trained.items()}
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    matrices = [name for name, weight in drawn.items() if weight.ndim == 2]
    assert matrices
    for name in matrices:
        assert not torch.equal(drawn[name], trained[name]), name
        assert not torch.equal(drawn[name], other[name]), name


def test_a_run_from_random_weights_trains_ranks_and_says_what_it_is(
    based: Path, capsys: Capsys
) -> None:
    for words in (
        ("prepare", "own.toml"),
        ("sft", "own.toml", RANDOM),
        ("eval", "own.toml", "--run", "sft", RANDOM),
        ("export", "--run", "runs/own/sft", "--to", "exported"),
    ):
        ended = typed(capsys, *words)
        assert ended.code == 0, ended.err
    assert json.loads(Path("runs/own/sft/report.json").read_text())["entries"] > 1
    assert 'weights = "random"' in Path("runs/own/sft/recipe.toml").read_text()
    card = Path("exported/README.md").read_text()
    assert "The architecture of base, trained from random weights" in card
    assert "base_model" not in card


def test_nothing_ranks_before_training(based: Path, capsys: Capsys) -> None:
    assert typed(capsys, "prepare", "own.toml").code == 0
    ended = typed(capsys, "eval", "own.toml", "--run", "base", RANDOM)
    assert ended.code == 2
    assert 'model.weights = "random" are random before training' in ended.err


def test_random_weights_cannot_be_adapted(based: Path, capsys: Capsys) -> None:
    ended = typed(capsys, "validate", "own.toml", RANDOM, "model.tuning=lora")
    assert ended.code == 2
    assert 'weights = "random" leaves nothing to adapt: use tuning = "full"' in ended.err


def test_scratch_is_random_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = typed(capsys, "validate", "quickstart", RANDOM)
    assert ended.code == 0
    assert 'backbone = "scratch" always has random weights' in ended.out + ended.err
