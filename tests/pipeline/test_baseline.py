"""Conventional models on the embedded sample: fitted, resumed, evaluated like language models."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import OWN_TRAIN, TRAIN_OF
from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.data.prepared import Prepared
from llmrec_cli.errors import ArtefactError, DataError, RecipeError
from llmrec_cli.evaluation.predictions import PREDICTIONS_SCHEMA
from llmrec_cli.evaluation.ranking import validation_metrics
from llmrec_cli.methods import find_method
from llmrec_cli.models.base import FullScoreRanker, Ranker
from llmrec_cli.models.baselines.pop import PopRanker
from llmrec_cli.models.sequential import make_sequential_ranker
from llmrec_cli.pipeline import requirements, setup
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.loading import load_baseline, load_sequential
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.train import align
from llmrec_cli.runs.run import experiment_of
from llmrec_cli.training.collator import Collator
from llmrec_cli.training.item_scores import fingerprint_of_rows
from llmrec_cli.training.rows import as_windows, sequence_rows, window_rows
from llmrec_cli.utils.files import hash_file, read_json
from llmrec_cli.utils.progress import Advance, Lines, Silent, Work

pytestmark = pytest.mark.slow

MODELS = ("itemknn", "sasrec", "gru4rec", "caser")
NEURAL = ("sasrec", "gru4rec", "caser")
SMALL = {
    "sasrec": ["layers=1", "heads=1", "dropout=0.2"],
    "gru4rec": ["dropout=0.2"],
    "caser": ["filters=4", "dropout=0.1"],
}
SETTINGS = [
    "launch.threads=1",
    "model.scratch.vocabulary=400",
    "model.scratch.hidden=16",
    "eval.rows=300",
    "eval.resamples=100",
    "train.validate_rows=100",
    *(f"baseline.{name}.{own}" for name in NEURAL for own in SMALL[name]),
    *(f"baseline.{name}.hidden=32" for name in NEURAL),
    *(f"baseline.{name}.train.epochs=10" for name in NEURAL),
    *(f"baseline.{name}.train.learning_rate=1e-2" for name in NEURAL),
]


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    settings = [f"out={folder / 'runs'}", *SETTINGS, *overrides]
    return read_recipe("quickstart", settings, baselines=MODELS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every conventional model was fitted and evaluated."""
    folder = tmp_path_factory.mktemp("baselines")
    recipe = recipe_in(folder)
    prepare_data(recipe, Path)
    for name in MODELS:
        baseline(recipe, name, resume=False, progress=Silent())
    runs = ["baseline-pop", *(f"baseline-{name}" for name in MODELS)]
    evaluate_runs(recipe, runs, split="test", again=False, progress=Silent())
    return folder


def ranker_of(context: setup.CatalogueContext, name: str) -> Ranker:
    return load_baseline(
        context, gather_entries(context.prepared.items, context.leaf_of_item), name
    )


def scores_of(context: setup.CatalogueContext, name: str, histories: Any) -> np.ndarray[Any, Any]:
    """The score of every entry: [rows, leaves]."""
    ranker = ranker_of(context, name)
    assert isinstance(ranker, FullScoreRanker)
    return ranker.score_all(histories)


def report(home: Path, name: str) -> dict[str, Any]:
    path = (recipe_in(home).folder / f"baseline-{name}") / "report.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_what_popularity_cannot_know(home: Path, name: str) -> None:
    """The sample's structure is easy: the interval lies above Pop's, history kept or removed."""
    for seen in ("keep", "remove"):
        ours = report(home, name)[seen]["metrics"]["ndcg@10"]
        assert ours["low"] > report(home, "pop")[seen]["metrics"]["ndcg@10"]["high"]


@pytest.mark.parametrize("name", ["pop", *MODELS])
def test_predictions_and_report_look_like_those_of_a_language_model(home: Path, name: str) -> None:
    recipe = recipe_in(home)
    table = pq.read_table((recipe.folder / f"baseline-{name}") / "predictions.parquet")
    assert table.schema.equals(PREDICTIONS_SCHEMA)
    frame = table.to_pandas()
    assert len(frame) == 300
    for history, ranked, scores in zip(
        frame["history"], frame["ranked"], frame["scores"], strict=True
    ):
        assert len(set(ranked) - set(history)) >= 10  # deep enough once the history is removed
        assert (np.diff(scores) <= 0).all()
    found = report(home, name)
    assert found["protocol"]["decoder"] == {"search": "all"}
    assert found["protocol"]["candidates"] == "whole catalogue"
    manifest = json.loads(((recipe.folder / f"baseline-{name}") / "manifest.json").read_text())
    assert (manifest["status"], manifest["opened"]) == ("done", {"test": 1})


