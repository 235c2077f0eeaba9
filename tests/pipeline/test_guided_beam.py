"""Guided runs under a beam, in two processes, and on semantic IDs: whole small experiments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from llmrec_cli import Recommender
from llmrec_cli.decoding.guide import log_probabilities
from llmrec_cli.decoding.ranker import GuidedRanker
from tests.commands import llmrec, ok
from tests.experiments import copied, make_experiment, typed
from tests.pipeline.test_guided import EVAL, GUIDED, WORDS, folder_of, read_json

pytestmark = pytest.mark.slow

BEAM = ("eval.decode.search=beam", "eval.decode.beams=10")
IDS = (
    "tokens.kind=semantic-id",
    "tokens.vectors=random",
    "tokens.codes=8",
    "prompt.template=sequence",
    "eval.decode.guide=baseline-itemknn",
    "eval.decode.weights=[0, 1, 4]",
)
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("guided")
    make_experiment(home, "guided", *WORDS)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made, tmp_path, monkeypatch)


def read_lists(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


def join_scores(opened: Recommender, rows: pd.DataFrame, weight: float) -> NDArray[Any]:
    """Every entry's joined score for the histories of ``rows``, by scoring all of them."""
    assert isinstance(opened.ranker, GuidedRanker)
    histories = [history[-5:].tolist() for history in rows["history"]]
    language, guide = opened.ranker.language, opened.ranker.guide
    guide_BL = log_probabilities(guide.score_all(histories), guide.scored_by).numpy()
    joined_BL: NDArray[Any] = language.score_all(histories) + weight * guide_BL
    return joined_BL


def test_a_beam_lists_joined_scores_and_counts_what_it_misses(home: Path, capsys: Capsys) -> None:
    words = (*EVAL, "--again", "--run", GUIDED, *BEAM, "eval.decode.weight=4")
    ended = typed(capsys, *words, "eval.decode.beam_error=true")
    assert ended.code == 0, ended.err
    report, rows = read_json(folder_of(home) / "report.json"), read_lists(folder_of(home))
    assert report["protocol"]["decoder"]["search"] == "beam"
    opened = Recommender.load(folder_of(home))
    joined_BL, differs = join_scores(opened, rows, 4.0), []
    for ranked, scores, joined_L in zip(rows["ranked"], rows["scores"], joined_BL, strict=True):
        leaves = opened.leaves.leaf_of_item_I[ranked]
        np.testing.assert_allclose(joined_L[leaves], scores, atol=1e-4)
        assert (np.diff(scores) <= 0).all()
        best = np.sort(joined_L)[::-1][:10]
        differs.append(len(scores) < 10 or not np.allclose(scores[:10], best, atol=1e-4))
    assert report["keep"]["beam_error"] == {"rows": sum(differs), "share": np.mean(differs)}
    assert 0 < sum(differs) < len(rows)


def test_recommend_gives_the_lists_of_a_beam(home: Path, capsys: Capsys) -> None:
    """With the history among the candidates, and without."""
    ended = typed(capsys, *EVAL, "--again", "--run", GUIDED, *BEAM, "eval.decode.beams=20")
    assert ended.code == 0, ended.err
    rows, opened = read_lists(folder_of(home)), Recommender.load(folder_of(home))
    names = pd.read_parquet(home / "runs/guided/prepared/items.parquet")["item_id"].to_numpy()
    histories = [names[history].tolist() for history in rows["history"]]
    for exclude in (False, True):
        lists = opened.recommend_many(histories, 10, exclude_history=exclude)
        for found, ranked, history in zip(lists, rows["ranked"], histories, strict=True):
            expected = [name for name in names[ranked] if not (exclude and name in history)]
            assert [item.item_id for item in found] == expected[:10]


def test_weight_0_under_a_beam_is_the_row_without_a_guide(home: Path, capsys: Capsys) -> None:
    words = (*EVAL, "--again", *BEAM, "eval.decode.weight=0")
    ended = typed(capsys, *words, "--run", "sft", "--run", GUIDED)
    assert ended.code == 0, ended.err
    guided, alone = read_lists(folder_of(home)), read_lists(folder_of(home, "sft"))
    pd.testing.assert_frame_equal(guided, alone, check_exact=True)


def test_two_processes_give_the_lists_and_the_weight_of_one(home: Path) -> None:
    folder = folder_of(home)
    lists, outcome = read_lists(folder), read_json(folder / "manifest.json")["outcome"]
    report = read_json(folder / "report.json")
    shutil.rmtree(folder)
    done = llmrec(home, *EVAL, "--run", GUIDED, "launch.processes=2")
    ok(done)
    assert done.stderr.count("chosen by ndcg@10 on 60 validation rows") == 1
    assert read_json(folder / "manifest.json")["outcome"] == outcome
    again = read_lists(folder)
    for column in ("ranked", "scores"):
        for one, two in zip(lists[column], again[column], strict=True):
            np.testing.assert_allclose(two, one, atol=1e-5)
    found = read_json(folder / "report.json")
    assert found["cost"]["processes"] == 2
    for seen in ("keep", "remove"):
        assert found[seen]["metrics"] == report[seen]["metrics"]


@pytest.fixture(scope="module")
def with_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("guided-ids")
    make_experiment(home, "ids", *IDS)
    return home


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        ("baseline-itemknn", ()),
        ("sft", ()),
        ("baseline-itemknn", (*BEAM, "eval.decode.beams=500")),
        ("sft", (*BEAM, "eval.decode.beams=500")),
    ],
)
def test_guided_lists_of_semantic_ids_are_the_sorted_joined_scores(
    guide: str,
    words: tuple[str, ...],
    with_ids: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capsys,
) -> None:
    """Under exact search, and under a beam as wide as the catalogue."""
    home = copied(with_ids, tmp_path, monkeypatch)
    given = (*IDS, f"eval.decode.guide={guide}", "eval.decode.weight=1.5", *words)
    name = f"align-msl+{guide}"
    ended = typed(capsys, "eval", "tiny.toml", "name=ids", *given, "--run", name, "--again")
    assert ended.code == 0, ended.err
    folder = home / "runs/ids" / name
    assert json.loads((folder / "manifest.json").read_text())["outcome"]["weight"] == 1.5
    rows, opened = read_lists(folder), Recommender.load(folder)
    assert opened.leaves.n_leaves < 500
    for scores, ranked, joined_L in zip(
        rows["scores"], rows["ranked"], join_scores(opened, rows, 1.5), strict=True
    ):
        best = np.sort(joined_L)[::-1][: len(scores)]
        np.testing.assert_allclose(scores, best, atol=2e-4)
        np.testing.assert_allclose(joined_L[opened.leaves.leaf_of_item_I[ranked]], best, atol=2e-4)
