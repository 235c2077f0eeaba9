"""Items with their fields in prompts: the same words in training, evaluation, lists and exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from llmrec_cli import Recommender
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import ArtefactError
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.serving.exported.rank import Catalogue
from llmrec_cli.training.rows import PromptEncoder, Prompts
from tests.experiments import copied, typed
from tests.models.test_chat import CHATS
from tests.pipeline.sample_backbones import (
    ALL,
    RECIPE,
    TITLES,
    byte_level,
    wrapped,
    write_checkpoint,
    write_raw,
)

Capsys = pytest.CaptureFixture[str]
FIELDS = ("brand", "category", "price", "description")
TEMPLATE = """
instruction = "Name one more."
history = "Seen: {history}."
empty = "Nothing yet."
item = '<{title}{brand}{category}{price}{description}>'
separator = "; "
layout = "{instruction} {history} Next: "

[fields]
brand = " of {brand}"
description = " ({description})"
description_tokens = 4
"""
SFT = ("sft", "own.toml")


def describe(number: int) -> dict[str, Any]:
    """What the shop says of an item; every second lacks a price, every third a description."""
    return {
        "brand": f"Maker {number}",
        "category": ["Toys", f"Shelf {number % 5}"],
        "price": "" if number % 2 else f"${number}.50",
        "description": [] if number % 3 == 0 else [f"d{number} ☃☃ and more"],
    }


def write_described(home: Path) -> None:
    """The same shop, whose items have fields."""
    write_raw(home)
    known = [
        {"asin": f"item{n:02d}", "title": title, **describe(n)} for n, title in enumerate(TITLES)
    ]
    (home / "meta.json").write_text("".join(json.dumps(line) + "\n" for line in known))


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("described")
    write_described(home)
    text = RECIPE.replace('template = "items"', 'template = "./mine.toml"')
    text = text.replace("history = 4", f"history = 4\nfields = {list(FIELDS)}")
    (home / "own.toml").write_text(text)
    (home / "mine.toml").write_text(TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        prepare_data(read_recipe("own.toml"), Path)
    return home


@pytest.fixture
def home(made_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made_home, tmp_path, monkeypatch)


def write_base(home: Path) -> Any:
    """A checkpoint with the tokens of a chat; its tokenizer, as transformers opens it."""
    tokenizer = wrapped(byte_level(), "<s>")
    tokenizer.add_special_tokens(CHATS["ChatML"][1])
    write_checkpoint(home / "base", tokenizer, {**ALL, "chat_template": CHATS["ChatML"][0]})
    return AutoTokenizer.from_pretrained(home / "base")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], set[tuple[int, ...]]]:
    """The prompts that any command makes, by history."""
    found: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    plain = PromptEncoder.encode_counted

    def encode_counted(encoder: PromptEncoder, histories: Sequence[Sequence[int]]) -> Prompts:
        prompts = plain(encoder, histories)
        for history, ids in zip(histories, prompts.ids, strict=True):
            found.setdefault(tuple(map(int, history)), set()).add(tuple(ids.tolist()))
        return prompts

    monkeypatch.setattr(PromptEncoder, "encode_counted", encode_counted)
    agreement = "llmrec_cli.pipeline.loading._require_agreement"
    monkeypatch.setattr(agreement, lambda *words, **named: None)
    return found


def cut_by_hand(tokenizer: Any, text: str) -> str:
    """The longest beginning in 4 tokens, by trying them all."""
    for end in range(len(text), 0, -1):
        if len(tokenizer(text[:end], add_special_tokens=False)["input_ids"]) <= 4:
            return text[:end].rstrip()
    raise AssertionError


def word_by_hand(tokenizer: Any, items: pd.DataFrame, history: Sequence[int]) -> str:
    """The history in the words of ``TEMPLATE``, from the shop's own data."""
    shown = []
    for item in history:
        number = int(items["item_id"][item].removeprefix("item"))
        said = describe(number)
        text = f"<{items['title'][item]} of {said['brand']}, {said['category'][-1]}"
        text += f", {said['price']}" if said["price"] else ""
        if said["description"]:
            text += f" ({cut_by_hand(tokenizer, said['description'][0])})"
        shown.append(f"{text}>")
    return f"Seen: {'; '.join(shown)}."