def test_ranked_lists_are_the_sorted_scores_of_all_entries(home: Path) -> None:
    """Against every entry's log-probability; they sum to 1 over the catalogue."""
    recipe = recipe_in(home)
    context = setup.open_context(recipe, Silent())
    predictions = pd.read_parquet((recipe.folder / "baseline-gru4rec") / "predictions.parquet")
    score_RL = scores_of(context, "gru4rec", predictions["history"].tolist())
    np.testing.assert_allclose(np.exp(score_RL).sum(1), 1, rtol=1e-4)
    for row, (items, scores) in enumerate(
        zip(predictions["ranked"], predictions["scores"], strict=True)
    ):
        best_first = np.sort(score_RL[row])[::-1][: len(items)]
        np.testing.assert_allclose(scores, best_first, atol=1e-5)
        np.testing.assert_allclose(score_RL[row, context.leaf_of_item[items]], scores, atol=1e-5)


def test_equal_scores_go_to_the_more_popular_entry(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows nothing ranks as Pop does."""
    recipe = recipe_in(home, "name=ties")
    prepare_data(recipe, Path)
    baseline(recipe, "itemknn", resume=False, progress=Silent())
    monkeypatch.setattr(
        "llmrec_cli.models.baselines.itemknn.score_itemknn",
        lambda similar_LL, histories, decay: np.zeros((len(histories), len(similar_LL.indptr) - 1)),
    )
    runs = ["baseline-pop", "baseline-itemknn"]
    evaluate_runs(recipe, runs, split="valid", again=False, progress=Silent())
    pop, ours = (
        pd.read_parquet((recipe.folder / run) / "predictions-valid.parquet") for run in runs
    )
    assert [r.tolist() for r in ours["ranked"]] == [r.tolist() for r in pop["ranked"]]


def test_a_comparison_may_be_made_anew_with_another_decoder(home: Path) -> None:
    """A conventional model has none, so nothing about it changed; Pop is simply fitted again."""
    recipe = recipe_in(home, "eval.decode.search=beam", "eval.cutoffs=[5]")
    runs = ["baseline-pop", "baseline-sasrec"]
    board = evaluate_runs(recipe, runs, split="valid", again=False, progress=Silent()).comparison
    assert {own.name for own in board.standings} == set(runs)


class Stopping:
    """Progress that ends the process's work after some updates, as a crash would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def say(self, text: str) -> None:
        """Nothing."""

    def say_once(self, subject: str, text: str) -> None:
        """Nothing."""

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Advance]:
        def stop() -> None:
            if unit == "updates" and done + self.left <= work.done:
                raise KeyboardInterrupt

        work = Work(label, total, done, unit, stop)
        yield work


