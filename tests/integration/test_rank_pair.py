"""The rank-pair task from raw files to AUC, and another domain to evaluate on: as users type it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.data.prepared import Prepared
from llmrec_cli.data.prompts import Question, load_rank_template
from llmrec_cli.errors import ArtefactError, DataError
from llmrec_cli.models.tokenizer import make_codec, train_tokenizer
from llmrec_cli.pipeline import run as run_module
from llmrec_cli.pipeline.evaluate import _drop_baselines, evaluate_runs
from llmrec_cli.pipeline.setup import require_tokens
from llmrec_cli.pipeline.validate import validate
from llmrec_cli.runs.run import run_at
from llmrec_cli.sources.synthetic import write_sample
from llmrec_cli.utils.progress import Silent
from tests.commands import TINY, llmrec, ok
from tests.experiments import Told

pytestmark = pytest.mark.slow

GAMES = load_rank_template("games", Path)
TITLES = [f"Game {name}" for name in "ABCDEFGHIJKLMNOPQRST"]
RECIPE = """
name = "pairs"
[data]
format = "rank-pairs"
split = "given"
splits = { train = "sft.json", preference = "dpo.json", test = "eval.json" }
[prompt]
task = "rank-pair"
template = "games"
[model.scratch]
hidden = 16
layers = 1
heads = 2
feed_forward = 16
vocabulary = 400
[train]
batch = 8
micro_batch = 4
epochs = 2
learning_rate = 1e-3
select = "auc"
[align.dmpo]
k = 2
[align.released]
method = "dmpo"
variant = "released"
k = 2
sft = 1.0
[align.dmpo-once]
method = "dmpo"
k = 2
reference = "precompute"
[eval]
resamples = 100
"""


def released_row(
    rng: random.Random, history: list[str], liked: str, other: str, full: bool
) -> object:
    shown = [liked, other] if rng.random() < 0.5 else [other, liked]
    answers = [GAMES.render_answer(liked, other), GAMES.render_answer(other, liked)]
    prompt = GAMES.render(Question(tuple(history), *shown))
    return {"instruction": prompt, "input": "", "output": answers if full else answers[0]}


def write_files(folder: Path) -> None:
    rng = random.Random(0)
    users = [rng.sample(TITLES, 9) for _ in range(60)]
    files: dict[str, list[object]] = {"sft": [], "dpo": [], "eval": []}
    for number, (*history, liked, one, two) in enumerate(users):
        if number < 20:
            files["sft"].append(released_row(rng, history, liked, one, full=False))
            for other in (one, two):
                files["dpo"].append(released_row(rng, history, liked, other, full=True))
        if number >= 18:  # the last two SFT users are evaluated too
            files["eval"].append(released_row(rng, history, liked, one, full=True))
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_files(folder)
    (folder / "pairs.toml").write_text(RECIPE)
    (folder / "shown.txt").write_text(ok(llmrec(folder, "run", "pairs.toml")))
    return folder


def test_the_comparison_shows_both_auc(finished: Path) -> None:
    shown = (finished / "shown.txt").read_text()
    assert shown.startswith("test: 42 rows of 42 users, two candidates (as given)\n")
    for word in (
        "AUC_PAIRED",
        "AUC_POOLED",
        "baseline-pop ",
        "sft ",
        "align-dmpo ",
        "align-released ",
    ):
        assert word in shown


def test_every_run_leaves_scored_pairs_and_a_report(finished: Path) -> None:
    prepared = pd.read_parquet(finished / "runs/pairs/prepared/test.parquet")
    for run in ("baseline-pop", "sft", "align-dmpo", "align-released"):
        home = finished / "runs/pairs" / run
        pairs = pd.read_parquet(home / "pairs.parquet")
        assert pairs["row"].tolist() == prepared["row"].tolist()
        assert pairs["user_id"].tolist() == prepared["user_id"].tolist()
        assert pairs["negative"].tolist() == [n[0] for n in prepared["negatives"]]
        report = json.loads((home / "report.json").read_text())
        wins = (pairs["chosen_score"] > pairs["rejected_score"]) + 0.5 * (
            pairs["chosen_score"] == pairs["rejected_score"]
        )
        assert report["metrics"]["auc_paired"]["mean"] == pytest.approx(wins.mean())
        assert report["protocol"]["task"] == "rank-pair"
        assert json.loads((home / "manifest.json").read_text())["opened"] == {"test": 1}
    assert (pairs["chosen_score"] < 0).all()


def test_the_leak_is_counted_and_taken_out(finished: Path) -> None:
    manifest = json.loads((finished / "runs/pairs/prepared/manifest.json").read_text())
    counts = {name: part["rows"] for name, part in manifest["splits"].items()}
    assert counts == {"train": 18, "valid": 2, "test": 42, "preference": 18}
    leaked = manifest["audit"]["users in several splits"]
    assert leaked["train and test"] + leaked["valid and test"] == 2
    report = json.loads((finished / "runs/pairs/sft/report.json").read_text())
    if leaked["train and test"]:
        assert report["new_users"]["users"] == 42 - leaked["train and test"]


def test_the_method_begins_at_its_reference(finished: Path) -> None:
    """D = 0 at step 0, so DMPO's loss is log 2, with each k of its prompts."""
    for run in ("align-dmpo", "align-dmpo-once"):
        lines = (finished / f"runs/pairs/{run}/metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["loss"] == pytest.approx(0.6931, abs=2e-4)
        assert "valid_auc_paired" in json.loads(lines[-1])


def test_a_stored_reference_trains_as_an_asked_one(finished: Path) -> None:
    online, once = (
        pd.read_json(finished / f"runs/pairs/{run}/metrics.jsonl", lines=True)["loss"].tolist()
        for run in ("align-dmpo", "align-dmpo-once")
    )
    assert once == pytest.approx(online, rel=1e-4)


def test_the_test_split_is_opened_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    recipe = read_recipe("pairs.toml")
    with pytest.raises(ArtefactError, match="was evaluated on test before"):
        evaluate_runs(recipe, ["sft"], split="test", again=False, progress=Silent())
    board = evaluate_runs(recipe, ["sft"], split="valid", again=False, progress=Silent()).comparison
    assert (board.split, [own.name for own in board.standings]) == ("valid", ["sft"])


def test_a_method_that_expects_another_k_is_stopped(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    recipe = read_recipe("pairs.toml", ["align.dmpo.k=3"], aligns=[])
    with pytest.raises(DataError, match="has 2 pairs in the source, but the method takes k = 3"):
        list(validate(recipe, rows=True))


def test_validate_shows_a_pair_and_leaves_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    before = sorted(finished.rglob("*"))
    shown = "\n".join(validate(read_recipe("pairs.toml", ["name=fresh"]), rows=True))
    for expected in ("preference: 18 rows", "  chosen: ", "  rejected: ", "align-dmpo: 18 window"):
        assert expected in shown
    assert sorted(finished.rglob("*")) == before


OWN = ["prompt.task=rank-pair", "prompt.template=items", "train.rows=window", "train.select=auc"]
OWN += ["data.split=few-shot", "data.few_shot_users=30", "align.dmpo.negatives=uniform"]
OTHER = """
[eval.data]
format = "amazon2018"
reviews = ["other/{reviews}"]
metadata = ["other/{metadata}"]
split = "few-shot"
few_shot_users = 10
sample = {{ test = 40 }}
"""


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic raw files of two catalogues, and a recipe that trains on the first."""
    folder = tmp_path_factory.mktemp("domains")
    for name, seed in (("mine", 0), ("other", 1)):
        write_sample(folder / name, seed=seed, users=150, items=60, format="2018")
    found = {"reviews": "Synthetic_Toys.json.gz", "metadata": "meta_Synthetic_Toys.json.gz"}
    mine = OTHER.replace("eval.data", "data").replace("other/", "mine/").format(**found)
    recipe = f'name = "cross"\n{mine}{OTHER.format(**found)}[align.lml]\n'
    (folder / "cross.toml").write_text(recipe)
    return folder


@pytest.mark.parametrize("task", ["generate", "rank-pair"])
def test_another_domain_is_evaluated_with_the_trained_model(
    two_domains: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [w for w in TINY if "sample" not in w and "train.epochs" not in w]
    words += [f"name={task}", "train.max_steps=3", "data.sample.test=20", "eval.batch=16"]
    words += ["prompt.template=items"]
    if task == "rank-pair":
        words += ["prompt.task=rank-pair", "train.select=auc"]
    monkeypatch.chdir(two_domains)
    recipe = read_recipe("cross.toml", words)
    board = run_module.run(recipe, progress=Silent()).comparison
    assert (board.n_rows, board.n_users) == (40, 40)
    assert [own.name for own in board.standings] == ["baseline-pop", "sft", "align-lml"]
    home = two_domains / "runs" / task
    titles = [
        pd.read_parquet(home / f / "items.parquet")["title"] for f in ("prepared", "prepared-eval")
    ]
    assert set(titles[0]) != set(titles[1])
    report = json.loads((home / "sft" / "report.json").read_text())
    assert report["rows"] == 40
    name = "pairs.parquet" if task == "rank-pair" else "predictions.parquet"
    scored = pd.read_parquet(home / "sft" / name)
    users = pd.read_parquet(home / "prepared-eval" / "test.parquet")["user_id"]
    assert scored["user_id"].tolist() == users.tolist()
    assert any(line.startswith("to evaluate on: catalogue") for line in validate(recipe, rows=True))


def test_own_data_make_their_pairs(two_domains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alignment on drawn pairs, anew in every epoch; validation and test pairs stay."""
    words = [w for w in TINY if "sample" not in w and "train.epochs" not in w]
    words += ["name=own", *OWN, "train.epochs=2", "align.dmpo.k=2"]
    (two_domains / "own.toml").write_text(
        (two_domains / "cross.toml").read_text().split("[eval.data]")[0] + "[align.dmpo]\n"
    )
    monkeypatch.chdir(two_domains)
    board = run_module.run(read_recipe("own.toml", words), progress=Silent()).comparison
    assert board.candidates == "two candidates (one fixed uniform negative per row)"
    home = two_domains / "runs/own"
    ours, theirs = (pd.read_parquet(home / r / "pairs.parquet") for r in ("sft", "align-dmpo"))
    assert ours["negative"].tolist() == theirs["negative"].tolist()
    assert ours["chosen_first"].tolist() == theirs["chosen_first"].tolist()
    test = pd.read_parquet(home / "prepared/test.parquet")
    for history, target, other in zip(
        test["history"], test["target"], ours["negative"], strict=True
    ):
        assert other not in {*history, target}
    first = json.loads((home / "align-dmpo/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=2e-4)


@pytest.fixture
def rated(two_domains: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a few-shot recipe whose ratings below 4 are what its users disliked."""
    domain = (two_domains / "cross.toml").read_text().split("[eval.data]")[0]
    (two_domains / "rated.toml").write_text(domain + "[align.dmpo]\n")
    monkeypatch.chdir(two_domains)
    words = [w for w in TINY if "sample" not in w and "train.epochs" not in w]
    words += ["data.min_rating=4", "data.k_core=2", "data.split=few-shot"]
    words += ["data.few_shot_users=40", "prompt.template=items", "train.rows=window"]
    words += ["train.max_steps=2", "eval.batch=16", "align.dmpo.k=1"]
    return [*words, "align.dmpo.negatives=disliked", "align.dmpo.short=drop"]


PAIRED = ["prompt.task=rank-pair", "train.select=auc"]


def test_pairs_show_disliked_items(rated: list[str]) -> None:
    board = run_module.run(
        read_recipe("rated.toml", [*rated, *PAIRED, "name=p"]), progress=Silent()
    ).comparison
    home = Path("runs/p")
    test = pd.read_parquet(home / "prepared/test.parquet")
    pairs = pd.read_parquet(home / "align-dmpo/pairs.parquet")
    shown = [other in own for other, own in zip(pairs["negative"], test["disliked"], strict=True)]
    counts = f"{sum(shown)} disliked, {len(shown) - sum(shown)} uniform"
    assert board.candidates == f"two candidates (one fixed negative per row: {counts})"
    assert 0 < sum(shown) < len(shown)
    report = json.loads((home / "align-dmpo/report.json").read_text())
    assert report["protocol"]["candidates"] == f"one fixed negative per row: {counts}"
    said = "\n".join(validate(read_recipe("rated.toml", [*rated, *PAIRED, "name=p"]), rows=True))
    train = pd.read_parquet(home / "prepared/train.parquet")
    assert f"align-dmpo: {(train['disliked'].map(len) > 0).sum()} window rows" in said


def test_alignment_on_titles_takes_disliked_items(rated: list[str]) -> None:
    board = run_module.run(
        read_recipe("rated.toml", [*rated, "name=g"]), progress=Silent()
    ).comparison
    assert "align-dmpo" in [own.name for own in board.standings]
    last = Path("runs/g/align-dmpo/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["valid_loss"] > 0  # validation users do not train, but disliked too


def test_a_user_with_too_few_dislikes_is_named(rated: list[str]) -> None:
    recipe = read_recipe("rated.toml", [*rated, *PAIRED, "name=e", "align.dmpo.short=error"])
    with pytest.raises(DataError, match=r"user '\w+': fewer than k = 1 .* \(disliked\)"):
        list(validate(recipe, rows=True))


def test_conventional_models_are_skipped_in_another_domain() -> None:
    said: list[str] = []
    progress = Told(said)
    runs = [run_at(Path("e", name)) for name in ("baseline-pop", "baseline-sasrec", "sft")]
    assert _drop_baselines(runs, progress) == [runs[0], runs[2]]
    assert said == ["baseline-sasrec: skipped: [eval.data] has other items than they know"]


def test_semantic_ids_of_another_domain_must_be_known(tmp_path: Path) -> None:
    items = pd.DataFrame({"title": ["a"], "tokens": [["<a_1>", "<b_9>"]]})
    codec = make_codec(train_tokenizer([], vocabulary=300))
    codec.tokenizer.add_tokens(["<a_1>"])
    with pytest.raises(DataError, match="1 tokens of its semantic IDs, such as <b_9>, are unknown"):
        require_tokens(Prepared(tmp_path, {}, items), codec)
    codec.tokenizer.add_tokens(["<b_9>"])
    require_tokens(Prepared(tmp_path, {}, items), codec)
