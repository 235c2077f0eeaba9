"""A finished run that recommends: the lists of ``llmrec eval``, from a folder that was moved."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console

import llmrec_cli
from llmrec_cli import Recommender
from llmrec_cli.cli.exit_codes import catch_errors
from llmrec_cli.cli.output import Screen
from llmrec_cli.cli.serving import recommend_command
from llmrec_cli.errors import ArtefactError, DataError, MachineError, RecipeError, UserError
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.serving.recommender import (
    Recommendations,
    recommendations_to_json,
    recommendations_to_lines,
    recommendations_to_tables,
)
from tests.experiments import make_experiment

pytestmark = pytest.mark.slow

RUNS = ("sft", "align-msl", "baseline-sasrec", "baseline-itemknn", "baseline-pop")
EXTRA = (
    "train.max_steps=12",
    "baseline.sasrec.hidden=16",
    "baseline.sasrec.train.max_steps=12",
    "data.duplicates=keep",  # histories may repeat an item
)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment that lies elsewhere now, under another name."""
    home = tmp_path_factory.mktemp("made")
    folder = make_experiment(home, "small", *EXTRA)
    return folder.rename(tmp_path_factory.mktemp("elsewhere") / "my experiment")


@pytest.fixture(scope="module")
def sft(moved: Path) -> Recommender:
    return Recommender.load(moved / "sft")


