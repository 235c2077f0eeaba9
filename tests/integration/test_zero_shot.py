"""The untouched backbone as a run, and what ``eval`` takes when nobody names runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import llmrec_cli
from llmrec_cli import Recommender
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.run import run
from llmrec_cli.pipeline.train import sft
from llmrec_cli.utils.files import hash_file
from llmrec_cli.utils.progress import Silent
from tests.commands import llmrec, ok
from tests.experiments import Told, copied, typed
from tests.pipeline.sample_backbones import ALL, RECIPE, byte_level, write_checkpoint, write_raw

pytestmark = [  # slow, and what peft has to say
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
TABLES = '[baseline.pop]\n[baseline.itemknn]\n[align.lml]\nparent = "base"\n'
STILL = "train.learning_rate=1e-12"  # a run that ends where it begins
WAYS = {
    "lora": ("model.tuning=lora", "eval.auc=true"),
    "full": ("model.tuning=full", "eval.auc=true"),
    "pairs": ("model.tuning=lora", "prompt.task=rank-pair", "train.select=auc"),
}


@pytest.fixture(scope="module")
def sft_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose experiment ``own`` has SFT trained, and nothing else."""
    home = tmp_path_factory.mktemp("zero-shot")
    write_raw(home)
    (home / "own.toml").write_text(RECIPE + TABLES)
    (home / "plain.toml").write_text(RECIPE)
    write_checkpoint(home / "base", byte_level(), ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train_sft(read_recipe("own.toml"))
    return home


@pytest.fixture
def home(sft_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder; the backbone's path leads there."""
    copy = copied(sft_home, tmp_path, monkeypatch)
    for name in ("recipe.toml", "manifest.json"):
        file = copy / "runs/own/sft" / name
        file.write_text(file.read_text().replace(str(sft_home), str(copy)))
    return copy


def train_sft(recipe: Recipe) -> None:
    prepare_data(recipe, Path)
    sft(recipe, resume=False, progress=Silent())


def evaluate(recipe: Recipe, *names: str, again: bool = False) -> list[str]:
    """Names of the table's entries after these runs were evaluated."""
    found = evaluate_runs(recipe, names, split="test", again=again, progress=Silent())
    return [entry.name for entry in found.entries]


def read_pairs(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "pairs.parquet")[["chosen_score", "rejected_score"]]


@pytest.mark.parametrize("way", WAYS)
def test_the_base_ranks_as_a_run_that_ends_where_it_began(home: Path, way: str) -> None:
    recipe = read_recipe("plain.toml", (f"name={way}", STILL, *WAYS[way]))
    train_sft(recipe)
    assert evaluate(recipe, "base", "sft") == ["base", "sft"]
    base, still = recipe.folder / "base", recipe.folder / "sft"
    np.testing.assert_allclose(read_pairs(base), read_pairs(still), rtol=1e-5)
    if way != "pairs":
        lists = [pd.read_parquet(folder / "predictions.parquet") for folder in (base, still)]
        assert lists[0]["ranked"].map(list).tolist() == lists[1]["ranked"].map(list).tolist()


def test_two_processes_rank_with_the_base_as_one_does(home: Path) -> None:
    words = ("own.toml", "eval.auc=true")
    ok(llmrec(home, "eval", *words, "--run", "base", "launch.processes=2"))
    folder = home / "runs/own/base"
    report = json.loads((folder / "report.json").read_text())
    assert report["cost"]["processes"] == 2
    lists, pairs = pd.read_parquet(folder / "predictions.parquet"), read_pairs(folder)
    recipe = read_recipe(words[0], words[1:])
    assert evaluate(recipe, "base", again=True) == ["base"]
    alone = pd.read_parquet(folder / "predictions.parquet")
    assert alone["ranked"].map(list).tolist() == lists["ranked"].map(list).tolist()
    np.testing.assert_allclose(read_pairs(folder), pairs, rtol=1e-5)


def test_a_trained_run_ranks_otherwise_than_the_base(home: Path) -> None:
    """The control of the test above: lists and scores of this model can differ."""
    recipe = read_recipe("own.toml", ["train.learning_rate=1e-2", "eval.auc=true"])
    evaluate(recipe, "base", "sft")
    base, trained = (recipe.folder / name for name in ("base", "sft"))
    assert (read_pairs(base) - read_pairs(trained)).abs().to_numpy().max() > 1e-2


def test_the_base_is_a_run_without_weights_that_recommends(home: Path) -> None:
    recipe = read_recipe("own.toml")
    evaluate(recipe, "base")
    folder = recipe.folder / "base"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["manifest.json", "predictions.parquet", "recipe.toml", "report.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["opened"] == {"test": 1}
    weights = manifest["facts"]["base_files"]["model.safetensors"]
    assert weights == hash_file(home / "base/model.safetensors")
    row = pd.read_parquet(folder / "predictions.parquet").iloc[0]
    items = pd.read_parquet(recipe.prepared_folder / "items.parquet")["item_id"]
    ids = items.iloc[row["history"]].tolist()
    found = Recommender.load(folder).recommend(ids, k=5, exclude_history=False)
    wanted = items.iloc[row["ranked"][:5]].tolist()
    assert [
        one in {item.item_id, *item.same_entry} for item, one in zip(found, wanted, strict=True)
    ] == [True] * 5
    shown = llmrec_cli.compare([recipe.folder])
    assert [entry.name for entry in shown.standings] == ["base"]
    cost = shown.standings[0].cost
    assert (cost.train_seconds, cost.tokens) == (0.0, 0)


def test_python_records_the_base_and_recommends_before_it_is_evaluated(home: Path) -> None:
    recipe = llmrec_cli.load_recipe("own.toml", ["name=own"])
    made = llmrec_cli.train(recipe, "base")
    assert made.outcome == {}
    assert len(Recommender.load(made.folder).recommend([], k=3)) == 3
    assert llmrec_cli.train(recipe, "base", resume=True).folder == made.folder
    with pytest.raises(ArtefactError, match="is finished and is never overwritten"):
        llmrec_cli.train(recipe, "base")
    assert "base" in [one.name for one in llmrec_cli.evaluate(recipe).standings]


def test_the_base_knows_no_seed(home: Path) -> None:
    recipes = [read_recipe("plain.toml", [f"name=s{n}", f"seed={n}"]) for n in (1, 2)]
    for recipe in recipes:
        prepare_data(recipe, Path)
        evaluate(recipe, "base")
    found = llmrec_cli.compare([recipe.folder for recipe in recipes])
    assert [entry.name for entry in found.standings] == ["base"]
    assert "s2/base is s1/base: the same backbone on the same data" in found.notes


def test_a_base_of_other_weights_is_not_overwritten(home: Path) -> None:
    recipe = read_recipe("own.toml")
    evaluate(recipe, "base")
    before = (recipe.folder / "base/report.json").read_bytes()
    file = home / "base/model.safetensors"
    changed = {name: tensor * 1.5 for name, tensor in load_file(file).items()}
    save_file(changed, file, metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"started with base_files.model.safetensors = "):
        evaluate(recipe, "base", again=True)
    assert (recipe.folder / "base/report.json").read_bytes() == before
    with pytest.raises(ArtefactError, match=r"base: made with base_files.model.safetensors = "):
        Recommender.load(recipe.folder / "base")


def test_a_base_folder_of_random_weights_is_left_alone(home: Path) -> None:
    scratch = read_recipe(
        "own.toml", ["name=mixed", "model.backbone=scratch", "sft.train.max_steps=1"]
    )
    train_sft(scratch)
    before = {path: hash_file(path) for path in (scratch.folder / "base").iterdir()}
    with pytest.raises(ArtefactError, match="holds the backbone of random weights"):
        evaluate(read_recipe("own.toml", ["name=mixed"]), "base")
    assert {path: hash_file(path) for path in (scratch.folder / "base").iterdir()} == before


def test_what_makes_no_sense_of_the_base_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = typed(capsys, "recommend", "--run", "runs/own/base", "--history", "Red kite")
    assert missing.errors[-1].endswith(
        "runs/own/base: no such run yet; run first: llmrec eval --run base RECIPE"
    )
    evaluate(read_recipe("own.toml"), "base")
    export = typed(capsys, "export", "--run", "runs/own/base", "--to", "out")
    assert "nothing was trained, so there is nothing to export" in export.errors[-1]
    assert not Path("out").exists()
    sweep = typed(capsys, "sweep", "own.toml", "--stage", "base", "--grid", "seed=1,2")
    assert export.code == sweep.code == 2
    assert (
        "nothing of it is trained"
        in typed(
            capsys, "sweep", "own.toml", "--stage", "base", "--grid", "train.epochs=1,2"
        ).errors[-1]
    )
    random = typed(capsys, "eval", "own.toml", "--run", "base", "model.backbone=scratch")
    assert random.code == 2
    assert 'model.backbone = "scratch" has random weights before training' in random.errors[-1]


def test_eval_takes_what_is_finished_and_names_the_rest(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = typed(capsys, "eval", "own.toml", "--json")
    assert shown.code == 0, shown.err
    rest = (
        "left out: baseline-itemknn does not exist (llmrec baseline --model itemknn own.toml), "
        "align-lml does not exist (llmrec align --method lml own.toml)"
    )
    said = "left out: baseline-itemknn does not exist, align-lml does not exist"
    assert said in shown.errors
    found = json.loads(shown.out)
    assert found["notes"][0] == rest
    names = [entry["name"] for entry in found["standings"]]
    assert names == ["base", "baseline-pop", "sft"]
    again = typed(capsys, "eval", "own.toml", "--json")
    assert again.code == 0
    assert json.loads(again.out) == found
    assert "evaluated on test before, and kept: base, baseline-pop, sft" in again.errors
    named = typed(capsys, "eval", "own.toml", "--run", "sft")
    assert named.code == 2
    assert "sft: was evaluated on test before, and test is opened once per run" in named.err
    lacking = typed(capsys, "eval", "own.toml", "--run", "align-lml")
    assert lacking.code == 2
    assert "align-lml: does not exist; run first: llmrec align --method lml own.toml" in lacking.err
    opened = json.loads(Path("runs/own/sft/manifest.json").read_text())["opened"]
    assert opened == {"test": 1}
    assert typed(capsys, "eval", "own.toml", "--again", "--quiet").code == 0
    opened = json.loads(Path("runs/own/sft/manifest.json").read_text())["opened"]
    assert opened == {"test": 2}


def test_eval_of_an_interrupted_run_names_the_command_that_goes_on(home: Path) -> None:
    manifest = Path("runs/own/sft/manifest.json")
    shutil.copytree("runs/own/sft", "runs/own/align-lml")
    stopped = json.loads(manifest.read_text()) | {"status": "running", "run": "align-lml"}
    Path("runs/own/align-lml/manifest.json").write_text(json.dumps(stopped))
    Path("runs/own/baseline-itemknn").mkdir()  # killed before its manifest was written
    told = Told([])
    found = evaluate_runs(read_recipe("own.toml"), None, split="test", again=False, progress=told)
    (note,) = [note for note in found.comparison.notes if "baseline-itemknn" in note]
    again = "baseline-itemknn is not finished (llmrec baseline --model itemknn RECIPE --resume)"
    assert note == f"left out: {again}"
    assert "align-lml is not finished" in told.said[0]
    (note,) = [note for note in found.comparison.notes if "align-lml" in note]
    assert "align-lml, which is not finished (llmrec align --method lml RECIPE --resume)" in note


def test_eval_of_nothing_trained_says_what_to_run_first(home: Path) -> None:
    fresh = read_recipe("own.toml", ["name=fresh"])
    prepare_data(fresh, Path)
    for keep in (False, True):
        with pytest.raises(ArtefactError, match="itemknn: does not exist; run first: llmrec basel"):
            evaluate_runs(fresh, None, split="test", again=False, keep=keep, progress=Silent())
    assert not (fresh.folder / "base").exists()
    assert evaluate(fresh, "base") == ["base"]
    found = evaluate_runs(fresh, None, split="test", again=False, keep=True, progress=Silent())
    assert [entry.name for entry in found.entries] == ["base", "baseline-pop"]


def test_a_report_of_another_protocol_is_not_kept_in_silence(home: Path) -> None:
    recipe = read_recipe("own.toml", ["align.lml.train.max_steps=1"])
    evaluate(recipe, "sft")
    other = read_recipe("own.toml", ["eval.rows=5", "align.lml.train.max_steps=1"])
    told = r"sft: was evaluated on test with eval.rows = 8, now 5; use the same recipe, or eval"
    with pytest.raises(ArtefactError, match=told):
        evaluate_runs(other, None, split="test", again=False, keep=True, progress=Silent())
    with pytest.raises(ArtefactError, match=told):
        run(other, progress=Silent())
    assert not (recipe.folder / "align-lml").exists()
    same = read_recipe("own.toml", ["eval.batch=3"])
    evaluate_runs(same, None, split="test", again=False, keep=True, progress=Silent())


def test_run_puts_the_base_into_the_first_row(home: Path) -> None:
    shown = run(read_recipe("own.toml"), progress=Silent())
    names = [entry.name for entry in shown.entries]
    assert names == ["base", "baseline-pop", "baseline-itemknn", "sft", "align-lml"]


def test_python_keeps_what_nobody_names(home: Path) -> None:
    recipe = llmrec_cli.load_recipe("own.toml")
    assert llmrec_cli.evaluate(recipe, ["sft"]).notes
    found = llmrec_cli.evaluate(recipe)
    assert "evaluated on test before, and kept: sft" in found.notes
    assert len(found.notes) == len(set(found.notes))
    with pytest.raises(ArtefactError, match="was evaluated on test before"):
        llmrec_cli.evaluate(recipe, existing="refuse")
    with pytest.raises(RecipeError, match=r'run "bas": unknown, .* Did you mean base\?'):
        llmrec_cli.evaluate(recipe, ["bas"])


GIFT_CARDS = """
[data]
format = "amazon2018"
reviews = ["{folder}/Gift_Cards_5.json.gz"]
metadata = ["{folder}/meta_Gift_Cards.json.gz"]
[prompt]
template = "gift-cards"
[model]
backbone = "{backbone}"
tuning = "lora"
[train]
learning_rate = 1e-12
max_steps = 1
batch = 2
rows = "window"
select = "loss"
validate_rows = 2
[eval]
rows = 8
resamples = 100
"""


def test_a_real_model_ranks_as_a_run_that_ends_where_it_began(
    shared_data: Path, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shared_data / "amazon2018-gift-cards"
    Path("gc.toml").write_text(GIFT_CARDS.format(folder=folder, backbone=smollm2))
    recipe = read_recipe("gc.toml")
    train_sft(recipe)
    assert evaluate(recipe, "base", "sft") == ["base", "sft"]
    lists = [
        pd.read_parquet(recipe.folder / name / "predictions.parquet")["ranked"].map(list).tolist()
        for name in ("base", "sft")
    ]
    assert lists[0] == lists[1]