def test_a_resumed_model_is_bit_identical(home: Path) -> None:
    settings = ["baseline.sasrec.train.epochs=2", "baseline.sasrec.train.save_every=5"]
    recipe, whole = (recipe_in(home, *settings, f"name={name}") for name in ("parts", "whole"))
    for each in (recipe, whole):
        prepare_data(each, Path)
    with pytest.raises(KeyboardInterrupt):
        baseline(recipe, "sasrec", resume=False, progress=Stopping(after=12))
    with pytest.raises(ArtefactError, match=r"is not finished; run first: .* sasrec RECIPE --res"):
        ranker_of(setup.open_context(recipe, Silent()), "sasrec")
    with pytest.raises(ArtefactError, match="or resume it"):
        baseline(recipe, "sasrec", resume=False, progress=Silent())
    folders = [
        baseline(recipe, "sasrec", resume=True, progress=Silent()),
        baseline(whole, "sasrec", resume=False, progress=Silent()),
    ]
    weights = [(folder / "model" / "weights.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]


def test_a_warm_up_longer_than_the_run_is_said_before_training(home: Path) -> None:
    said = io.StringIO()
    recipe = recipe_in(home, "baseline.sasrec.train.max_steps=2", "name=warm")
    prepare_data(recipe, Path)
    baseline(recipe, "sasrec", resume=False, progress=Lines(said))
    assert "warning: [baseline.sasrec] warmup = " in said.getvalue()
    assert "updates, but the run has 2: the peak rate" in said.getvalue()


def test_a_finished_model_is_kept_and_other_settings_are_refused(home: Path) -> None:
    recipe = recipe_in(home)
    weights = (recipe.folder / "baseline-sasrec") / "model" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    baseline(recipe, "sasrec", resume=True, progress=Silent())
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(ArtefactError, match="never overwritten"):
        baseline(recipe, "sasrec", resume=False, progress=Silent())
    other = recipe_in(home, "baseline.sasrec.hidden=16")
    with pytest.raises(ArtefactError, match=r"stage\.hidden = 32, now 16"):
        baseline(other, "sasrec", resume=True, progress=Silent())
    with pytest.raises(ArtefactError, match=r"stage\.hidden = 32, now 16"):
        ranker_of(setup.open_context(other, Silent()), "sasrec")


def test_a_model_of_another_catalogue_is_refused(home: Path) -> None:
    """The same weights under other leaf numbers would recommend the wrong items."""
    context = setup.open_context(recipe_in(home), Silent())
    context.trie.leaf_of_item_I.copy_(context.trie.leaf_of_item_I.flip(0))
    with pytest.raises(ArtefactError, match="catalogue"):
        ranker_of(context, "itemknn")


def test_ties_on_validation_go_to_the_more_popular_entry_as_in_eval(home: Path) -> None:
    """A model that scores all entries alike is as good as Pop, and is not chosen for more."""
    context = setup.open_context(recipe_in(home), Silent())
    leaves = gather_entries(context.prepared.items, context.leaf_of_item)
    model, frame = load_sequential(context, "caser"), context.prepared.split("valid").head(50)

    def validated(ranker: Ranker) -> dict[str, float]:
        return validation_metrics(ranker, context.ranks, frame, context.leaf_of_item, 10, Silent())

    ours, pop = make_sequential_ranker(model, leaves, 10), validated(PopRanker(leaves))
    assert validated(ours)["hr@10"] > max(0.1, pop["hr@10"])
    torch.nn.init.zeros_(model.embedding.weight)
    assert validated(ours) == pop


@pytest.mark.parametrize(("split", "rows"), [("train", "training"), ("valid", "validation")])
def test_nothing_to_train_on_or_choose_by_is_said_before_a_folder_is_made(
    home: Path, split: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = recipe_in(home, "name=empty"), Prepared.split
    prepare_data(recipe, Path)
    monkeypatch.setattr(Prepared, "split", lambda p, s: whole(p, s).head(0 if s == split else 9))
    with pytest.raises(DataError, match=f"no {rows} rows"):
        baseline(recipe, "sasrec", resume=False, progress=Silent())
    assert not (recipe.folder / "baseline-sasrec").exists()


def test_two_candidates_are_no_catalogue_to_rank(home: Path) -> None:
    prompt = recipe_in(home).prompt.model_copy(update={"task": "rank-pair"})
    pairs = recipe_in(home, "name=pairs").model_copy(update={"prompt": prompt})
    for name in ("pop", "sasrec"):
        with pytest.raises(RecipeError, match=r'task = "rank-pair": .* expected task "generate"'):
            baseline(pairs, name, resume=False, progress=Silent())
    assert not pairs.folder.exists()


def test_a_damaged_model_is_named(home: Path) -> None:
    recipe = recipe_in(home, "name=damaged")
    prepare_data(recipe, Path)
    baseline(recipe, "itemknn", resume=False, progress=Silent())
    weights = (recipe.folder / "baseline-itemknn") / "model" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=r"weights\.safetensors: damaged"):
        ranker_of(setup.open_context(recipe, Silent()), "itemknn")


def test_item_scores_come_from_a_finished_sequential_model_alone(home: Path) -> None:
    recipe = recipe_in(home)
    context = setup.open_context(recipe, Silent())
    frame = context.prepared.split("train").head(30)
    rows = sequence_rows(frame, context.encoder, recipe.data.history)
    table = requirements.load_item_scores(context, "sasrec", "train", rows, Silent())
    found = table.probabilities([0])
    assert found.shape == (len(rows[0].targets), context.trie.n_leaves)
    for at in range(len(rows[0].targets)):
        history = [*rows[0].history, *rows[0].targets[:at]]
        alone = torch.from_numpy(scores_of(context, "sasrec", [history])).exp()[0]
        torch.testing.assert_close(found[at], alone, atol=1e-6, rtol=1e-4)
    (stored,) = (recipe.folder / "scores").glob("[!.]*")
    before = (stored / "vectors.safetensors").stat().st_mtime_ns
    requirements.load_item_scores(context, "sasrec", "train", rows, Silent())
    assert (stored / "vectors.safetensors").stat().st_mtime_ns == before
    for name in ("pop", "itemknn"):
        with pytest.raises(RecipeError, match="expected sasrec, gru4rec or caser"):
            requirements.load_item_scores(context, name, "train", rows, Silent())


def test_stored_item_scores_belong_to_one_model_one_folder_of_data_and_one_set_of_rows(
    home: Path,
) -> None:
    recipe = recipe_in(home)
    context = setup.open_context(recipe, Silent())
    rows = window_rows(context.prepared.split("valid").head(7), context.encoder)
    tables = [
        requirements.load_item_scores(context, name, "valid", rows, Silent())
        for name in ("gru4rec", "caser")
    ]
    requirements.load_item_scores(context, "gru4rec", "valid", rows[:3], Silent())
    assert not torch.equal(tables[0].vector_QD, tables[1].vector_QD)
    folders = sorted(p.name for p in (recipe.folder / "scores").glob("[!.]*-valid-*"))
    assert [name.split("-")[0] for name in folders] == ["caser", "gru4rec", "gru4rec"]
    (stored,) = (recipe.folder / "scores").glob("caser-valid-*")
    weights = (recipe.folder / "baseline-caser") / "model" / "weights.safetensors"
    assert read_json(stored / "facts.json") == {
        "model": hash_file(weights),
        "prepared": hash_file(recipe.prepared_folder / "manifest.json"),
        "rows": fingerprint_of_rows(rows),
    }


def ilrec_in(home: Path, *overrides: str) -> Recipe:
    return recipe_in(
        home,
        "align.ilrec.mu=0.5",
        "align.ilrec.train.max_steps=2",
        "align.ilrec.train.validate_rows=20",
        *overrides,
    )


@pytest.mark.parametrize("history", ["keep", "zero"])
def test_ilrec_is_rewarded_by_the_scores_of_each_targets_own_history(
    home: Path, history: str
) -> None:
    """The masses of its batches, against the model asked about each history alone."""
    recipe = ilrec_in(home, f"align.ilrec.reward_history={history}")
    context, section = setup.open_context(recipe, Silent()), recipe.align["ilrec"]
    stage = requirements.TrainingStage(
        context, find_method("ilrec"), section.options, section.train
    )
    rows = sequence_rows(context.prepared.split("train").head(40), context.encoder, 5)
    valid_rows = window_rows(context.prepared.split("valid").head(4), context.encoder)
    data = requirements.build_datasets(stage, None, rows, valid_rows, home, {}, Silent())
    collate = Collator(context.trie, cut_forced=True)
    leaf_of_item = context.leaf_of_item
    for dataset, of in ((data.train, rows[1:3]), (data.valid, valid_rows[2:])):
        windows = [w for row in of for w in as_windows(row, context.catalogue)]
        mass = dataset.complete_batch(collate(of), of).batch.mass
        assert mass is not None
        nodes = context.trie.node_of_leaf_L.long()
        for answer, window in enumerate(windows):
            expected_L = np.exp(
                scores_of(context, "sasrec", [window.history])[0].astype(np.float64)
            )
            if history == "zero":
                own = leaf_of_item[window.targets[0]]
                gone = set(leaf_of_item[list(window.history)]) - {own}
                expected_L[sorted(gone)] = 0
            got_L = mass.of_nodes(torch.full_like(nodes, answer), nodes)
            np.testing.assert_allclose(got_L.numpy(), expected_L, rtol=1e-3, atol=1e-7)
        assert len(mass.cumulative_AF1) == len(windows)


def test_ilrec_trains_to_its_end_after_its_scorer(home: Path) -> None:
    recipe = ilrec_in(home)
    folder = align(recipe, "ilrec", resume=False, progress=Silent())
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2
    assert all(row["crr"] > 0 and math.isfinite(row["loss"]) for row in logged)
    manifest = read_json(folder / "manifest.json")
    weights = (recipe.folder / "baseline-sasrec") / "model" / "weights.safetensors"
    assert manifest["status"] == "done"
    assert manifest["facts"]["scores"] == {"sasrec": hash_file(weights)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["name=unfinished"], "does not exist; run first: llmrec baseline --model sasrec RECIPE"),
        (["align.ilrec.scores=itemknn"], 'itemknn": has no state of a history .*expected sasrec,'),
        (["align.ilrec.scores=pop"], "expected sasrec, gru4rec or caser"),
        (["align.ilrec.scores=other"], r"add the table.*llmrec baseline --model other RECIPE"),
    ],
)
def test_ilrec_without_scores_stops_before_it_writes_anything(
    home: Path, words: list[str], expected: str
) -> None:
    words = ["name=no-scores", *words]
    recipe = ilrec_in(home, *words)
    prepare_data(recipe, Path)
    with pytest.raises((ArtefactError, RecipeError), match=expected) as caught:
        align(recipe, "ilrec", resume=False, progress=Silent())
    assert "\n" not in str(caught.value)
    assert not (recipe.folder / "align-ilrec").exists()


