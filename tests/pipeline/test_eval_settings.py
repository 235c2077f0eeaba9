"""``eval`` beside a recipe that has changed since its runs were trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments import copied, make_experiment, typed

pytestmark = pytest.mark.slow  # an evaluation per setting

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("eval-settings")
    make_experiment(home, "x")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made, tmp_path, monkeypatch)


EVAL = ("eval", "tiny.toml", "name=x", "--again", "--run")


def test_other_prompts_than_those_trained_on_are_refused(home: Path, capsys: Capsys) -> None:
    ended = typed(capsys, *EVAL, "sft", "prompt.max_tokens=64")
    assert ended.code == 2
    assert "runs/x/sft: started with prompt.max_tokens = " in ended.err
    assert ended.err.rstrip().endswith(
        "now 64; use the same recipe or choose another name (name=...)"
    )


@pytest.mark.parametrize(
    ("run", "changes", "said"),
    [
        ("sft", ["train.learning_rate=0.5"], ["stage.train.learning_rate = 0.003", "has 0.5"]),
        (
            "align-msl",
            ["align.msl.tau=2.0", "train.batch=3"],
            ["align-msl was made with stage.", " differs"],
        ),
        ("sft", ["eval.rows=20"], []),
        ("baseline-itemknn", ["baseline.itemknn.shrink=7"], []),
    ],
)
def test_a_run_that_was_made_otherwise_is_named(
    run: str, changes: list[str], said: list[str], home: Path, capsys: Capsys
) -> None:
    ended = typed(capsys, *EVAL, run, *changes)
    lines = [line for line in ended.err.splitlines() if "was made with" in line]
    assert ended.code == (2 if run == "baseline-itemknn" else 0), ended.err
    if said:
        (line,) = lines
        assert all(words in line for words in said)
        assert line in ended.out  # and under the table
    else:
        assert not lines
