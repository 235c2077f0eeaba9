"""Guided runs of a whole experiment: their weight, lists, cost, and what refuses a guide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import guided as benchmark
from llmrec_cli import Recommender
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.decoding.ranker import GuidedRanker
from llmrec_cli.errors import RecipeError
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.pipeline.compare import Asked, compare_runs
from llmrec_cli.pipeline.run import train_run
from llmrec_cli.runs.run import experiment_of
from llmrec_cli.utils.progress import Silent
from tests.experiments import copied, make_experiment, require_joined_lists, typed

pytestmark = pytest.mark.slow

GUIDE = "eval.decode.guide=baseline-itemknn"
WORDS = (GUIDE, "eval.decode.weights=[0, 1, 4]", "train.max_steps=12", "train.validate_rows=60")
GUIDED = "sft+baseline-itemknn"
EVAL = ("eval", "tiny.toml", "name=guided", *WORDS)
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("guided")
    make_experiment(home, "guided", *WORDS)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made, tmp_path, monkeypatch)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def folder_of(home: Path, run: str = GUIDED) -> Path:
    return home / "runs/guided" / run


def test_every_language_model_has_a_guided_row_that_compares(made: Path) -> None:
    found = compare_runs([str(made / "runs/guided")], Asked()).comparison
    rows = {standing.name: standing for standing in found.standings}
    assert {"sft", "align-msl", GUIDED, "align-msl+baseline-itemknn"} <= rows.keys()
    assert not any(name.startswith("baseline-itemknn+") for name in rows)
    guided, sft, knn = rows[GUIDED], rows["sft"], rows["baseline-itemknn"]
    assert guided.why_not is None
    assert guided.contrasts["keep"]
    assert guided.seeds == sft.seeds
    assert guided.cost.train_seconds == 0
    parts = [row.cost.lineage_seconds for row in (sft, knn)]
    assert None not in parts
    assert guided.cost.lineage_seconds == pytest.approx(sum(filter(None, parts)))
    assert guided.cost.tokens == sft.cost.tokens
    assert guided.cost.valid_seconds


def test_the_weight_is_the_best_on_validation_rows(home: Path, capsys: Capsys) -> None:
    outcome = read_json(folder_of(home) / "manifest.json")["outcome"]
    report = read_json(folder_of(home) / "report.json")
    curve = {point["weight"]: point["ndcg@10"] for point in outcome["curve"]}
    assert list(curve) == [0, 1, 4]
    assert outcome["weight"] == max(curve, key=lambda weight: (curve[weight], -weight)) > 0
    assert report["guide"] == outcome
    assert report["protocol"]["decoder"]["weight"] == outcome["weight"]
    ended = typed(capsys, *EVAL, "--split", "valid", "--run", "sft", "--run", GUIDED)
    assert ended.code == 0, ended.err
    assert "as before" in ended.err
    for run, weight in (("sft", 0), (GUIDED, outcome["weight"])):
        valid = read_json(folder_of(home, run) / "report-valid.json")
        assert valid["rows"] == outcome["rows"]
        assert valid["keep"]["metrics"]["ndcg@10"]["mean"] == pytest.approx(curve[weight])


def test_lists_are_the_sorted_joined_scores(made: Path) -> None:
    require_joined_lists(folder_of(made), ScoredBy.SIMILARITY)


def test_the_benchmark_times_a_guided_run_and_no_other(made: Path, capsys: Capsys) -> None:
    asked = ["--rows", "4", "--repeats", "1", "--run"]
    assert benchmark.main([*asked, str(folder_of(made))]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if f"| {GUIDED}, " in line]
    assert len(rows) == len(benchmark.WEIGHTS)
    assert "entries, 4 rows | 0.1 |" in rows[0]
    with pytest.raises(SystemExit, match="expected a guided run"):
        benchmark.main([*asked, str(folder_of(made, "sft"))])


def test_recommend_gives_the_lists_of_eval(made: Path) -> None:
    opened = Recommender.load(folder_of(made))
    rows = pd.read_parquet(folder_of(made) / "predictions.parquet")
    names = pd.read_parquet(made / "runs/guided/prepared/items.parquet")["item_id"].to_numpy()
    histories = [names[history].tolist() for history in rows["history"]]
    lists = opened.recommend_many(histories, 10, exclude_history=False)
    for found, ranked in zip(lists, rows["ranked"], strict=True):
        assert [item.item_id for item in found] == names[ranked[:10]].tolist()
        assert {item.probability for item in found} == {None}
        assert found.scored_by is ScoredBy.JOINED


def test_weight_0_is_the_row_without_a_guide(home: Path, capsys: Capsys) -> None:
    again = (*EVAL, "--again", "--run", GUIDED, "eval.decode.weight=0")
    ended = typed(capsys, *EVAL, "--run", GUIDED, "eval.decode.weight=0")
    assert ended.code == 2
    assert "was evaluated on test before" in ended.err
    before = pd.read_parquet(folder_of(home) / "predictions.parquet")
    assert typed(capsys, *again).code == 0
    guided, alone = (
        pd.read_parquet(folder_of(home, run) / "predictions.parquet") for run in (GUIDED, "sft")
    )
    pd.testing.assert_frame_equal(guided, alone, check_exact=True)
    assert not all(map(np.array_equal, before["ranked"], guided["ranked"]))
    manifest = read_json(folder_of(home) / "manifest.json")
    assert manifest["outcome"] == {"guide": "baseline-itemknn", "weight": 0.0}
    assert manifest["opened"] == {"test": 2}


def test_another_weight_is_not_kept_silently(home: Path, capsys: Capsys) -> None:
    ended = typed(capsys, "run", "tiny.toml", "name=guided", *WORDS, "eval.decode.weight=2")
    assert ended.code == 2
    assert "sft+baseline-itemknn: was evaluated on test with eval.decode.weight = " in ended.err


def test_parts_that_were_trained_anew_are_noticed(home: Path, capsys: Capsys) -> None:
    manifest = folder_of(home) / "manifest.json"
    recorded = read_json(manifest)
    weights = recorded["facts"]["parts"]["sft"]
    assert weights
    recorded["facts"]["parts"]["sft"] = dict.fromkeys(weights, "0" * 64)
    manifest.write_text(json.dumps(recorded))
    for words in (
        ["run", "tiny.toml", "name=guided", *WORDS],
        ["recommend", "--run", str(folder_of(home))],
    ):
        ended = typed(capsys, *words)
        assert ended.code == 2
        assert "was made with other weights of sft than lie beside it" in ended.err
    ended = typed(capsys, *EVAL, "--again", "--run", GUIDED)
    assert ended.code == 0, ended.err
    assert "chosen by ndcg@10 on 60 validation rows" in ended.err


def test_nothing_of_a_guided_run_is_trained(home: Path) -> None:
    recipe = read_recipe("tiny.toml", ["name=guided", *WORDS])
    guided = experiment_of(recipe).find(GUIDED)
    assert guided is not None
    with pytest.raises(RecipeError, match=r"it is made by llmrec eval RECIPE --run sft\+"):
        train_run(recipe, guided, resume=False, progress=Silent())


def test_another_language_model_can_guide(home: Path, capsys: Capsys) -> None:
    words = ("eval.decode.guide=sft", "eval.decode.weight=1")
    ended = typed(capsys, *EVAL, "--run", "align-msl+sft", *words)
    assert ended.code == 0, ended.err
    assert "align-msl+sft" in ended.out
    assert "weight 1 of sft" in ended.err
    opened = Recommender.load(folder_of(home, "align-msl+sft"))
    assert isinstance(opened.ranker, GuidedRanker)
    assert opened.ranker.guide.scored_by is ScoredBy.LOG_PROBABILITY


def test_a_guided_run_without_its_parts_is_named(home: Path, capsys: Capsys) -> None:
    other = ("tiny.toml", *WORDS, "name=other")
    assert typed(capsys, "prepare", *other).code == 0
    assert typed(capsys, "baseline", "--model", "itemknn", *other).code == 0
    ended = typed(capsys, "eval", *other)
    assert ended.code == 0, ended.err
    assert f"{GUIDED} (sft does not exist)" in " ".join(ended.err.split())
    ended = typed(capsys, "eval", *other, "--run", GUIDED)
    assert ended.code == 2
    assert "runs/other/sft: does not exist; run first: llmrec sft tiny.toml" in ended.err


@pytest.mark.parametrize(
    ("run", "words", "said"),
    [
        ("sft", ["eval.decode.guide=baseline-pop"], "is a run without a guide"),
        ("sft", ["eval.decode.weight=2"], "is a run without a guide"),
        (GUIDED, ["eval.decode.weights=[0, 3]"], "nothing is chosen here"),
        (GUIDED, ["eval.decode.guide=baseline-pop"], "is guided by baseline-itemknn"),
    ],
)
def test_recommend_takes_no_other_guide(
    run: str, words: list[str], said: str, home: Path, capsys: Capsys
) -> None:
    ended = typed(capsys, "recommend", "--run", str(folder_of(home, run)), *words)
    assert ended.code == 2
    assert said in ended.err


def test_recommend_takes_another_weight(made: Path) -> None:
    opened = Recommender.load(folder_of(made), overrides=["eval.decode.weight=0"])
    alone = Recommender.load(folder_of(made, "sft"))
    lists = [one.recommend([], 5).items for one in (opened, alone)]
    assert [item.item_id for item in lists[0]] == [item.item_id for item in lists[1]]


def test_an_export_has_no_guide(home: Path, capsys: Capsys) -> None:
    ended = typed(capsys, "export", "--run", str(folder_of(home)), "--to", "exported")
    assert ended.code == 2
    assert "an export holds no guide; export sft alone" in ended.err
    assert not Path("exported").exists()


def test_validate_says_what_guides(home: Path, capsys: Capsys) -> None:
    ended = typed(capsys, "validate", "tiny.toml", "name=guided", *WORDS)
    assert ended.code == 0, ended.err
    assert "guide: baseline-itemknn, weight of 0, 1, 4 chosen on 60 validation rows" in ended.out
    assert f"{GUIDED}: finished" in ended.out
    ended = typed(capsys, "validate", "tiny.toml", "eval.decode.guide=baseline-itemkn")
    assert ended.code == 2
    assert 'guide = "baseline-itemkn": no run of the recipe' in ended.err
    assert "Did you mean baseline-itemknn?" in ended.err


def test_a_run_that_was_made_without_a_guide_goes_on_with_one(home: Path, capsys: Capsys) -> None:
    recipe = read_recipe("tiny.toml", ["name=guided", *WORDS[2:]])
    assert recipe.eval.decode.guide is None
    ended = typed(capsys, "sft", "tiny.toml", "name=guided", *WORDS[2:], "--resume")
    assert ended.code == 0, ended.err
    assert "eval.decode" not in ended.err