def test_missing_item_scores_say_what_to_run(home: Path) -> None:
    recipe = recipe_in(home, "name=unfinished")
    prepare_data(recipe, Path)
    context = setup.open_context(recipe, Silent())
    with pytest.raises(ArtefactError, match="run first: llmrec baseline --model sasrec RECIPE"):
        requirements.load_item_scores(context, "sasrec", "train", [], Silent())
    with pytest.raises(RecipeError, match=r"add the table.*llmrec baseline --model other RECIPE"):
        requirements.load_item_scores(context, "other", "train", [], Silent())


def test_a_language_models_training_settings_do_not_leak() -> None:
    """Its rate or number of updates would make a weak rival; how checkpoints are chosen is shared.

    A model's own table wins over both.
    """
    overrides = ["train.max_steps=3", "train.learning_rate=1.0", "train.micro_batch=1"]
    overrides += ["train.validate_rows=77", "train.select=loss", "train.patience=9"]
    overrides += ["baseline.gru4rec.train.validate_rows=5", "baseline.gru4rec.train.batch=7"]
    recipe = read_recipe("amazon2018/instruments-scratch", overrides, baselines=MODELS)
    train = recipe.baseline["sasrec"].train
    assert (train.max_steps, train.validate_rows, train.select) == (None, 77, "loss")
    for key, value in OWN_TRAIN.items():
        assert getattr(train, key) == value, key
    own = recipe.baseline["gru4rec"].train
    assert (own.validate_rows, own.batch, own.select) == (5, 7, "loss")
    assert own.learning_rate == TRAIN_OF["gru4rec"]["learning_rate"]


