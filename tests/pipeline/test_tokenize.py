"""Semantic IDs of the embedded sample, with a tiny encoder: made, kept, appended to, refused."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.small import SAMPLE
from llmrec_cli import Recommender
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.index import read_index
from llmrec_cli.data.matching import items_of_user
from llmrec_cli.data.prepared import load_prepared
from llmrec_cli.errors import ArtefactError, DataError, LlmrecError, MissingRunError, RecipeError
from llmrec_cli.models.text_encoder import load_text_encoder, open_text_reader
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.compare import Asked, compare_runs
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.loading import load_sequential
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.run import run
from llmrec_cli.pipeline.tokenize import Tokenized, describe_tokens, tokenize
from llmrec_cli.pipeline.train import sft
from llmrec_cli.pipeline.validate import validate
from llmrec_cli.report.page.gather import gather_page
from llmrec_cli.runs.run import list_runs
from llmrec_cli.serving.recommender import Recommendations
from llmrec_cli.utils.files import hash_file, read_json, write_json
from llmrec_cli.utils.progress import Silent
from tests.experiments import typed

RECIPE = f"""
[data]
format = "amazon2018"
reviews = "{SAMPLE}/Synthetic_Toys.json.gz"
metadata = "{SAMPLE}/meta_Synthetic_Toys.json.gz"
fields = "brand"
history = 5
[tokens]
kind = "semantic-id"
encoder = "./encoder"
text = ["{{title}}", "by {{brand}}"]
codes = 16
[model]
scratch = {{ hidden = 16, layers = 2, heads = 2, feed_forward = 16, vocabulary = 300 }}
[train]
rows = "sequence"
max_steps = 2
batch = 16
validate_rows = 10
learning_rate = 3e-3
[baseline.sasrec]
hidden = 16
layers = 1
train = {{ epochs = 1 }}
[align.msl]
parent = "base"
[eval]
rows = 60
resamples = 100
[launch]
threads = 1
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a recipe, a tiny encoder of random weights, and prepared data."""
    home = tmp_path_factory.mktemp("tokens")
    (home / "ids.toml").write_text(RECIPE)
    tokenizer = train_tokenizer(["Volume 1 of the great toy castle by Brand"], vocabulary=300)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        LlamaForCausalLM(config).save_pretrained(home / "encoder")
    tokenizer.save_pretrained(home / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        prepare_data(read_recipe("ids.toml"), Path)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def control(home: Path) -> None:
    """The prepared data under another name."""
    shutil.copytree("runs/ids", "runs/control")


def load(*overrides: str) -> Recipe:
    return read_recipe("ids.toml", overrides)


def make(*overrides: str, append: bool = False) -> Tokenized:
    return tokenize(load(*overrides), append=append, progress=Silent())


def read_tokens(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((folder / "index.json").read_text())
    return found


def test_the_folder_holds_an_index_in_the_layout_of_lc_rec(home: Path) -> None:
    made = make()
    tokens, items = read_tokens(made.folder), load_prepared(load().prepared_folder).items
    assert list(tokens) == sorted(items["item_id"])
    for one in tokens.values():
        assert [token[:3] for token in one] == ["<a_", "<b_", "<c_", "<d_"]
        assert all(0 <= int(token[3:-1]) < 16 for token in one[:3])
    assert len({tuple(one) for one in tokens.values()}) == len(tokens)
    names = {path.name for path in made.folder.iterdir()}
    assert names == {
        "index.json",
        "codebooks.safetensors",
        "facts.json",
        "report.json",
        "files.json",
    }
    assert list_runs(load().folder) == [], "it is no run"


@pytest.mark.usefixtures("control")
def test_neighbours_share_tokens_more_often_than_by_chance(home: Path) -> None:
    made = make()
    first, second = made.report["quality"]["neighbourhood"]
    assert first["share"] > 1.5 * first["chance"]
    assert second["share"] > 2 * second["chance"]
    (control, _) = make("name=control", "tokens.vectors=random").report["quality"]["neighbourhood"]
    assert control["share"] < 1.3 * control["chance"]


@pytest.mark.usefixtures("control")
def test_the_same_recipe_gives_the_same_bytes_and_a_seed_others(home: Path) -> None:
    first, again = make(), make("name=control")
    for name in ("index.json", "codebooks.safetensors"):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()
    shutil.rmtree(again.folder)
    assert read_tokens(make("name=control", "tokens.seed=1").folder) != read_tokens(first.folder)


@pytest.mark.parametrize("quantizer", ["rq-vae", "fsq"])
def test_every_quantizer_makes_a_folder(home: Path, quantizer: str) -> None:
    quick = ["tokens.epochs=20", "tokens.hidden=[16]", f"tokens.quantizer={quantizer}"]
    further = ["tokens.grid=[4,4]"] if quantizer == "fsq" else ["tokens.latent=8"]
    made = make(*quick, *further)
    assert len(read_tokens(made.folder)) == made.report["quality"]["items"]


def test_what_is_there_is_kept_and_vectors_are_read_again(home: Path) -> None:
    made = make()
    assert not made.reused
    before = (made.folder / "index.json").stat().st_mtime_ns
    assert make("tokens.batch=3").reused
    assert (made.folder / "index.json").stat().st_mtime_ns == before
    shutil.rmtree(made.folder)
    (stored,) = Path("runs/ids/vectors").glob("vectors.*")
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactError, match="damaged"):
        make()


def test_texts_alike_are_told_with_their_count(home: Path) -> None:
    lines = gzip.decompress((SAMPLE / "meta_Synthetic_Toys.json.gz").read_bytes()).splitlines()
    metadata = [json.loads(line) for line in lines]
    first, *others = load_prepared(load().prepared_folder).items["item_id"][:3]
    by_id = {one["asin"]: one for one in metadata}
    for other in others:
        by_id[other]["title"] = by_id[first]["title"]
    Path("alike.json").write_text("\n".join(map(json.dumps, metadata)))
    words = ["name=alike", "data.metadata=alike.json", "tokens.text={title}"]
    prepare_data(load(*words), Path)
    made = make(*words)
    (line,) = (note for note in made.report["notes"] if "text that another item" in note)
    assert line.startswith("3 items have a text that another item has too, such as ")
    assert line in describe_tokens(made)


def test_texts_that_the_encoder_cuts_are_counted(home: Path) -> None:
    (line,) = make("tokens.max_tokens=2").report["notes"][-1:]
    assert line.startswith("311 of 311 texts are longer than the encoder reads")
    shutil.rmtree("runs/ids/tokens")
    assert line in make("tokens.max_tokens=2", "tokens.codes=8").report["notes"]  # vectors kept
    shutil.rmtree("runs/ids/tokens")
    assert not any("longer" in note for note in make().report["notes"])


def test_a_vector_does_not_depend_on_the_texts_beside_it(home: Path) -> None:
    """Padding is masked; the mean is over the text's own tokens, and has length 1."""
    reader = open_text_reader("encoder", None, 64, "tokens.encoder")
    encoder = load_text_encoder("encoder", None, reader, torch.device("cpu"), "tokens.encoder")
    texts = ["Castle", "A much longer text about a castle of many towers", "Kite", "Castle"]
    with Silent().track("texts", 4) as advance:
        together = encoder.embed_texts(texts, 4, advance)
        alone = encoder.embed_texts(texts, 1, advance)
    assert reader.count_cut(texts) == 0
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    assert not torch.allclose(together[0], together[2], atol=1e-3)
    (ids,) = reader.tokenizer(["Kite"])["input_ids"]
    hidden = encoder.model(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(together[2], hidden / hidden.norm())


@pytest.mark.parametrize("rule", ["counter", "nearest", "shared"])
def test_each_rule_for_collisions(home: Path, rule: str) -> None:
    made = make(f"tokens.collisions={rule}", "tokens.levels=2", "tokens.codes=32")
    ids = {tuple(one) for one in read_tokens(made.folder).values()}
    quality = made.report["quality"]
    assert quality["colliding"] > 0
    assert len(ids) == (quality["distinct"] if rule == "shared" else quality["items"])
    assert {len(one) for one in ids} == {3 if rule == "counter" else 2}


def test_the_index_read_as_a_source_gives_the_same_trie(home: Path) -> None:
    make()
    ours = setup.open_context(load(), Silent())
    users = {
        user: [ours.prepared.items["item_id"][item] for item in [*history, target]]
        for user, history, target in ours.prepared.split("test")[
            ["user_id", "history", "target"]
        ].itertuples(index=False)
    }
    listed = {item for items in users.values() for item in items}
    for item in ours.prepared.items["item_id"]:
        if item not in listed:  # every item occurs
            users.setdefault("everything", []).append(item)
    Path("inter.json").write_text(json.dumps(users))
    Path("theirs.toml").write_text(
        """
        [data]
        format = "semantic-ids"
        reviews = "./inter.json"
        index = "./runs/ids/tokens/index.json"
        k_core = 0
        [model]
        scratch = { hidden = 16, layers = 2, heads = 2, feed_forward = 16, vocabulary = 300 }
        """
    )
    recipe = read_recipe("theirs.toml")
    prepare_data(recipe, Path)
    theirs = setup.open_context(recipe, Silent())
    mine, other = ours.trie.tensors(), theirs.trie.tensors()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


# A catalogue that grows.

PART = ("data.k_core=8",)


def grow(*overrides: str) -> tuple[Tokenized, dict[str, list[str]], dict[str, list[str]]]:
    """IDs of a part of the catalogue; the whole is prepared then.  The folder, old and new IDs."""
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(*PART), Path)
    old = read_tokens(make(*PART, *overrides).folder)
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(), Path)
    appended = make(*overrides, append=True)
    return appended, old, read_tokens(appended.folder)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["counter", "nearest", "shared"])