def prompts_by_hand(tokenizer: Any, histories: Any, *, chat: bool) -> Iterator[tuple[Any, Any]]:
    """Each history and its prompt by transformers, where no title has a special token."""
    items = pd.read_parquet("runs/own/prepared/items.parquet")
    specials = tokenizer.get_added_vocab()
    for history in histories:
        told = word_by_hand(tokenizer, items, history) if len(history) else "Nothing yet."
        if any(special in told for special in specials):
            continue
        turns = [
            {"role": "system", "content": "Name one more."},
            {"role": "user", "content": told},
        ]
        ids = (
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            if chat
            else tokenizer(f"Name one more. {told} Next: ")["input_ids"]
        )
        yield tuple(history), tuple(ids)


def told(capsys: Capsys, *words: str) -> str:
    ended = typed(capsys, *words)
    assert ended.code == 0, ended.err
    return ended.out + ended.err


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("rows", ["window", "user"])
def test_prompts_of_every_command_are_these_words(
    home: Path, capsys: Capsys, encoded: Any, chat: bool, rows: str
) -> None:
    tokenizer = write_base(home)
    more = [f"prompt.chat={str(chat).lower()}", f"train.rows={rows}"]
    folder = home / "runs/own/prepared"
    train, test = (pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "test"))

    def check(histories: Any) -> None:
        pairs = list(prompts_by_hand(tokenizer, histories, chat=chat))
        met = [ids for history, ids in pairs if encoded.get(history) == {ids}]
        wrong = [h for h, ids in pairs if encoded.get(h, {ids}) != {ids}]
        assert (wrong, bool(met)) == ([], True)
        encoded.clear()

    told(capsys, *SFT, *more)
    check([*train["history"]])
    told(capsys, "eval", "own.toml", "--run", "sft", *more)
    check([*test["history"]])
    items = pd.read_parquet(folder / "items.parquet")
    recommender = Recommender.load("runs/own/sft", device="cpu")
    recommender.recommend(list(items["item_id"][[3, 1, 0]]))
    check([[3, 1, 0]])
    assert told(capsys, "validate", "own.toml", "--rows", *more)
    check([*train["history"]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("chat", [False, True])
def test_an_exported_script_writes_them_too(home: Path, capsys: Capsys, chat: bool) -> None:
    tokenizer = write_base(home)
    words = TEMPLATE.replace('brand = " of', 'brand = "<|im_end|> of')
    (home / "mine.toml").write_text(words)
    told(capsys, *SFT, f"prompt.chat={str(chat).lower()}")
    told(capsys, "export", "--run", "runs/own/sft", "--to", "out", "--base-model", "a/b")
    catalogue = Catalogue.read("out")
    of_run = Recommender.load("runs/own/sft", device="cpu").context.encoder
    places = {item["item_id"]: item for item in catalogue.items}
    ids = pd.read_parquet("runs/own/prepared/items.parquet")["item_id"]
    for history in ([], [0], [3, 1, 0], [*range(len(ids))][-4:]):
        (own,) = of_run.encode([history])
        assert catalogue.prompt_ids(tokenizer, [places[ids[item]] for item in history]) == (
            own.tolist()
        )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert of_run.encode([[0]])[0].tolist().count(end) == 1 + 2 * chat


def test_what_is_missing_and_cut_is_told(home: Path, capsys: Capsys) -> None:
    write_base(home)
    said = told(capsys, "validate", "own.toml", "--rows")
    assert (
        "mine.toml: items without a field, whose words are left out there: price 9, description 6 "
        "of 18" in said
    )
    assert (
        "mine.toml: 12 of 12 descriptions are cut to 4 tokens (fields.description_tokens)" in said
    )
    assert "shows no" not in said


def test_the_wording_of_a_run_stays(home: Path, capsys: Capsys) -> None:
    write_base(home)
    told(capsys, *SFT)
    (home / "mine.toml").write_text(TEMPLATE.replace("tokens = 4", "tokens = 5"))
    ended = typed(capsys, "eval", "own.toml", "--run", "sft")
    assert (ended.code, "trained with wording = " in ended.err) == (2, True), ended.err
    with pytest.raises(ArtefactError, match="trained with wording = "):
        Recommender.load("runs/own/sft", device="cpu")
    (home / "mine.toml").write_text(TEMPLATE)
    told(capsys, "eval", "own.toml", "--run", "sft")


@pytest.mark.parametrize("chat", [False, True])
def test_the_words_of_a_run_stay_also_without_fields(
    home: Path, capsys: Capsys, chat: bool
) -> None:
    """A recipe has the template's name alone.  What plays no part may change."""
    write_base(home)
    shutil.rmtree("runs")
    words = TEMPLATE.partition("item =")[0]
    (home / "mine.toml").write_text(words)
    choices = ["data.fields=[]", f"prompt.chat={chat}".lower()]
    told(capsys, "prepare", "own.toml", *choices)
    told(capsys, *SFT, *choices)
    layout = 'layout = "{instruction}\\n{history} Next: "\n'
    changes = {
        words.replace("Name one more.", "Name two more."): 2,
        words + layout: 0 if chat else 2,  # a chat has no layout
        f"# my words\n{words}": 0,
    }
    for changed, code in changes.items():
        (home / "mine.toml").write_text(changed)
        ended = typed(capsys, "eval", "own.toml", "--run", "sft", "--again", *choices)
        assert ended.code == code, ended.err
        assert ("trained with wording = " in ended.err) == (code == 2)


@pytest.mark.parametrize("known", [True, False])
def test_a_run_is_resumed_on_the_words_that_it_knows(
    home: Path, capsys: Capsys, known: bool
) -> None:
    """One that an earlier version began knows none."""
    write_base(home)
    told(capsys, *SFT)
    run = Path("runs/own/sft")
    manifest = json.loads((run / "manifest.json").read_text()) | {"status": "running"}
    if not known:
        del manifest["facts"]["wording"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(run / "model")
    (home / "mine.toml").write_text(TEMPLATE.replace("Name one", "Name two"))
    ended = typed(capsys, *SFT, "--resume")
    assert ended.code == (2 if known else 0), ended.err
    assert ("started with wording = " in ended.err) == known


@pytest.mark.parametrize("command", ["prepare", "validate", "sft"])
def test_a_field_that_is_not_prepared_is_one_line(home: Path, capsys: Capsys, command: str) -> None:
    write_base(home)
    if command != "sft":
        shutil.rmtree("runs")
    ended = typed(capsys, command, "own.toml", 'data.fields=["brand"]')
    assert ended.code == 2
    (line,) = ended.errors
    if command == "sft":  # what lies there is another folder
        assert "prepared with data.fields = [" in line
    else:
        assert 'set data.fields = ["brand", "category", "price", "description"]' in line
        assert not Path("runs").exists()
    assert not list(Path(".").glob("runs/own/sft*"))


def test_a_template_that_shows_more_than_was_prepared_is_one_line(
    home: Path, capsys: Capsys
) -> None:
    write_base(home)
    shutil.rmtree("runs")
    whole = TEMPLATE.replace("{category}{price}{description}", "").replace("description", "#")
    (home / "mine.toml").write_text(whole)
    told(capsys, "prepare", "own.toml", "data.fields=brand")
    (home / "mine.toml").write_text(TEMPLATE)
    ended = typed(capsys, *SFT, "data.fields=brand")
    assert ended.code == 2
    (line,) = ended.errors
    assert "mine: its item shows {category} and {price} and {description}, which data.fi" in line
    assert not Path("runs/own/sft").exists()


def test_a_field_that_no_prompt_shows_is_told(home: Path, capsys: Capsys) -> None:
    write_base(home)
    (home / "mine.toml").write_text(TEMPLATE.partition("item =")[0])
    said = told(capsys, "validate", "own.toml", "--rows")
    everything = "{brand} and {category} and {price} and {description}"
    assert f"mine.toml: its wording shows no {everything}, which data.fields keeps" in said
    said = told(
        capsys, "validate", "own.toml", "--rows", "prompt.template=sequence", "model.tuning=full"
    )
    assert f"sequence: its wording shows no {everything}, which data.fields keeps" in said


def test_a_target_changes_nothing_in_its_prompt(home: Path, encoded: Any, capsys: Capsys) -> None:
    """Whatever the shop says of an item, a prompt in whose history it is not stays the same."""
    write_base(home)
    told(capsys, "validate", "own.toml", "--rows")
    before = {history: set(prompts) for history, prompts in encoded.items()}
    encoded.clear()
    rows = pd.read_parquet("runs/own/prepared/train.parquet")
    items = pd.read_parquet("runs/own/prepared/items.parquet")
    target = int(rows["target"].iloc[-1])
    name = items["item_id"][target]
    known = [json.loads(line) for line in Path("meta.json").read_text().splitlines()]
    changed = [
        {**item, **describe(1), "price": "$777.00", "brand": "Other"}
        if item["asin"] == name
        else item
        for item in known
    ]
    Path("meta.json").write_text("".join(json.dumps(line) + "\n" for line in changed))
    bought = [json.loads(line) for line in Path("reviews.json").read_text().splitlines()]
    Path("reviews.json").write_text(
        "".join(json.dumps({**line, "overall": 2.0}) + "\n" for line in bought)
    )
    shutil.rmtree("runs")
    told(capsys, "validate", "own.toml", "--rows")
    assert encoded.keys() == before.keys()
    same = [history for history in before if encoded[history] == before[history]]
    differ = [history for history in before if encoded[history] != before[history]]
    assert all(target not in history for history in same)
    assert all(target in history for history in differ)
    assert any(len(history) > 1 for history in same)
    assert differ


def test_folders_of_earlier_versions_go_on(home: Path, capsys: Capsys) -> None:
    """Without fields nothing new is written: the same bytes, and the same record."""
    write_base(home)
    shutil.rmtree("runs")
    (home / "mine.toml").write_text(TEMPLATE.partition("item =")[0])
    none = "data.fields=[]"
    told(capsys, "prepare", "own.toml", none)
    ended = typed(capsys, *SFT)
    assert (ended.code, "prepared with data.fields = []" in ended.err) == (2, True), ended.err
    manifest = json.loads(Path("runs/own/prepared/manifest.json").read_text())
    assert "fields" not in manifest["data"]
    assert not {"category", "price", "description"} & manifest["data"]["columns"].keys()
    told(capsys, *SFT, none)
    recorded = json.loads(Path("runs/own/sft/manifest.json").read_text())
    assert "fields" not in recorded["settings"]["data"]
    del recorded["facts"]["wording"]  # an earlier version did not record it
    Path("runs/own/sft/manifest.json").write_text(json.dumps(recorded))
    told(capsys, "eval", "own.toml", "--run", "sft", none)
    ended = typed(capsys, "prepare", "own.toml")
    assert ended.code == 2
    assert 'data.fields was null, is now ["brand", "category"' in ended.err


BY_IDS = """
format = "semantic-ids"
reviews = "./inter.json"
index = "./index.json"
metadata = "./names.json"
k_core = 0
"""


def write_ids(home: Path) -> None:
    """The same shop, whose items are known by semantic IDs."""
    names = {f"item{n:02d}": {"title": title, **describe(n)} for n, title in enumerate(TITLES)}
    index = {item: [f"<a_{n // 5}>", f"<b_{n % 5}>"] for n, item in enumerate(names)}
    bought = {
        f"user{user}": [f"item{(user * 7 + time * 5) % len(names):02d}" for time in range(6)]
        for user in range(30)
    }
    for file, content in (("names", names), ("index", index), ("inter", bought)):
        (home / f"{file}.json").write_text(json.dumps(content))
    recipe = (home / "own.toml").read_text()
    lines = recipe.partition("[prompt]")[0].splitlines()
    kept = [line for line in lines if line.startswith(("history", "fields"))]
    (home / "ids.toml").write_text("\n".join(["[data]", *kept, BY_IDS, "[prompt]"]))
    with (home / "ids.toml").open("a") as out:
        out.write(recipe.partition("[prompt]")[2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_fields_stand_behind_semantic_ids(home: Path, capsys: Capsys) -> None:
    write_base(home)
    write_ids(home)
    told(capsys, "prepare", "ids.toml")
    said = told(capsys, "sft", "ids.toml")
    assert "semantic IDs stand bare in histories, as in answers, and fields behind them" in said
    told(capsys, "export", "--run", "runs/ids/sft", "--to", "out", "--base-model", "a/b")
    catalogue = Catalogue.read("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    encoder = Recommender.load("runs/ids/sft", device="cpu").context.encoder
    items = pd.read_parquet("runs/ids/prepared/items.parquet")
    places = {item["item_id"]: item for item in catalogue.items}

    def spell(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def show(item: int) -> list[int]:
        said = describe(item)
        text = f" of {said['brand']}, {said['category'][-1]}"
        text += f", {said['price']}" if said["price"] else ""
        if said["description"]:
            text += f" ({cut_by_hand(tokenizer, said['description'][0])})"
        return [*tokenizer.convert_tokens_to_ids(list(items["tokens"][item])), *spell(text)]

    for history in ([], [0], [3, 1, 0]):
        (own,) = encoder.encode([history])
        told_items = [places[items["item_id"][item]] for item in history]
        assert catalogue.prompt_ids(tokenizer, told_items) == own.tolist()
        if history:
            inside = show(history[0])
            for item in history[1:]:
                inside += [*spell("; "), *show(item)]
            by_hand = [*tokenizer("Name one more. Seen: ")["input_ids"], *inside]
            assert own.tolist() == [*by_hand, *spell(". Next: ")]


@pytest.mark.slow
def test_data_to_evaluate_on_have_fields_of_their_own(home: Path, capsys: Capsys) -> None:
    write_base(home)
    other = (home / "own.toml").read_text().partition("[prompt]")[0].replace("[data]", "")
    other = other.replace("history = 4", "history = 3")
    recipe = (home / "own.toml").read_text()
    (home / "own.toml").write_text(f"{recipe}\n[eval.data]\n{other}")
    ended = typed(capsys, "prepare", "own.toml", 'eval.data.fields=["price"]')
    assert ended.code == 2
    assert 'set eval.data.fields = ["brand", "category", "price", "description"]' in ended.err
    for command in ("prepare", "sft"):
        told(capsys, command, "own.toml")
    said = told(capsys, "eval", "own.toml", "--run", "sft")
    assert said.count("mine.toml: items without a field") == 1


def test_the_rank_pair_task_shows_titles_alone(home: Path, capsys: Capsys) -> None:
    write_base(home)
    rank = '[rank]\nhistory = "{history}"\nempty = "None"\nquestion = "? {first}, {second}"\n'
    (home / "mine.toml").write_text(TEMPLATE + rank)
    pairs = ("prompt.task=rank-pair", "train.select=loss")
    said = told(capsys, "validate", "own.toml", "--rows", *pairs)
    assert "mine.toml: its wording shows no {brand} and {category}" in said
    assert "Maker" not in said
    shutil.rmtree("runs")
    told(capsys, "validate", "own.toml", "--rows", *pairs, "data.fields=[]")


def test_an_embedded_backbone_learns_the_words_of_fields(home: Path, capsys: Capsys) -> None:
    sizes = [f"model.scratch.{key}=16" for key in ("hidden", "feed_forward")]
    told(capsys, *SFT, "model.backbone=scratch", "model.tuning=full", *sizes)
    tokenizer = AutoTokenizer.from_pretrained("runs/own/base")
    assert len(tokenizer(" of Maker 7", add_special_tokens=False)["input_ids"]) <= 4