def test_pop_is_always_there_and_models_without_a_table_are_not() -> None:
    assert list(read_recipe("amazon2018/instruments-scratch").baseline) == ["pop"]
    runs = experiment_of(read_recipe("quickstart")).names
    assert runs.index("baseline-sasrec") < runs.index("sft") < runs.index("align-msl")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("baseline.sasrek.hidden=3", '[baseline.sasrek] model = "sasrek": unknown model, expected'),
        ("baseline.sasrek.hidden=3", "Did you mean sasrec?"),
        ("baseline.mine.model=gru", "Did you mean gru4rec?"),
        ("baseline.sasrec.hiden=3", "[baseline.sasrec] hiden = 3: unknown key. Did you mean hid"),
        ("baseline.sasrec.hidden=65", "must be a multiple of heads"),
        ("baseline.caser.window=0", "[baseline.caser] window = 0: expected greater than or equal"),
        ("baseline.itemknn.decay=1.5", "expected less than or equal to 1"),
        ("baseline.pop.hidden=3", "hidden = 3: unknown key"),
        ("baseline.pop.model=sasrec", 'model = "sasrec": pop is [baseline.pop] alone'),
        ("baseline.mine.model=pop", '[baseline.mine] model = "pop": pop is [baseline.pop] alone'),
        ("baseline.sasrec.train.epoch=3", "Did you mean epochs?"),
        ("baseline=3", "expected tables such as [baseline.sasrec]"),
    ],
)
def test_mistakes_in_a_table_are_named(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe("quickstart", [override])
    assert expected in str(caught.value)
