"""``llmrec audit``: known figures of genuine data, and the folders that it takes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmrec_cli.cli.app import app
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.data.audit import RECORDED, Verdict, with_audit
from llmrec_cli.data.prepared import Prepared, load_prepared
from llmrec_cli.errors import UserError
from llmrec_cli.pipeline import audit as audit_module
from llmrec_cli.pipeline.audit import (
    POP_ROWS,
    audit,
    audit_folder,
    score_pop,
)
from llmrec_cli.pipeline.audit_text import verdict_lines, verdict_table
from llmrec_cli.utils.progress import Silent
from tests.commands import llmrec, ok

BOOKS = """
[data]
format = "msl-windows"
split = "given"
metadata = "{0}/msl-books/id2name4Rec.json.gz"
min_history = 4
history = 10
[data.splits]
train = "{0}/msl-books/train_10000.csv.gz"
test = "{0}/msl-books/test.csv.gz"
"""
INSTRUMENTS = """
[data]
format = "semantic-ids"
reviews = "{0}/sid-instruments/Instruments.inter.json.gz"
index = "{0}/sid-instruments/Instruments.index.json.gz"
[data.sample]
train = 2000
"""


def told(*words: str) -> str:
    """What the command prints, run within this process."""
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.chdir(tmp_path)
    told("prepare", "quickstart", "-q")
    return load_prepared(Path("runs/quickstart/prepared"))


def test_books_known_figures(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books.toml").write_text(BOOKS.format(shared_data))
    short = told("prepare", "books.toml", "data.untitled=id", "-q")
    assert "warning: test targets never seen in training: 3,014 of 4,383" in short
    shown = told("audit", "books.toml", "data.untitled=id", "-q")
    assert "18 of 6,344 items share a title with another one: 9 more items than titles" in shown
    # of the whole file train_10000, whose latest tenth validates here
    assert "2,842 of 4,383 (65 %) occur in no validation row either" in shown
    assert "3,014 of 4,383 (69 %) test targets occur in no training row" in shown


@pytest.mark.slow
def test_instruments_known_figures(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sid.toml").write_text(INSTRUMENTS.format(shared_data))
    told("prepare", "sid.toml", "-q")
    shown = told("audit", "sid.toml", "-q")
    assert "48 of 9,922 items share a token sequence" in shown
    assert "25 more items than token sequences" in shown
    assert "<a_118><b_238><c_151><d_0>" in shown


def test_recipe_experiment_run_and_prepared_folder_are_one_audit(prepared: Prepared) -> None:
    run = prepared.folder.parent / "sft"
    run.mkdir()
    for name in ("manifest.json", "recipe.toml"):
        (run / name).write_text("{}" if name.endswith("json") else "")
    shown = {
        word: told("audit", word, "-q").split("\n", 1)[1]
        for word in ("quickstart", str(run), str(run.parent), str(prepared.folder))
    }
    assert len(set(shown.values())) == 1


def test_json_holds_every_verdict(prepared: Prepared) -> None:
    [one] = json.loads(told("audit", "quickstart", "--json", "-q"))["audits"]
    assert one["rows"] == {"train": 6355, "valid": 969, "test": 969}
    found = {verdict["check"]: verdict for verdict in one["verdicts"]}
    assert found["training later than test"]["count"] == 6339
    assert found["score of Pop"]["level"] == "ok"
    assert set(found["score of Pop"]) == {
        "check", "level", "count", "of", "text", "examples", "figures"
    }  # fmt: skip


def test_pop_is_scored_as_by_hand(prepared: Prepared) -> None:
    """A slow count: the place of every target among all items by training count."""
    scores = score_pop(prepared)["test"]
    counts = prepared.items["count"].to_numpy()
    order = np.lexsort((np.arange(len(counts)), -counts))  # titles are distinct here
    test = prepared.split("test")
    assert len(test) < POP_ROWS
    for policy in ("keep", "remove"):
        ranks = []
        for history, target in zip(test["history"], test["target"], strict=True):
            gone = set(history) - {target} if policy == "remove" else set()
            ranks.append([item for item in order if item not in gone].index(target) + 1)
        rank = np.array(ranks)
        assert scores[policy]["hr@10"] == pytest.approx((rank <= 10).mean())
        gain = np.where(rank <= 10, 1 / np.log2(rank + 1), 0)
        assert scores[policy]["ndcg@10"] == pytest.approx(gain.mean())


def test_a_folder_of_before_is_counted_anew(prepared: Prepared) -> None:
    """Without an audit in its manifest; the file is left as it is."""
    file = prepared.folder / "manifest.json"
    whole = json.loads(file.read_text())
    older = {key: value for key, value in whole.items() if key != "audit"}
    file.write_text(json.dumps(older))
    again = with_audit(load_prepared(prepared.folder))["audit"]
    assert set(again) == RECORDED
    assert again == whole["audit"] | {"interactions that tie in time": None}
    assert json.loads(file.read_text()) == older
    [ties] = [v for v in audit_folder(prepared.folder).verdicts if "tie in time" in v.check]
    assert ties.text == "Whether interactions of a user tie cannot be told: it was not counted."


def test_hostile_titles_stay_text_and_are_cut() -> None:
    evil = "[/] [bold]x[/bold] \x1b[31m\n" + "y" * 100
    found = [Verdict("check", "note", 1, 2, "Text.", (evil,))]
    [line] = verdict_lines(found)
    assert "[/] [bold]x[/bold] y" in line
    assert "\x1b" not in line
    assert "\n" not in line
    assert len(line) < 80
    drawn = StringIO()
    Console(file=drawn, force_terminal=True, width=200).print(verdict_table(found, "[/]"))
    assert "[/] [bold]x[/bold] y" in drawn.getvalue()


@pytest.mark.parametrize(
    ("word", "overrides", "problem"),
    [
        (".", (), "neither prepared data nor a run or experiment"),
        ("quickstart", (), "not a prepared folder"),
        ("quikstart", (), "Did you mean quickstart?"),
        (".", ("seed=1",), "seed=1: overrides a recipe's key"),
    ],
)
def test_wrong_words_are_refused(
    word: str,
    overrides: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as found:
        audit(word, overrides, Silent())
    assert problem in str(found.value)


def test_another_domain_to_evaluate_on_is_audited_too(prepared: Prepared) -> None:
    sample = read_recipe("quickstart").data
    sources = [f'eval.data.{key}="{getattr(sample, key)[0]}"' for key in ("reviews", "metadata")]
    overrides = ["name=two", 'eval.data.format="amazon2018"', "eval.data.k_core=6", *sources]
    told("prepare", "quickstart", *overrides, "-q")
    found = audit("quickstart", overrides, Silent())
    assert [one.folder.name for one in found] == ["prepared", "prepared-eval"]
    assert found[0].verdicts != found[1].verdicts


def test_few_rows_of_many_are_drawn_alike(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_pop(prepared)
    monkeypatch.setattr(audit_module, "POP_ROWS", 500)
    assert score_pop(prepared) == score_pop(prepared) != whole


def test_pairs_are_not_scored_by_ranking(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DMPO's released files: 15 of 1,000 test pairs are pairs of training."""
    monkeypatch.chdir(tmp_path)
    Path("raw").symlink_to(shared_data / "dmpo-games")
    told("prepare", "dmpo-games-scratch-k3", "-q")
    shown = told("audit", "dmpo-games-scratch-k3", "-q")
    assert "warning: test pairs that are trained on: 15 of 1,000 (1.5 %)" in shown
    assert "warning: users in several splits" in shown
    assert "its HR ends" not in shown
    assert "score of Pop" not in shown


@pytest.mark.slow
def test_the_command_as_typed(prepared: Prepared) -> None:
    shown = ok(llmrec(Path.cwd(), "audit", "quickstart"))
    assert shown.startswith("runs/quickstart/prepared\n")
    assert "At the time of a test row, 47 % of the training rows are still to come" in shown
