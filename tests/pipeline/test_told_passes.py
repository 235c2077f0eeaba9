"""Every pass over a model tells how far it is: within updates, in validation, in evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.small import RECIPE
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline.run import run
from llmrec_cli.utils.progress import Lines

pytestmark = pytest.mark.slow  # an experiment of its own

TABLES = """
[baseline.sasrec]
hidden = 16
train = { max_steps = 1 }
[align.dmpo]
k = 2
negatives = "model"
reference = "precompute"
train = { micro_batch = 4, rows = "window" }
[align.ilrec]
parent = "sft"
n = 1
support = "legal"
"""
SETTINGS = ["name=told", "train.micro_batch=4", "eval.auc=true", "eval.decode.beam_error=true"]
SETTINGS += ["eval.batch=8", "eval.rows=20", "data.sample.train=300"]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All lines of a whole run, of every advance."""
    told: list[str] = []
    home = tmp_path_factory.mktemp("told")
    (home / "tiny.toml").write_text(RECIPE + TABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run(read_recipe("tiny.toml", SETTINGS), progress=Lines(write=told.append, every=0))
    assert Path(home / "runs/told/align-ilrec/report.json").is_file()
    return told


@pytest.mark.parametrize(
    "words",
    [
        ["sft: 0/2 updates (passes 2/4), ", " tokens/s, ", " left"],
        ["sft: 1/2 updates, ", " tokens/s, ", " left, loss "],
        ["sft: 1/2 updates, validation, loss: 10/10 rows, ", " in "],
        ["sft: 1/2 updates, validation: 10/10 rows, "],
        ["sft: 2/2 updates, ", " in ", "loss ", "ndcg@10 "],
        ["baseline-sasrec: 0/1 updates", "validation: 10/10 rows, "],
        ["reference: 0/2 updates, hard negatives: 32/32 windows, "],
        ["reference: 0/2 updates (rows 4/16), "],
        ["align-dmpo: 1/2 updates", "validation, reference: 4/10 rows, "],
        ["item scores, train: ", " rows/s, in "],
        ["item scores, valid: 10/10 rows, "],
        ["eval sft: 8/20 rows, ", " left"],
        ["eval sft, AUC: 8/20 rows, ", " left"],
        ["eval sft, AUC: 20/20 rows, ", " in "],
        ["eval sft, exact search: 8/20 rows, "],
        ["eval sft, beam search: 8/20 rows, "],
        ["eval baseline-sasrec, AUC: 20/20 rows, "],
    ],
    ids=lambda words: words[0],
)
def test_a_pass_tells_how_far_it_is(words: list[str], said: list[str]) -> None:
    def has_all(line: str) -> bool:
        at = 0
        for word in words:
            at = line.find(word, at)
            if at < 0:
                return False
            at += len(word) - 1
        return line.startswith(words[0])

    assert any(map(has_all, said)), "\n".join(said)


def test_the_end_of_an_evaluation_comes_once(said: list[str]) -> None:
    ends = [line.partition(" rows")[0] for line in said if line.startswith("eval ")]
    whole = [end for end in ends if end.endswith(" 20/20")]
    assert len(set(whole)) == len(whole) >= 16  # four language models, four passes each