def test_appending_moves_no_old_id(home: Path, rule: str) -> None:
    appended, old, new = grow(f"tokens.collisions={rule}")
    assert set(old) < set(new), "the catalogue has grown"
    assert {name: new[name] for name in old} == old
    assert appended.report["new items"] == len(new) - len(old)
    if rule != "shared":
        assert len({tuple(one) for one in new.values()}) == len(new)
    assert make(f"tokens.collisions={rule}").reused
    assert make(f"tokens.collisions={rule}", append=True).reused


def test_a_catalogue_that_changed_is_refused_until_it_is_appended(home: Path) -> None:
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(*PART), Path)
    make(*PART)
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(), Path)
    for command in (make, lambda: sft(load(), resume=False, progress=Silent())):
        with pytest.raises(ArtefactError, match=r"made for another catalogue .*--append"):
            command()
    assert not Path("runs/ids/sft").exists()


def list_entries(found: Recommendations) -> list[tuple[int, float, set[str]]]:
    """Place, score and items of each entry; which item an entry is named by follows its count."""
    return [(each.rank, each.score, {each.item_id, *each.same_entry}) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["counter", "shared"])
def test_a_trained_model_goes_on_recommending_the_old_items(home: Path, rule: str) -> None:
    """Twice appended: the same lists, items and scores, for users whose history did not change."""
    shutil.rmtree("runs/ids/prepared")
    words = ["data.k_core=8", f"tokens.collisions={rule}"]
    prepare_data(load(*words), Path)
    old = read_tokens(make(*words).folder)
    sft(load(*words), resume=False, progress=Silent())
    histories = [list(old)[at : at + n] for at, n in ((0, 1), (10, 3), (30, 6))] + [[]]
    before = Recommender.load("runs/ids/sft").recommend_many(histories, k=20)
    user = load_prepared(Path("runs/ids/prepared")).split("test")["user_id"].iloc[0]

    for grown in ("data.k_core=6", "data.k_core=5"):
        shutil.rmtree("runs/ids/prepared")
        prepare_data(load(grown), Path)
        make(grown, words[1], append=True)
    new = read_tokens(Path("runs/ids/tokens"))
    assert len(old) < len(new)
    served = Recommender.load("runs/ids/sft")
    after = served.recommend_many(histories, k=20)
    assert list(map(list_entries, after)) == list(map(list_entries, before))
    newer = len(new) - len(old)
    told = f"the catalogue has {newer:,} items that are newer than the run: it knows none"
    assert all(told in one.notes for one in after)
    assert {item.item_id for item in served.recommend([], k=len(old))} <= set(old)

    whole = items_of_user(load_prepared(Path("runs/ids/prepared")), user)
    ids = load_prepared(Path("runs/ids/prepared")).items["item_id"]
    assert served.history_of(user) == [ids[item] for item in whole if ids[item] in old]
    served.recommend_to(user)
    unknown = next(name for name in new if name not in old)
    with pytest.raises(DataError, match="newer than the run"):
        served.recommend([unknown])
    grown_recipe = load("data.k_core=5", words[1])
    advised = r"built with items .*\(name=\.\.\.\): it is the base of sft"
    with pytest.raises(ArtefactError, match=advised):  # the rows are new ones
        evaluate_runs(grown_recipe, ["sft"], split="test", again=False, progress=Silent())


