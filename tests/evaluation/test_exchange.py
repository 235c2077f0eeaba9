"""Rows and lists for other tools, read back by independent readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import ArtefactError, DataError, RecipeError
from llmrec_cli.evaluation.external_lists import export_data, export_lists, force_falling
from llmrec_cli.evaluation.predictions import read_predictions
from llmrec_cli.pipeline.prepare import prepare_data
from tests.experiments import make_experiment, typed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("exchange")
    make_experiment(home, "x")
    return home


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def as_recbole_reads(path: Path) -> pd.DataFrame:
    """RecBole's own call (``_load_feat``): tabs, the header's types, sequences by spaces."""
    with path.open(encoding="utf-8") as stream:
        heading = stream.readline().strip().split("\t")
    kinds = dict(cell.split(":") for cell in heading)
    dtype = {
        cell: np.float64 if kind == "float" else str
        for cell, kind in zip(heading, kinds.values(), strict=True)
    }
    frame = pd.read_csv(path, delimiter="\t", usecols=heading, dtype=dtype, engine="python")
    frame.columns = pd.Index(list(kinds))
    for name, kind in kinds.items():
        if kind == "token_seq":
            cells = frame[name].fillna("")
            frame[name] = pd.Series(
                [cell.split(" ") if cell else [] for cell in cells], dtype=object
            )
    return frame


def test_recboles_files_hold_the_prepared_rows(home: Path) -> None:
    export_data(read_recipe("tiny.toml", ["name=x"]), Path("recbole"))
    items = pd.read_parquet("runs/x/prepared/items.parquet")
    ids = items["item_id"].to_numpy()
    for split in ("train", "valid", "test"):
        rows = pd.read_parquet(f"runs/x/prepared/{split}.parquet")
        back = as_recbole_reads(Path(f"recbole/x.{split}.inter"))
        assert back["user_id"].tolist() == rows["user_id"].tolist()
        assert back["item_id"].tolist() == ids[rows["target"]].tolist()
        assert back["item_id_list"].tolist() == [ids[h].tolist() for h in rows["history"]]
        assert back["timestamp"].tolist() == rows["timestamp"].tolist()
    back = as_recbole_reads(Path("recbole/x.item"))
    assert back["item_id"].tolist() == ids.tolist()
    assert [" ".join(words) for words in back["title"]] == [
        " ".join(title.split()) for title in items["title"]
    ]
    settings = Path("recbole/x.yaml").read_text()
    assert "benchmark_filename: [train, valid, test]" in settings
    assert "alias_of_item_id: [item_id_list]" in settings
    assert len(list(Path("recbole").iterdir())) == 5
    with pytest.raises(ArtefactError, match="recbole: exists already"):
        export_data(read_recipe("tiny.toml", ["name=x"]), Path("recbole"))


def with_items(tmp_path: Path, **changes: str) -> str:
    """A recipe over two users whose ids, items and titles are strange."""
    named = {item: changes.get(item, item) for item in "wxyz"}
    clicks = [(u, i, 1_500_000_000 + t) for u in "ab" for t, i in enumerate(named.values())]
    frame = pd.DataFrame(clicks, columns=["user_id", "item_id", "timestamp"])
    frame.to_csv(tmp_path / "clicks.csv", index=False)
    titles = pd.DataFrame(
        {"item_id": list(named.values()), "title": [f'"{i}" a  b' for i in named.values()]}
    )
    titles.to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "odd.toml").write_text(
        f"""[data]
format = "interactions"
reviews = "{tmp_path}/clicks.csv"
metadata = "{tmp_path}/items.csv"
columns = {{ title = "title" }}
k_core = 0
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        prepare_data(read_recipe("odd.toml"), Path)
    return str(tmp_path / "odd.toml")


def test_quotes_in_titles_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_items(tmp_path)
    monkeypatch.chdir(tmp_path)
    export_data(read_recipe(recipe), tmp_path / "out")
    back = as_recbole_reads(tmp_path / "out/odd.item")
    assert back["title"].tolist() == [[f'"{item}"', "a", "b"] for item in "wxyz"]


def test_ids_of_two_words_are_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_items(tmp_path, x="two words")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="item_id 'two words' is not one word"):
        export_data(read_recipe(recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", ["baseline-itemknn", "baseline-pop", "sft"])
def test_a_trec_run_keeps_every_list_under_trec_evals_own_order(home: Path, run: str) -> None:
    """trec_eval sorts by float32 score, then by document backwards; ranks are not read."""
    files = Path("x.trec"), Path("x.qrels")
    export_lists(Path("runs/x", run), files[0], split="test", format="trec", relevant=files[1])
    ids = pd.read_parquet("runs/x/prepared/items.parquet")["item_id"].to_numpy()
    frame = read_predictions(Path(f"runs/x/{run}/predictions.parquet"))
    rows = [line.split() for line in Path("x.trec").read_text().splitlines()]
    table = pd.DataFrame(rows, columns=["qid", "q0", "docno", "rank", "score", "tag"])
    table["score"] = table["score"].astype(np.float32)
    by_score = table.sort_values(["score", "docno"], ascending=False, kind="stable")
    lists = by_score.groupby("qid")["docno"].agg(list)
    for user, ranked in zip(frame["user_id"], frame["ranked"], strict=True):
        assert lists[user] == ids[ranked].tolist()
    assert set(table["tag"]) == {run}
    qrels = [line.split() for line in Path("x.qrels").read_text().splitlines()]
    assert [row[2] for row in qrels] == ids[frame["target"]].tolist()


@pytest.mark.parametrize("format", ["trec", "csv"])
def test_what_goes_out_comes_back_with_the_same_figures(
    home: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", "runs/x/baseline-itemknn", "--to", "lists", "--format", format]
    assert typed(capsys, "export-lists", *words).out == "lists: 60 lists\n"
    shown = typed(capsys, "compare", "runs/x", "--external", "back=lists", "--json").out
    found = {standing["name"]: standing for standing in json.loads(shown)["standings"]}
    assert found["back"]["metrics"] == found["baseline-itemknn"]["metrics"]


def test_equal_scores_fall_by_the_least_there_is() -> None:
    assert force_falling([2.0, 1.0]) == [2.0, 1.0]
    found = np.array(force_falling([1.0, 1.0, 1.0, 0.5, 0.5]), np.float32)
    assert (np.diff(found) < 0).all()
    assert found == pytest.approx([1, 1, 1, 0.5, 0.5], abs=1e-6)
    assert force_falling([]) == []
    assert (np.diff(np.array(force_falling([0.0] * 4), np.float32)) < 0).all()


def test_bad_requests_are_one_line(home: Path) -> None:
    with pytest.raises(ArtefactError, match="runs/x/sft: not evaluated on valid yet"):
        export_lists(Path("runs/x/sft"), Path("x"), split="valid", format="trec")
    with pytest.raises(RecipeError, match="--qrels q: goes with --format trec"):
        export_lists(Path("runs/x/sft"), Path("x"), split="test", format="csv", relevant=Path("q"))
    with pytest.raises(ArtefactError, match="nowhere: not the folder of a run"):
        export_lists(Path("nowhere"), Path("x"), split="test", format="csv")
    assert not Path("x").exists()