def evaluated(moved: Path, run: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What eval recommends, and the catalogue."""
    items = pd.read_parquet(moved / "prepared/items.parquet")
    return pd.read_parquet(moved / run / "predictions.parquet"), items


def ids(found: Recommendations) -> list[str]:
    return [item.item_id for item in found.items]


@pytest.mark.parametrize("run", RUNS)
def test_lists_and_scores_are_those_of_eval(moved: Path, run: str) -> None:
    predictions, items = evaluated(moved, run)
    names = items["item_id"].to_numpy()
    histories = [names[history].tolist() for history in predictions["history"]]
    opened = Recommender.load(str(moved / run))
    kept = opened.recommend_many(histories, 10, exclude_history=False)
    removed = opened.recommend_many(histories, 10)
    assert len(kept) == len(predictions) == 60
    for listed, scores, history, with_it, without in zip(
        predictions["ranked"], predictions["scores"], histories, kept, removed, strict=True
    ):
        ranked = names[listed].tolist()
        assert ids(with_it) == ranked[:10]
        np.testing.assert_allclose([i.score for i in with_it], scores[:10], rtol=1e-5)
        rest = [name for name in ranked if name not in set(history)]
        assert len(rest) >= 9  # the target may stand in its own history
        assert ids(without)[: len(rest)] == rest[:10]
        assert [item.rank for item in with_it] == list(range(1, 11))


@pytest.mark.parametrize(
    ("run", "scored_by"),
    [
        ("sft", ScoredBy.LOG_PROBABILITY),
        ("baseline-sasrec", ScoredBy.LOG_PROBABILITY),
        ("baseline-itemknn", ScoredBy.SIMILARITY),
        ("baseline-pop", ScoredBy.COUNT),
    ],
)
def test_probabilities_are_over_the_whole_catalogue(
    moved: Path, run: str, scored_by: ScoredBy
) -> None:
    opened = Recommender.load(moved / run)
    _, items = evaluated(moved, run)
    history = items["item_id"].tolist()[:3]
    everything = opened.recommend(history, 10_000, exclude_history=False)
    without = opened.recommend(history, 10_000)
    assert everything.scored_by is scored_by
    assert sorted(ids(everything)) == sorted(items["item_id"])
    assert set(ids(everything)) - set(ids(without)) == set(history)
    if scored_by is ScoredBy.LOG_PROBABILITY:
        chances = {item.item_id: item.probability for item in everything}
        assert sum(chance for chance in chances.values() if chance) == pytest.approx(1, abs=1e-4)
        for item in without:
            assert item.probability == pytest.approx(chances[item.item_id], rel=1e-4)
            assert item.log_probability == pytest.approx(item.score)
            assert item.probability == pytest.approx(math.exp(item.score))
    else:
        assert {item.probability for item in everything} == {None}
        assert {item.log_probability for item in everything} == {None}


@pytest.mark.parametrize("run", RUNS)
def test_a_list_that_is_shorter_than_asked_says_why(moved: Path, run: str) -> None:
    opened = Recommender.load(moved / run)
    size = opened.leaves.n_leaves
    history = evaluated(moved, run)[1]["item_id"].tolist()[:3]
    entries = {int(opened.leaves.leaf_of_item_I[item]) for item in range(3)}

    def list_reasons(k: int, *, exclude_history: bool) -> list[str]:
        found = opened.recommend(history, k, exclude_history=exclude_history)
        assert len(found) == min(k, size - len(entries) * exclude_history)
        return [note for note in found.notes if "catalogue has" in note]

    assert list_reasons(size, exclude_history=False) == []
    assert list_reasons(size - len(entries), exclude_history=True) == []
    assert list_reasons(1000, exclude_history=False) == [
        f"{size} of 1,000 entries: the catalogue has {size}"
    ]
    rest = size - len(entries)
    assert list_reasons(rest + 1, exclude_history=True) == [
        f"{rest} of {rest + 1} entries: the catalogue has {size}, and {len(entries)} of the "
        "history are left out"
    ]


def test_opening_and_recommending_writes_nothing(moved: Path) -> None:
    def looks() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in moved.rglob("*")}

    before = looks()
    for run in RUNS:
        Recommender.load(moved / run).recommend([])
    assert looks() == before


def test_what_was_typed_and_what_it_was_taken_for(moved: Path, sft: Recommender) -> None:
    _, items = evaluated(moved, "sft")
    title, item_id = items["title"][7], items["item_id"][4]
    found = sft.recommend([title.lower().replace("a", ""), item_id])
    first, second = found.history
    assert (first.query, first.title) == (title.lower().replace("a", ""), title)
    assert 0.8 <= first.similarity < 1
    assert (second.item_id, second.similarity, second.used) == (item_id, 1, True)
    assert ids(found) == ids(sft.recommend([items["item_id"][7], item_id]))
    assert found.notes == ()
    assert list(found) == list(found.items)
    assert len(found) == 10
    assert sft.recommend_many([]) == []


def test_of_a_long_history_the_last_items_are_used_and_all_are_left_out(
    moved: Path, sft: Recommender
) -> None:
    _, items = evaluated(moved, "sft")
    long = items["item_id"].tolist()[:12]  # data.history = 5
    found = sft.recommend(long, 10_000, exclude_history=False)
    assert found.items == sft.recommend(long[-5:], 10_000, exclude_history=False).items
    assert found.notes[0] == "12 items: the last 5 are used (data.history)"
    assert [told.used for told in found.history] == [False] * 7 + [True] * 5
    assert not set(long) & set(ids(sft.recommend(long, 10_000)))


def test_a_prompt_that_is_too_long_says_how_much_of_the_history_it_holds(moved: Path) -> None:
    _, items = evaluated(moved, "sft")
    history = items["item_id"].tolist()[:5]
    tokens = [len(t) for t in Recommender.load(moved / "sft").context.catalogue[:5]]
    room = 1 + sum(tokens[-2:])
    tight = Recommender.load(moved / "sft", overrides=[f"prompt.max_tokens={room}"])
    found = tight.recommend(history)
    assert [told.used for told in found.history] == [False] * 3 + [True] * 2
    assert found.notes == (
        f"the prompt has room for the last 2 items (prompt.max_tokens = {room})",
    )


def test_a_history_may_be_empty(moved: Path, sft: Recommender) -> None:
    found = sft.recommend([])
    assert len(found) == 10
    assert found.history == ()
    assert found.notes == ("no history: the run's data have histories of at least 1 items",)
    pop = Recommender.load(moved / "baseline-pop").recommend([], 20)
    knn = Recommender.load(moved / "baseline-itemknn").recommend([], 20)
    assert ids(knn) == ids(pop)  # nothing is similar: the order is that of popularity
    assert {item.score for item in knn} == {0}
    assert "popularity" in knn.notes[0]
    assert "the same to everybody" in pop.notes[0]


def test_an_override_decodes_otherwise(moved: Path, sft: Recommender) -> None:
    """A penalised beam orders by log-probability / length^penalty, tokens counted with EOS."""
    _, items = evaluated(moved, "sft")
    history = items["item_id"].tolist()[:3]
    words = ["search=beam", "beams=30", "length_penalty=0.7"]
    beam = Recommender.load(moved / "sft", overrides=[f"eval.decode.{word}" for word in words])
    exact = {i.item_id: i for i in sft.recommend(history, 10_000, exclude_history=False)}
    found = beam.recommend(history, exclude_history=False)
    length = dict(zip(items["item_id"], map(len, beam.context.catalogue), strict=True))
    assert found.scored_by is ScoredBy.PENALISED
    for item in found:
        log_probability = exact[item.item_id].score
        assert item.log_probability == pytest.approx(log_probability, rel=1e-4)
        assert item.score == pytest.approx(log_probability / length[item.item_id] ** 0.7, rel=1e-4)
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)


def test_a_beam_that_finds_too_little_says_so(moved: Path) -> None:
    narrow = Recommender.load(
        moved / "sft", overrides=["eval.decode.search=beam", "eval.decode.beams=10"]
    )
    first = narrow.recommend([], 10, exclude_history=False)
    found = narrow.recommend(ids(first)[:5], 10)
    assert len(found) < 10 or found.notes == ()
    assert (len(found) == 10) == (not any("the beam found" in note for note in found.notes))


def test_a_user_comes_with_all_of_their_items(moved: Path, sft: Recommender) -> None:
    predictions, items = evaluated(moved, "sft")
    row = predictions[predictions["history"].map(len) == 5].iloc[0]
    user, names = str(row["user_id"]), items["item_id"].to_numpy()
    history = sft.history_of(user)
    assert history[-6:] == [*names[row["history"]], names[row["target"]]]
    found = sft.recommend_to(user, 20)
    assert found.notes[0] == (
        f"user {user}: {len(history)} items in the prepared data, over all splits"
    )
    assert found.notes[1] == f"{len(history)} items: the last 5 are used (data.history)"
    assert found.items == sft.recommend(history, 20).items
    assert not set(history) & set(ids(found))
    with pytest.raises(DataError, match="not among the 969 prepared ones; nearest: '"):
        sft.recommend_to(user + "X")


def test_what_cannot_be_asked(sft: Recommender) -> None:
    with pytest.raises(DataError, match="'no such toy at all': expected an item id, a title"):
        sft.recommend(["no such toy at all"])
    with pytest.raises(DataError, match="expected an item id, a title; nearest"):
        sft.recommend(["gravkeld restless dragons train set, vol. 1"], fuzzy=False)
    with pytest.raises(DataError, match="k = 0: expected at least 1"):
        sft.recommend([], 0)
    with pytest.raises(TypeError, match="expected a list of ids or titles"):
        sft.recommend("The Hobbit")  # a string is a sequence of strings, and not a history


def copied(moved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(moved, tmp_path / "copy"))


def test_what_is_no_finished_run(moved: Path, tmp_path: Path) -> None:
    copy = copied(moved, tmp_path)
    with pytest.raises(ArtefactError, match="no such folder; expected a run's folder"):
        Recommender.load(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match=r"is an experiment's folder; .*: align-msl, baseline"):
        Recommender.load(copy)
    with pytest.raises(ArtefactError, match="is no run's folder"):
        Recommender.load(copy / "prepared")
    (copy / "sft").rename(copy / "best")
    with pytest.raises(ArtefactError, match="holds the run sft"):
        Recommender.load(copy / "best")
    manifest = copy / "align-msl/manifest.json"
    manifest.write_text(manifest.read_text().replace('"status": "done"', '"status": "running"'))
    with pytest.raises(ArtefactError, match="is not finished"):
        Recommender.load(copy / "align-msl")


def test_damage_and_strange_neighbours_are_found(moved: Path, tmp_path: Path) -> None:
    copy = copied(moved, tmp_path)
    weights = copy / "sft/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.safetensors: damaged"):
        Recommender.load(copy / "sft")
    manifest = copy / "prepared/manifest.json"
    manifest.write_text(manifest.read_text() + " ")  # other data, intact
    for run in ("align-msl", "baseline-pop", "baseline-itemknn"):
        with pytest.raises(ArtefactError, match=r"with prepared = .*; put back what it was"):
            Recommender.load(copy / run)
    (copy / "base/tokenizer.json").unlink()
    with pytest.raises(ArtefactError, match=r"base/tokenizer\.json: missing"):
        Recommender.load(copy / "align-msl")


def test_wrong_overrides_and_devices(moved: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean temperature"):
        Recommender.load(moved / "sft", overrides=["eval.decode.temprature=2"])
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match='device "cuda": no CUDA device'):
            Recommender.load(moved / "sft", device="cuda")


def test_a_program_may_use_accelerate_otherwise(moved: Path, sft: Recommender) -> None:
    """Accelerate's state is one for a process and cannot change; a recommender leaves it alone."""
    AcceleratorState._reset_state(True)
    try:
        theirs = Accelerator(cpu=True, mixed_precision="bf16")
        other = Recommender.load(moved / "sft", device="cpu")
        assert theirs.mixed_precision == "bf16"
        assert other.recommend([]).items == sft.recommend([]).items
    finally:
        AcceleratorState._reset_state(True)


def test_a_template_of_ones_own_is_found_where_the_run_was_made(
    moved: Path, tmp_path: Path
) -> None:
    """A relative path is looked up below the folder that the run was made in, ``out`` taken off."""
    folder = Path(shutil.copytree(moved, tmp_path / "home/runs/small"))
    recorded = (folder / "sft/recipe.toml").read_text().replace('"sequence"', '"window"', 100)
    mine = 'template = "wording/mine.toml"'
    (folder / "sft/recipe.toml").write_text(recorded.replace('template = "window"', mine))
    (tmp_path / "home/wording").mkdir()
    wording = tmp_path / "home/wording/mine.toml"
    wording.write_text('instruction = "Next?"\nhistory = "Had {history}."\nempty = "New."\n')
    template = Recommender.load(folder / "sft").context.encoder.template
    assert template is not None
    assert template.render(["A"]).endswith('Had "A".\n\n### Response:\n')
    wording.unlink()
    with pytest.raises(RecipeError, match=r"mine\.toml: cannot be read as a prompt template"):
        Recommender.load(folder / "sft")


@pytest.mark.parametrize("run", ["sft", "baseline-sasrec"])
def test_semantic_ids_have_no_titles_and_may_be_shared(tmp_path: Path, run: str) -> None:
    index = {str(i): [f"<a_{i % 5}>", f"<b_{i // 6}>"] for i in range(30)}
    users = {str(u): [(u * 7 + t * 3) % 30 for t in range(8)] for u in range(40)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "inter.json").write_text(json.dumps(users))
    words = [
        'data={format="semantic-ids", reviews="inter.json", index="index.json", k_core=0}',
        "baseline.sasrec.hidden=16",
        "baseline.sasrec.train.max_steps=2",
    ]
    folder = make_experiment(tmp_path, "ids", *words)
    found = Recommender.load(folder / run).recommend(["7", "12"], 100, exclude_history=False)
    assert {item.title for item in found} == {None}
    assert found.history[0].title is None
    listed = [item.item_id for item in found] + [o for item in found for o in item.same_entry]
    assert sorted(listed) == sorted(index), "every item once, alone or beside its equal"
    for item in found:
        for other in item.same_entry:
            assert index[item.item_id] == index[other]
    assert sum(item.probability or 0 for item in found) == pytest.approx(1, abs=1e-4)


def test_the_command_shows_what_it_matched(
    moved: Path, sft: Recommender, capsys: pytest.CaptureFixture[str]
) -> None:
    _, items = evaluated(moved, "sft")
    title, other = items["title"][7], items["item_id"][4]
    typed = title.replace("e", "")
    recommend_command(moved / "sft", history=[typed, other], k=3, quiet=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "history: 2 items, oldest first"
    assert shown[1].startswith(f'  "{typed}" -> {title} [{items["item_id"][7]}] (similarity 0.')
    assert shown[2] == f"  {items['title'][4]} [{other}]"
    assert shown[3] == "recommended, by probability"
    best = sft.recommend([title, other], 3).items[0]
    assert shown[4] == f"  1  {best.probability:.4f}  {best.title} [{best.item_id}]"
    assert len(shown) == 7


def test_the_command_in_json(
    moved: Path, sft: Recommender, capsys: pytest.CaptureFixture[str]
) -> None:
    user = evaluated(moved, "sft")[0]["user_id"][0]
    recommend_command(moved / "sft", user=user, k=3, keep=True, as_json=True, quiet=True)
    found = json.loads(capsys.readouterr().out)
    expected = sft.recommend_to(user, 3, exclude_history=False)
    assert [item["item_id"] for item in found["items"]] == ids(expected)
    assert found["items"][0]["probability"] == expected.items[0].probability
    assert found["scored_by"] == "log-probability"
    assert [told["item_id"] for told in found["history"]] == sft.history_of(user)
    assert list(found["notes"]) == list(expected.notes)


def test_the_command_refuses_two_histories(moved: Path) -> None:
    with pytest.raises(UserError, match="--user and --history: expected one of them"):
        recommend_command(moved / "sft", history=["a"], user="b")


def test_a_typo_is_one_line_and_exit_code_2(
    moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = catch_errors(lambda: recommend_command(moved / "sft", history=["no such"], quiet=True))
    shown = capsys.readouterr()
    assert code == 2
    assert "error: 'no such': expected an item id" in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_hostile_titles_stay_text(
    sft: Recommender, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = sft.context.prepared.items
    hostile: Any = items  # a frame takes columns as a dictionary takes values
    monkeypatch.setitem(hostile, "title", "[/] \x1b[31m<b>red\u202e " + items["title"])
    found = sft.recommend([items["item_id"][0]], 2)
    Screen().show(
        recommendations_to_json(found),
        recommendations_to_lines(found),
        recommendations_to_tables(found),
    )
    shown = capsys.readouterr().out
    assert "[/] <b>red " in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as captured:
        for renderable in recommendations_to_tables(found):
            console.print(renderable)
    assert "[/] <b>red " in captured.get()
    assert "\x1b" not in captured.get()


@pytest.mark.starts_python("it shows that no torch is imported")
def test_importing_the_package_stays_light() -> None:
    code = "import sys, llmrec_cli; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert llmrec_cli.Recommender is Recommender
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        getattr(llmrec_cli, "Recomender")  # noqa: B009 - the access is the test