@pytest.mark.slow
def test_a_guide_of_the_old_catalogue_is_refused(home: Path) -> None:
    """A conventional model knows no earlier catalogue, so that a run with a guide has none."""
    shutil.rmtree("runs/ids/prepared")
    guided = ["baseline.itemknn={}", "eval.decode.guide=baseline-itemknn", "eval.decode.weight=1"]
    words = ["data.k_core=8", *guided]
    prepare_data(load(*words), Path)
    make(*words)
    sft(load(*words), resume=False, progress=Silent())
    baseline(load(*words), "itemknn", resume=False, progress=Silent())
    name = "sft+baseline-itemknn"
    evaluate_runs(load(*words), [name], split="test", again=False, progress=Silent())
    Recommender.load(f"runs/ids/{name}").recommend([])
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load("data.k_core=5"), Path)
    make("data.k_core=5", append=True)
    with pytest.raises(ArtefactError, match="baseline-itemknn: started with prepared"):
        Recommender.load(f"runs/ids/{name}")


@pytest.mark.slow
def test_items_that_left_are_no_newer_ones(home: Path) -> None:
    """Appended without new items: what is left of the old ones is served, and nothing is told."""
    words = ["tokens.collisions=shared"]  # a counter's last token may leave with its item
    make(*words)
    sft(load(*words), resume=False, progress=Silent())
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load("data.k_core=6"), Path)
    made = make("data.k_core=6", *words, append=True)
    left = set(load_prepared(Path("runs/ids/prepared")).items["item_id"])
    assert len(left) < len(read_tokens(made.folder))
    found = Recommender.load("runs/ids/sft").recommend([], k=len(left))
    assert {name for item in found for name in (item.item_id, *item.same_entry)} <= left
    assert not [note for note in found.notes if "newer" in note]


