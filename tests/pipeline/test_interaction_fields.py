"""Ratings and gaps of a user's interactions in prompts: training, evaluation, lists, exports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from transformers import AutoTokenizer

from llmrec_cli import Recommender
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.data.histories import read_histories
from llmrec_cli.data.prepared import load_prepared
from llmrec_cli.data.prompts import load_template
from llmrec_cli.models.tokenizer import make_codec
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.serving.exported.rank import Catalogue
from llmrec_cli.training.rows import PromptEncoder, encode_catalogue
from tests.experiments import copied, typed
from tests.pipeline.sample_backbones import RECIPE, TITLES
from tests.pipeline.test_fields import Capsys, told, write_base

Encoded = dict[tuple[int, ...], set[tuple[int, ...]]]
SFT = ("sft", "own.toml")
LOG = """
format = "interactions"
reviews = "./log.csv"
metadata = "./items.csv"
columns = { user = "who", item = "what", timestamp = "when", rating = "stars", title = "name" }
"""
TEMPLATE = """
instruction = "Name one more."
history = "Seen: {history}."
empty = "Nothing yet."
item = '<{title}{rating}{gap}>'
separator = "; "
layout = "{instruction} {history} Next: "

[fields]
rating = " for {rating} stars"
"""
STEPS = (0, 0, 3, 75, 900, 1)  # days since the interaction before


class Bought(NamedTuple):
    """An interaction, as the shop has it."""

    user: str
    item: str
    stars: float | None
    when: datetime


def list_bought() -> Iterator[Bought]:
    """30 users who buy six items each; every fourth interaction is unrated."""
    for user in range(30):
        seconds = 1_400_000_000 + 3_700 * user
        for turn in range(6):
            seconds += 86_400 * STEPS[(user + turn) % 6] + 20
            stars = None if (user + turn) % 4 == 3 else 1 + (user + 3 * turn) % 9 / 2
            item = f"item{(user * 7 + turn * 5) % len(TITLES):02d}"
            yield Bought(f"user{user}", item, stars, datetime.fromtimestamp(seconds, UTC))


def write_log(bought: list[Bought]) -> None:
    lines = [
        f"{b.user},{b.item},{'' if b.stars is None else b.stars},{int(b.when.timestamp())}"
        for b in bought
    ]
    Path("log.csv").write_text("\n".join(["who,what,stars,when", *lines]) + "\n")


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("rated")
    text = RECIPE.replace('template = "items"', 'template = "./mine.toml"')
    text = text.replace('format = "amazon2018"', LOG + 'fields = ["rating", "gap"]')
    text = text.replace('reviews = "./reviews.json"\nmetadata = "./meta.json"\n', "")
    (home / "own.toml").write_text(text)
    (home / "mine.toml").write_text(TEMPLATE)
    named = pd.DataFrame({"what": [f"item{n:02d}" for n in range(len(TITLES))], "name": TITLES})
    named.to_csv(home / "items.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        write_log(list(list_bought()))
        prepare_data(read_recipe("own.toml"), Path)
    return home


@pytest.fixture
def home(made_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made_home, tmp_path, monkeypatch)


def word_gap_by_hand(before: datetime, now: datetime) -> str:
    days = (now.date() - before.date()).days
    if days == 0:
        return "the same day"
    if days <= 60:
        return f"{days} days later" if days > 1 else "1 day later"
    if days <= 730:
        return f"{int(days / (365.25 / 12))} months later"
    return f"{int(days / 365.25)} years later"


def word_by_hand(bought: list[Bought]) -> str:
    """A history in the words of ``TEMPLATE``."""
    titles, shown = {f"item{n:02d}": title.strip() for n, title in enumerate(TITLES)}, []
    for place, one in enumerate(bought):
        title = " ".join(titles[one.item].split())
        stars = "" if one.stars is None else f" for {one.stars:g} stars"
        gap = f" {word_gap_by_hand(bought[place - 1].when, one.when)}" if place else ""
        shown.append(f"<{title}{stars}{gap}>")
    return f"Seen: {'; '.join(shown)}." if shown else "Nothing yet."


def encode_by_hand(tokenizer: Any, told_history: str, *, chat: bool) -> tuple[int, ...] | None:
    """By transformers; None: a title has a special token, which is spelt out."""
    if any(special in told_history for special in tokenizer.get_added_vocab()):
        return None
    turns = [
        {"role": "system", "content": "Name one more."},
        {"role": "user", "content": told_history},
    ]
    if chat:
        return tuple(
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        )
    return tuple(tokenizer(f"Name one more. {told_history} Next: ")["input_ids"])


def expect_prompts(tokenizer: Any, last: range, *, chat: bool) -> Encoded:
    """The prompts before the interactions at some places of each user, by the items they show.

    Users with the same items have different ratings and days, and so different prompts.
    """
    items = pd.read_parquet("runs/own/prepared/items.parquet")
    index = dict(zip(items["item_id"], items["item"], strict=True))
    found: Encoded = {}
    bought = list(list_bought())
    for start in range(0, len(bought), 6):
        for place in last:
            shown = bought[start : start + 6][max(0, place - 4) : place]
            ids = encode_by_hand(tokenizer, word_by_hand(shown), chat=chat)
            key = tuple(index[one.item] for one in shown)
            found.setdefault(key, set()).update([] if ids is None else [ids])
    return {key: prompts for key, prompts in found.items() if prompts}


@pytest.mark.parametrize(
    ("rows", "chat"),
    [
        ("window", False),
        ("user", True),
        pytest.param("window", True, marks=pytest.mark.slow),
        pytest.param("user", False, marks=pytest.mark.slow),
    ],
)
def test_prompts_of_every_command_are_these_words(
    home: Path, capsys: Capsys, encoded: Encoded, chat: bool, rows: str
) -> None:
    tokenizer = write_base(home)
    more = [f"prompt.chat={str(chat).lower()}", f"train.rows={rows}", "train.validate_rows=30"]
    train = expect_prompts(tokenizer, range(1, 4), chat=chat)
    assert sum(map(len, train.values())) > len(train)  # what a user did, and not the items alone

    def check(expected: Encoded) -> None:
        for key, prompts in expected.items():
            assert prompts <= encoded[key]
            assert len(key) == 1 or encoded[key] == prompts  # of one item there are also checks
        encoded.clear()

    told(capsys, *SFT, *more)
    check(expect_prompts(tokenizer, range(1, 5), chat=chat))
    told(capsys, "eval", "own.toml", "--run", "sft", "eval.rows=30", "eval.auc=true", *more)
    check(expect_prompts(tokenizer, range(5, 6), chat=chat))
    told(capsys, "validate", "own.toml", "--rows", *more)
    check(train)
    recommender = Recommender.load("runs/own/sft", device="cpu")
    for user in range(30):
        found = recommender.recommend_to(f"user{user}")
        assert not any("the prompt shows no" in note for note in found.notes)
    check(expect_prompts(tokenizer, range(6, 7), chat=chat))


def test_validate_shows_the_prompt_of_a_long_history_as_text(home: Path, capsys: Capsys) -> None:
    write_base(home)
    said = told(capsys, "validate", "own.toml", "--rows")
    bought = list(list_bought())
    whole = [bought[start : start + 6] for start in range(0, len(bought), 6)]
    expected = {f"<s>Name one more. {word_by_hand(user[:3])} Next:" for user in whole}
    _, _, behind = said.partition("as text, the prompt of a history of 3 items:\n")
    shown = behind.lstrip().splitlines()[0]
    squeezed = {text.replace(" ", "") for text in expected}  # decoding may part special letters
    assert shown.replace(" ", "") in squeezed


def test_of_typed_items_nothing_is_known_and_a_line_says_so(
    home: Path, capsys: Capsys, encoded: Encoded
) -> None:
    tokenizer = write_base(home)
    told(capsys, *SFT)
    items = pd.read_parquet("runs/own/prepared/items.parquet")
    ids = list(items["item_id"][[4, 1, 0]])
    encoded.clear()
    history = [word for name in ids for word in ("--history", name)]
    said = told(capsys, "recommend", "--run", "runs/own/sft", *history)
    note = "the prompt shows no {rating} and {gap}, as it did in training"
    assert said.count(note) == 1
    plain = [Bought("", name, None, datetime.now(UTC)) for name in ids]
    text = word_by_hand(plain).replace(" the same day", "")
    assert encoded[4, 1, 0] == {encode_by_hand(tokenizer, text, chat=False)}
    recommender = Recommender.load("runs/own/sft", device="cpu")
    (note_of_python,) = [n for n in recommender.recommend(ids).notes if "shows no" in n]
    assert note_of_python.startswith(note)
    assert not any("shows no" in n for n in recommender.recommend([]).notes)
    assert note not in told(capsys, "recommend", "--run", "runs/own/sft", "--user", "user3")


def test_what_follows_a_user_depends_on_their_ratings(home: Path, capsys: Capsys) -> None:
    """Two users with the same items: their lists differ, and one typed by ids is a third."""
    write_base(home)
    told(capsys, *SFT)
    recommender = Recommender.load("runs/own/sft", device="cpu")
    one, other = recommender.recommend_to("user0"), recommender.recommend_to("user18")
    assert recommender.history_of("user0") == recommender.history_of("user18")
    scores = [
        {item.item_id: item.score for item in found}
        for found in (one, other, recommender.recommend(recommender.history_of("user0")))
    ]
    assert scores[0] != scores[1]
    assert scores[2] not in scores[:2]


def test_a_baseline_ranks_by_items_alone(home: Path, capsys: Capsys) -> None:
    """Whatever is known of interactions, and without a line about it."""
    write_base(home)
    (home / "own.toml").write_text((home / "own.toml").read_text() + "[baseline.itemknn]\n")
    for model in ("pop", "itemknn"):
        told(capsys, "baseline", "--model", model, "own.toml")
        said = told(capsys, "recommend", "--run", f"runs/own/baseline-{model}", "--user", "user0")
        assert "shows no" not in said
        found = Recommender.load(f"runs/own/baseline-{model}", device="cpu")
        known = found.recommend_to("user0")
        typed_in = found.recommend(found.history_of("user0"))
        assert known.items == typed_in.items
        assert not any("shows no" in note for note in typed_in.notes)
    told(capsys, "eval", "own.toml", "--run", "baseline-itemknn")
    lists = pd.read_parquet("runs/own/baseline-itemknn/predictions.parquet")
    told(capsys, "prepare", "own.toml", "name=plain", "data.fields=[]", "prompt.template=items")
    plain = ("name=plain", "data.fields=[]", "prompt.template=items")
    told(capsys, "baseline", "--model", "itemknn", "own.toml", *plain)
    told(capsys, "eval", "own.toml", "--run", "baseline-itemknn", *plain)
    expected = pd.read_parquet("runs/plain/baseline-itemknn/predictions.parquet")
    pd.testing.assert_frame_equal(lists, expected)


def list_all_prompts() -> dict[str, list[list[int]]]:
    """Of every row that is prepared, by split."""
    prepared = load_prepared(Path("runs/own/prepared"))
    codec = make_codec(AutoTokenizer.from_pretrained("base"))
    catalogue = encode_catalogue(prepared.items, codec)
    template = load_template("./mine.toml", Path)
    encoder = PromptEncoder(template, codec, prepared.items, catalogue, 512)
    return {
        name: [ids.tolist() for ids in encoder.encode(read_histories(prepared.split(name)))]
        for name in prepared.splits
    }


@pytest.mark.parametrize("place", [3, 4, 5])
def test_an_interaction_is_in_no_prompt_before_it_has_happened(home: Path, place: int) -> None:
    """Another rating and a later day of it change the prompts of later targets alone."""
    write_base(home)
    before = list_all_prompts()
    changed = [
        one._replace(stars=3.25, when=one.when.replace(microsecond=0, second=59))
        if at % 6 == place
        else one
        for at, one in enumerate(list_bought())
    ]
    write_log(changed)
    shutil.rmtree("runs")
    prepare_data(read_recipe("own.toml"), Path)
    after = list_all_prompts()
    differ = {
        name: [a != b for a, b in zip(before[name], after[name], strict=True)] for name in after
    }
    behind = {"train": 3, "valid": 4, "test": 5}  # the last target of each split
    for name, last in behind.items():
        assert any(differ[name]) == (last > place), name
        assert all(differ[name]) == (last > place and name != "train"), name


def test_what_is_missing_and_what_no_prompt_shows_is_told(home: Path, capsys: Capsys) -> None:
    write_base(home)
    unrated = [one.stars is None for one in list_bought()]
    users = [unrated[start : start + 6] for start in range(0, len(unrated), 6)]
    lost = {
        "train": sum(sum(user[:place]) for user in users for place in (1, 2, 3)),
        "valid": sum(sum(user[:4]) for user in users),
        "test": sum(sum(user[1:5]) for user in users),
    }
    whole = {"train": 180, "valid": 120, "test": 120}
    counts = ", ".join(f"{name} {n} of {whole[name]}" for name, n in lost.items())
    said = told(capsys, "validate", "own.toml", "--rows")
    assert (
        f"mine.toml: history items without a rating, whose words are left out there: {counts}"
        in said
    )
    assert "shows no" not in said
    manifest = json.loads(Path("runs/own/prepared/manifest.json").read_text())
    rated = {
        name: (found["history items"], found["history items with a rating"])
        for name, found in manifest["splits"].items()
    }
    assert rated == {name: (whole[name], whole[name] - lost[name]) for name in whole}
    assert manifest["data"]["fields"] == ["rating", "gap"]
    assert "items with a field" not in manifest["catalogue"]

    words = TEMPLATE.replace("{rating}{gap}", "").partition("[fields]")[0]
    (home / "mine.toml").write_text(words)
    said = told(capsys, "validate", "own.toml", "--rows")
    assert "mine.toml: its wording shows no {rating} and {gap}, which data.fields keeps" in said
    assert "without a rating" not in said
    more = ("prompt.template=sequence", "model.tuning=full")
    said = told(capsys, "validate", "own.toml", "--rows", *more)
    assert "sequence: its wording shows no {rating} and {gap}, which data.fields keeps" in said


def test_where_all_are_rated_nothing_is_told(home: Path, capsys: Capsys) -> None:
    write_base(home)
    write_log([one._replace(stars=one.stars or 2.0) for one in list_bought()])
    shutil.rmtree("runs")
    said = told(capsys, "prepare", "own.toml")
    assert "history items with a rating (data.fields): train 180 of 180, valid 120 of 120" in said
    assert "without a rating" not in told(capsys, "validate", "own.toml", "--rows")


def test_the_rank_pair_task_shows_titles_alone(home: Path, capsys: Capsys) -> None:
    write_base(home)
    rank = '[rank]\nhistory = "{history}"\nempty = "None"\nquestion = "? {first}, {second}"\n'
    (home / "mine.toml").write_text(TEMPLATE + rank)
    pairs = ("prompt.task=rank-pair", "train.select=loss")
    said = told(capsys, "validate", "own.toml", "--rows", *pairs)
    assert "mine.toml: its wording shows no {rating} and {gap}, which data.fields keeps" in said
    assert "stars" not in said.partition("one training row")[2]


@pytest.mark.parametrize("command", ["prepare", "validate"])
def test_a_field_that_is_not_prepared_is_one_line(home: Path, capsys: Capsys, command: str) -> None:
    write_base(home)
    shutil.rmtree("runs")
    ended = typed(capsys, command, "own.toml", 'data.fields=["rating"]')
    assert ended.code == 2
    (line,) = ended.errors
    assert "mine: its item shows {gap}, which data.fields does not name" in line
    assert 'set data.fields = ["rating", "gap"]' in line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["data.columns.timestamp=false"],
            'fields has "gap": a source with columns.timestamp = false has no times, only an order',
        ),
        (
            ['data.columns={ user="who", item="what", timestamp="when", title="name" }'],
            'fields has "rating": expected the name of its column in columns.rating',
        ),
    ],
)
def test_a_source_without_ratings_or_times_is_one_line(
    home: Path, capsys: Capsys, overrides: list[str], problem: str
) -> None:
    shutil.rmtree("runs")
    ended = typed(capsys, "prepare", "own.toml", *overrides)
    assert (ended.code, Path("runs").exists()) == (2, False)
    assert sum(problem in line for line in ended.errors) == 1, ended.err


def test_other_words_of_a_run_are_refused(home: Path, capsys: Capsys) -> None:
    write_base(home)
    told(capsys, *SFT)
    (home / "mine.toml").write_text(TEMPLATE.replace("stars", "points"))
    ended = typed(capsys, "eval", "own.toml", "--run", "sft")
    assert (ended.code, "trained with wording = " in ended.err) == (2, True), ended.err


def test_folders_without_them_stay_as_they_are(home: Path, capsys: Capsys) -> None:
    write_base(home)
    plain = ("name=plain", "data.fields=[]", "prompt.template=items")
    told(capsys, "prepare", "own.toml", *plain)
    for name in ("train", "valid", "test"):
        rated = pd.read_parquet(f"runs/own/prepared/{name}.parquet")
        columns = ["history_rating", "history_timestamp"]
        assert list(rated.columns[-2:]) == columns
        pd.testing.assert_frame_equal(
            pd.read_parquet(f"runs/plain/prepared/{name}.parquet"), rated.drop(columns=columns)
        )
    text = Path("runs/plain/prepared/manifest.json").read_text()
    assert "history items with a rating" not in text
    assert "fields" not in json.loads(text)["data"]
    ended = typed(capsys, *SFT, "data.fields=[]", "prompt.template=items")
    assert (ended.code, "prepared with data.fields = [" in ended.err) == (2, True), ended.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("chat", [False, True])
def test_an_exported_script_writes_the_prompts_of_items_alone(
    home: Path, capsys: Capsys, encoded: Encoded, chat: bool
) -> None:
    tokenizer = write_base(home)
    told(capsys, *SFT, f"prompt.chat={str(chat).lower()}")
    encoded.clear()
    told(capsys, "export", "--run", "runs/own/sft", "--to", "out", "--base-model", "a/b")
    compared = {key: prompts for key, prompts in encoded.items() if len(key) > 1}
    of_valid = expect_prompts(tokenizer, range(4, 5), chat=chat)
    assert any(key in of_valid for key in compared)
    assert all(compared[key] <= of_valid[key] for key in compared if key in of_valid)
    catalogue = Catalogue.read("out")
    assert catalogue.prompt["unknown"] == ["rating", "gap"]
    of_run = Recommender.load("runs/own/sft", device="cpu").context.encoder
    places = {item["item_id"]: item for item in catalogue.items}
    ids = pd.read_parquet("runs/own/prepared/items.parquet")["item_id"]
    for history in ([], [0], [3, 1, 0]):
        (own,) = of_run.encode([history])
        assert catalogue.prompt_ids(tokenizer, [places[ids[item]] for item in history]) == (
            own.tolist()
        )
    ended = subprocess.run(
        [sys.executable, "out/rank.py", "item00", "-k", "2"], capture_output=True, text=True
    )
    line = "the prompt shows no {rating} and {gap}, as it did in training: only the items are known"
    assert (ended.returncode, ended.stderr.count(line)) == (0, 1), ended.stderr
    card = Path("out/README.md").read_text()
    assert (
        "In training, prompts showed the user's rating and the time since the item before of each "
        "item of a history. rank.py knows items alone, so its prompts leave these out" in card
    )


def test_an_embedded_backbone_learns_the_words(home: Path, capsys: Capsys) -> None:
    sizes = [f"model.scratch.{key}=16" for key in ("hidden", "feed_forward")]
    told(capsys, *SFT, "model.backbone=scratch", "model.tuning=full", *sizes)
    tokenizer = AutoTokenizer.from_pretrained("runs/own/base")
    for words in (" for 4 stars", " months later", " the same day"):
        assert len(tokenizer(words, add_special_tokens=False)["input_ids"]) <= 4, words