def test_an_index_that_was_changed_by_hand_serves_no_earlier_run(home: Path) -> None:
    _, old, new = grow()
    index = read_index(Path("runs/ids/tokens"))
    wanted = index.facts["appended"][0]["index"]
    assert index.find_earlier(wanted) == old
    changed = {name: [*tokens[:-1], "<d_9>"] for name, tokens in new.items()}
    assert replace(index, tokens=changed).find_earlier(wanted) is None
    assert index.find_earlier(hash_file(index.file)) is None  # it is as it is now


def test_an_append_needs_the_same_encoder(home: Path) -> None:
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(*PART), Path)
    before = read_tokens(make(*PART).folder)
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(), Path)
    weights = Path("encoder/model.safetensors")
    save_file({k: v * 2 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(ArtefactError, match="new items need the same one"):
        make(append=True)
    assert read_tokens(Path("runs/ids/tokens")) == before


def test_nothing_to_append_to(home: Path) -> None:
    with pytest.raises(MissingRunError, match="run first: llmrec tokenize RECIPE"):
        make(append=True)


# Bad input: one line, and nothing half-written.


def spoil_encoder() -> None:
    weights = Path("encoder/model.safetensors")
    tensors = {k: v * float("nan") for k, v in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})


REFUSED: dict[str, tuple[list[str], type[LlmrecError], str]] = {
    "no encoder": (
        ["tokens.encoder=./nowhere"],
        ArtefactError,
        "tokens.encoder = './nowhere': no such folder",
    ),
    "fewer items than codes": (
        ["tokens.codes=312"],
        DataError,
        "tokens.codes = 312: the catalogue has 311 items; expected at most",
    ),
    "a baseline that is not trained": (
        ["tokens.vectors=both"],
        MissingRunError,
        "run first: llmrec baseline --model sasrec RECIPE",
    ),
    "titles": (["tokens.kind=title"], RecipeError, "no IDs to make"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(home: Path, what: str) -> None:
    words, kind, line = REFUSED[what]
    with pytest.raises(kind) as caught:
        make(*words)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in Path("runs/ids").iterdir() if path.is_dir()] == ["prepared"]


def test_vectors_of_nan_name_the_encoder_and_leave_nothing(home: Path) -> None:
    spoil_encoder()
    with pytest.raises(DataError, match=r"tokens.encoder = .*311 of 311 items.*NaN"):
        make()
    assert [path.name for path in Path("runs/ids").iterdir() if path.is_dir()] == ["prepared"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tokens.seed=1"], "made with tokens.seed = 0, the recipe has 1"),
        (["tokens.vectors=random"], 'made with tokens.vectors = "text", the recipe has "random"'),
        (["tokens.kind=title"], "the experiment's items have semantic IDs"),
    ],
)
def test_ids_of_other_settings_are_refused(home: Path, words: list[str], line: str) -> None:
    make()
    with pytest.raises(ArtefactError) as caught:
        setup.open_context(load(*words), Silent())
    assert line.replace('"', "'") in str(caught.value)


def test_another_encoder_is_refused_and_a_moved_name_is_not(home: Path) -> None:
    make()
    Path("link").symlink_to("encoder")
    assert make("tokens.encoder=./link").reused
    shutil.copytree("encoder", "other")
    with pytest.raises(ArtefactError, match=r"made with tokens\.encoder"):
        make("tokens.encoder=./other")


def test_an_index_of_another_catalogue_is_refused(home: Path) -> None:
    """Whoever puts another folder there gets a line; a changed file does as well."""
    folder = make().folder
    (folder / "index.json").write_text("{}")
    with pytest.raises(ArtefactError, match="damaged"):
        setup.open_context(load(), Silent())
    files = read_json(folder / "files.json")
    write_json(folder / "index.json", {"B00OTHER": ["<a_1>"]})
    write_json(folder / "files.json", files | {"index.json": hash_file(folder / "index.json")})
    with pytest.raises(DataError, match=r"311 items of the catalogue, such as .* have no ID there"):
        setup.open_context(load(), Silent())


def test_a_later_stage_asks_for_the_ids(home: Path) -> None:
    with pytest.raises(MissingRunError, match="run first: llmrec tokenize RECIPE"):
        sft(load(), resume=False, progress=Silent())
    assert not Path("runs/ids/sft").exists()


def test_validate_tells_the_state_of_the_ids(home: Path) -> None:
    assert "runs/ids/tokens: semantic IDs would be made" in list(validate(load(), rows=False))
    assert any("no semantic IDs yet" in line for line in validate(load(), rows=True))
    make()
    assert "runs/ids/tokens: semantic IDs of 311 items" in list(validate(load(), rows=False))
    lines = list(validate(load(), rows=True))
    assert any("311 distinct token sequences" in line for line in lines)
    assert not any("shows no {brand}" in line for line in lines)  # the IDs are made from it


def test_the_audit_judges_the_ids(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "semantic IDs" not in typed(capsys, "audit", "ids.toml", "-q").out
    quality = make().report["quality"]
    shown = typed(capsys, "audit", "ids.toml", "-q").out
    (line,) = (one for one in shown.splitlines() if "semantic IDs: " in one)
    assert f"{quality['colliding']} of 311 items share their codes" in line
    assert f"by chance in {quality['neighbourhood'][0]['chance']:.1%}" in line
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(*PART), Path)
    (line,) = (one for one in audit_lines(capsys) if "semantic IDs: " in one)
    assert line.startswith("warning: semantic IDs: its IDs were made for another catalogue")


def audit_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return typed(capsys, "audit", "runs/ids", "-q").out.splitlines()


def test_the_command_shows_a_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = typed(capsys, "tokenize", "ids.toml")
    assert ended.code == 0, ended.err
    assert "runs/ids/tokens: written" in ended.out
    assert "level  codes in use  entropy  variance lost" in ended.out
    assert "common beginning  neighbours in histories  by chance  ratio" in ended.out
    again = typed(capsys, "tokenize", "ids.toml", "--json")
    assert json.loads(again.out)["reused"] is True


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.format=semantic-ids", "data.index=x"], "brings IDs of its own; remove [tokens]"),
        (["prompt.task=rank-pair", "prompt.template=items"], 'task "rank-pair" names items by'),
        (["tokens.encoder=backbone"], "the backbone has random weights"),
        (["tokens.text={title:5d}"], "expected a plain placeholder, such as {title}"),
        (["tokens.text={titel}"], "{titel}: unknown placeholder, expected one of title, brand"),
        (["tokens.text=new"], '"new": expected a placeholder, such as {title}'),
        (["tokens.text={price}"], 'expected data.fields = ["brand", "price"]'),
        (["tokens.vectors=both", "tokens.collisions=shared"], 'expected "counter" or "nearest"'),
        (["tokens.vectors=both", "tokens.baseline=pop"], "[baseline.pop] has no item embeddings"),
        (["tokens.vectors=both", "tokens.baseline=x"], "needs a table [baseline.x]"),
        (["tokens.quantizer=kmeans"], "unknown quantizer, expected one of rq-kmeans, fsq, rq-vae"),
        (["tokens.levles=2"], "Did you mean levels?"),
        (["tokens.quantizer=fsq"], "4 x 4 x 4 x 4 = 256, expected codes = 16"),
    ],
)
def test_what_a_recipe_cannot_ask_for(home: Path, words: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(*words)
    assert line in str(caught.value)


def test_keys_that_play_no_part_are_told(home: Path) -> None:
    notes: list[str] = []
    read_recipe("ids.toml", ["tokens.vectors=random", "tokens.baseline=gru4rec"], say=notes.append)
    told = "\n".join(notes)
    assert 'encoder = "' in told
    assert 'vectors = "random" reads no texts' in told
    assert 'vectors = "random" reads no baseline' in told
    notes.clear()
    titles = read_recipe("ids.toml", ["tokens.kind=title"], say=notes.append)
    assert any('kind = "title" makes no IDs' in note for note in notes)
    assert "tokens" not in titles.every_value()


def test_a_sweep_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = typed(capsys, "sweep", "ids.toml", "--grid", "sft.train.learning_rate=1e-3,1e-2")
    assert ended.code == 2
    assert "a sweep makes no IDs for its points" in ended.err


# Whole experiments.


@pytest.mark.slow
def test_a_run_trains_evaluates_and_knows_its_index(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(load(), progress=Silent())
    facts = read_json(Path("runs/ids/sft/manifest.json"))["facts"]
    assert len(facts["index"]) == 64
    report = read_json(Path("runs/ids/align-msl/report.json"))
    assert report["rows"] == 60
    shown = compare_runs(["runs/ids"], Asked())
    (use,) = gather_page(shown.comparison, shown.entries).ids
    index = read_tokens(Path("runs/ids/tokens"))
    for place, items in enumerate(use.levels):
        counts = Counter(tokens[place] for tokens in index.values())
        assert items == tuple(sorted(counts.values(), reverse=True))
    near = read_json(Path("runs/ids/tokens/report.json"))["quality"]["neighbourhood"]
    assert use.neighbourhood == tuple((n["depth"], n["share"], n["chance"]) for n in near)
    assert (use.name, use.codes, len(use.levels)) == ("ids", 16, 4)
    kept = Path("runs/ids/tokens").rename("runs/ids/kept")
    shutil.rmtree("runs/ids/base")
    make("tokens.seed=1")
    compared = typed(capsys, "compare", "runs/ids")
    assert compared.code == 2
    assert "was evaluated with other semantic IDs than" in compared.err
    with pytest.raises(ArtefactError, match=r"tokens\.seed"):
        evaluate_runs(load(), ["sft"], split="test", again=True, progress=Silent())
    words = load("tokens.seed=1")
    with pytest.raises(ArtefactError) as caught:
        evaluate_runs(words, ["sft"], split="valid", again=False, progress=Silent())
    assert f"trained with index = '{facts['index']}'" in str(caught.value)
    assert kept.is_dir()


@pytest.mark.slow
def test_a_baseline_makes_the_vectors_and_is_ranked_among_the_ids(home: Path) -> None:
    words = ["tokens.vectors=both"]
    recipe = load(*words)
    run(recipe, progress=Silent())
    facts = read_json(Path("runs/ids/tokens/facts.json"))
    assert len(facts["baseline"]) == 64
    by_item = load_sequential(setup.open_item_context(recipe, Silent()), "sasrec")
    context = setup.open_context(recipe, Silent())
    by_leaf = load_sequential(context, "sasrec")
    leaves = torch.from_numpy(context.leaf_of_item.astype("int64"))
    assert sorted(leaves.tolist()) == list(range(311))
    assert leaves.tolist() != list(range(311)), "numbers differ, or nothing is shown"
    assert torch.equal(by_leaf.head().weight_VD[leaves], by_item.head().weight_VD)
    assert torch.equal(by_leaf.embedding.weight[-1], by_item.embedding.weight[-1])
    trained = read_json(Path("runs/ids/baseline-sasrec/manifest.json"))["outcome"]["best_score"]
    evaluate_runs(recipe, ["baseline-sasrec"], split="valid", again=False, progress=Silent())
    report = read_json(Path("runs/ids/baseline-sasrec/report-valid.json"))
    assert report["rows"] == 60
    assert trained >= 0


@pytest.mark.slow
def test_collaborative_ids_need_their_baseline_first(home: Path) -> None:
    words = ["tokens.vectors=collaborative"]
    with pytest.raises(MissingRunError, match="llmrec baseline --model sasrec RECIPE"):
        make(*words)
    baseline(load(*words), "sasrec", resume=False, progress=Silent())
    made = make(*words)
    assert len(read_tokens(made.folder)) == 311
    shutil.rmtree("runs/ids/prepared")
    prepare_data(load(*words, *PART), Path)
    with pytest.raises(RecipeError, match="trained on the old catalogue"):
        make(*words, *PART, append=True)


def test_the_backbone_is_an_encoder_too(home: Path) -> None:
    words = ["model.backbone=./encoder", "tokens.encoder=backbone"]
    other = make(*words).folder
    tokens = read_tokens(other)
    shutil.rmtree(other)
    shutil.rmtree("runs/ids/vectors")
    assert read_tokens(make().folder) == tokens
