"""Pretrained models, in the hub's layout: text prompts, LoRA, semantic IDs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmrec_cli import Recommender
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.prompts import Template
from llmrec_cli.errors import ArtefactError, DataError, RecipeError
from llmrec_cli.models.base import ScoredBy
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.run import run
from llmrec_cli.pipeline.train import sft
from llmrec_cli.training import checkpoint
from llmrec_cli.training.rows import PromptEncoder, Prompts
from llmrec_cli.utils.progress import Lines, Silent
from tests.commands import SMALL, llmrec, ok
from tests.experiments import require_joined_lists


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained model in the hub's layout, whose generation_config samples."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    tokenizer = train_tokenizer(["The user has bought these items before"], vocabulary=400)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    model.generation_config.do_sample = True
    model.generation_config.top_k = 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
@pytest.mark.slow
def test_a_pretrained_model_with_a_text_prompt(
    hub_folder: Path, tmp_path: Path, tuning: str
) -> None:
    words = [
        *SMALL,
        "data.sample.train=100",
        "data.sample.test=15",
        "train.validate_rows=5",
        f"model.backbone={hub_folder}",
        f"model.tuning={tuning}",
        "prompt.template=items",
        "train.rows=window",
        "align.msl.parent=sft",
        "align.msl.tau=ats",
        "train.epochs=1",
    ]
    ok(llmrec(tmp_path, "prepare", "quickstart", *words))
    ok(llmrec(tmp_path, "sft", "quickstart", *words))
    for method in ("msl", "dmpo", "grpo", "sprec"):
        ok(llmrec(tmp_path, "align", "--method", method, "quickstart", *words))
    runs = ["--run", "sft", *(f"--run=align-{name}" for name in ("msl", "dmpo", "grpo", "sprec"))]
    shown = ok(llmrec(tmp_path, "eval", "quickstart", *runs, *words))
    assert "align-msl" in shown
    run = tmp_path / "runs/quickstart/align-msl"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["facts"]["parent"] == "sft"
    logged = (tmp_path / "runs/quickstart/align-grpo/metrics.jsonl").read_text().splitlines()
    first = json.loads(logged[0])
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # also with an adapter on the parent's
    assert first["reward_std"] > 0
    assert manifest["outcome"]["method"]["tau"] == pytest.approx(1.5, abs=1)
    ok(llmrec(tmp_path, "baseline", "--model", "itemknn", "quickstart", *words))
    guided = "sft+baseline-itemknn"
    guide = ["eval.decode.guide=baseline-itemknn", "eval.decode.weight=0.5"]
    shown = ok(llmrec(tmp_path, "eval", "quickstart", "--run", guided, *words, *guide))
    assert guided in shown
    require_joined_lists(tmp_path / "runs/quickstart" / guided, ScoredBy.SIMILARITY)
    if tuning == "lora":
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
        assert not (run / "model").exists()
    else:
        AutoModelForCausalLM.from_pretrained(run / "model")
        AutoTokenizer.from_pretrained(run / "model")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
@pytest.mark.slow
def test_semantic_ids_on_a_pretrained_model_train_and_save_their_tokens(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {str(i): [f"<a_{i % 5}>", f"<b_{i // 5}>"] for i in range(30)}
    users = {str(u): [(u * 7 + t * 3) % 30 for t in range(8)] for u in range(60)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "inter.json").write_text(json.dumps(users))
    recipe = tmp_path / "ids.toml"
    recipe.write_text(
        f"""
        [data]
        format = "semantic-ids"
        reviews = "./inter.json"
        index = "./index.json"
        k_core = 0
        [model]
        backbone = "{hub_folder}"
        tuning = "lora"
        [train]
        rows = "sequence"
        epochs = 1
        batch = 16
        [align.msl]
        [eval]
        resamples = 100
        """
    )
    shown = ok(llmrec(tmp_path, "run", "ids.toml"))
    assert "align-msl" in shown
    from safetensors import safe_open

    with safe_open(tmp_path / "runs/ids/sft/adapter/adapter_model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.endswith("tokens_delta")]
        assert len(names) == 2, "new rows of embedding and head"
        assert all(file.get_slice(name).get_shape()[0] == 11 for name in names)

    monkeypatch.chdir(tmp_path)
    context = setup.open_context(read_recipe("ids.toml"), Silent())
    drawn = []
    for _ in range(2):
        torch.rand(1)  # whatever was drawn before must not matter
        drawn.append(checkpoint.trained_weights(load_policy(context, None, train=True)))
    assert drawn[0].keys() == drawn[1].keys()
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


INDEX = {str(i): [f"<a_{i % 5}>", f"<b_{i // 5}>"] for i in range(30)}
TEXT_OVER_IDS = """
[data]
format = "semantic-ids"
reviews = "./inter.json"
index = "./index.json"
k_core = 0
history = 3
min_history = 3
sample = { train = 60, valid = 5, test = 20 }
[prompt]
template = "instruments"
[train]
max_steps = 3
batch = 8
learning_rate = 1e-2
validate_rows = 5
[baseline.sasrec]
hidden = 16
train = { max_steps = 1 }
[align.msl]
parent = "base"
[align.ilrec]
parent = "base"
n = 1
[eval]
resamples = 100
"""


def write_ids(folder: Path) -> None:
    users = {str(u): [(u * 7 + t * 3) % 30 for t in range(8)] for u in range(40)}
    (folder / "index.json").write_text(json.dumps(INDEX))
    (folder / "inter.json").write_text(json.dumps(users))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize(("tuning", "rows"), [("lora", "window"), ("full", "user")])
def test_a_text_prompt_over_semantic_ids_tells_users_apart(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str, rows: str
) -> None:
    """As in ILRec's host LC-Rec: histories of as many items give prompts and lists of their own."""
    write_ids(tmp_path)
    (tmp_path / "ids.toml").write_text(TEXT_OVER_IDS)
    monkeypatch.chdir(tmp_path)
    words = [f"model.backbone={hub_folder}", f"model.tuning={tuning}", f"train.rows={rows}"]
    recipe = read_recipe("ids.toml", words)
    run(recipe, progress=Silent())
    for name in ("sft", "align-msl", "align-ilrec"):
        found = pd.read_parquet((recipe.folder / name) / "predictions.parquet")
        assert {len(history) for history in found["history"]} == {3}
        scores = {tuple(scores) for scores in found["scores"]}
        assert len(scores) == len({tuple(history) for history in found["history"]}) > 10
        assert len({tuple(ranked) for ranked in found["ranked"]}) > 1

    opened = Recommender.load(recipe.folder / "align-ilrec")
    items = opened.context.prepared.items
    row = found.iloc[4]
    history = [items["item_id"].iloc[item] for item in row["history"]]
    again = opened.recommend(history, 10, exclude_history=False)
    ranked = [items["item_id"].iloc[item] for item in row["ranked"][:10]]
    assert [item.item_id for item in again] == ranked
    (prompt,) = opened.context.encoder.encode([row["history"].tolist()])
    told = "".join(opened.context.codec.tokenizer.convert_ids_to_tokens(prompt))
    listed = ",\u0120".join("".join(INDEX[item]) for item in history)
    assert f"before:\u0120{listed}\u010a\u010a###" in told


def test_a_run_whose_histories_were_empty_is_not_ranked_with_full_ones(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions rendered semantic IDs as nothing; their manifests do not say otherwise."""
    write_ids(tmp_path)
    (tmp_path / "ids.toml").write_text(TEXT_OVER_IDS)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("ids.toml", [f"model.backbone={hub_folder}", "train.max_steps=1"])
    prepare_data(recipe, Path)
    sft(recipe, resume=False, progress=Silent())
    path = (recipe.folder / "sft") / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["facts"].pop("history") == "semantic IDs"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="trained with history = None, now it is 'semantic IDs"):
        evaluate_runs(recipe, ["sft"], split="test", again=False, progress=Silent())


@pytest.mark.parametrize("titled", [False, True])
def test_a_base_of_our_own_spells_the_words_around_semantic_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, titled: bool
) -> None:
    write_ids(tmp_path)
    (tmp_path / "ids.toml").write_text(TEXT_OVER_IDS)
    titles = {item: f"Fiddle {item}" for item in INDEX}
    (tmp_path / "meta.json").write_text(json.dumps(titles))
    monkeypatch.chdir(tmp_path)
    words = ["model.scratch.hidden=16", 'data.metadata=["./meta.json"]' if titled else "seed=0"]
    recipe = read_recipe("ids.toml", words)
    assert prepare_data(recipe, Path).items["title"].notna().any() == titled
    context = setup.open_context(recipe, Silent())
    vocabulary = context.codec.tokenizer.get_vocab()
    assert {"\u0120musical", "\u0120Response"} <= set(vocabulary), "words, and not letters"
    assert not any("iddle" in token for token in vocabulary), "no prompt has a title"
    prompts = context.encoder.encode([[0, 1, 2], [2, 1, 0]])
    assert prompts[0].tolist() != prompts[1].tolist()
    assert len(prompts[0]) == len(prompts[1]) < 120


def test_a_base_for_empty_histories_is_not_built_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ids(tmp_path)
    (tmp_path / "ids.toml").write_text(TEXT_OVER_IDS)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("ids.toml", ["model.scratch.hidden=16"])
    prepare_data(recipe, Path)
    with monkeypatch.context() as older:
        older.setattr(setup, "history_fact", lambda recipe: {})
        setup.open_context(recipe, Silent())
    advised = r"built with history = None, .* now has semantic IDs; .* or delete it"
    with pytest.raises(ArtefactError, match=advised):
        setup.open_context(recipe, Silent())


def test_the_wording_of_titles_is_said_not_to_be_that_of_ids(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ids(tmp_path)
    (tmp_path / "ids.toml").write_text(TEXT_OVER_IDS)
    wording = 'instruction = "Go on."\nhistory = "Seen: {history}."\nempty = "Nothing seen."\n'
    (tmp_path / "plain.toml").write_text(wording)
    (tmp_path / "mine.toml").write_text(wording + 'item = "<{title}>"\n')
    monkeypatch.chdir(tmp_path)
    said: dict[str, list[str]] = {}
    for name in ("plain", "mine"):
        heard = Lines(io.StringIO())
        words = [f"model.backbone={hub_folder}", f"prompt.template={name}.toml", f"name={name}"]
        recipe = read_recipe("ids.toml", words)
        prepare_data(recipe, Path)
        setup.open_context(recipe, heard)
        assert isinstance(heard.stream, io.StringIO)
        said[name] = heard.stream.getvalue().splitlines()
    assert said["plain"] == []
    assert said["mine"] == [
        "mine.toml: its item = '<{title}>' is the wording of a title; semantic IDs stand bare in "
        "histories, as in answers"
    ]


def test_a_template_that_is_none_is_refused_when_data_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ids(tmp_path)
    (tmp_path / "ids.toml").write_text(TEXT_OVER_IDS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="Did you mean instruments"):
        prepare_data(read_recipe("ids.toml", ["prompt.template=instrument"]), Path)


def test_prepare_and_every_stage_refuse_prompts_that_lose_items(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rendering that forgets is put in place of ours: of titles, and of semantic IDs."""
    write_ids(tmp_path)
    (tmp_path / "ids.toml").write_text(TEXT_OVER_IDS)
    monkeypatch.chdir(tmp_path)
    pairs = [(str(user), f"I{(user + place) % 9}") for user in range(9) for place in range(6)]
    lines = [{"user_id": user, "item_id": item, "timestamp": 1_600_000_000} for user, item in pairs]
    titles = [{"item_id": f"I{item}", "title": f"Fiddle {item}"} for item in range(9)]
    for name, rows in (("lines", lines), ("titles", titles)):
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model.backbone={hub_folder}"]
    titled = read_recipe(
        "ids.toml",
        [
            *words,
            'data={format="interactions", reviews="lines.json", metadata="titles.json", '
            'k_core=0, columns={title="title"}}',
            "name=titled",
        ],
    )
    by_ids = read_recipe("ids.toml", words)
    for recipe in (titled, by_ids):
        prepare_data(recipe, Path)
        setup.open_context(recipe, Silent())

    def forget(template: Template, titles: list[str]) -> str:
        return template.head + template.tail

    monkeypatch.setattr(Template, "render", forget)
    for refuse in (lambda: prepare_data(titled, Path), lambda: opened(titled)):
        with pytest.raises(DataError, match=r"item 'I0' \(title 'Fiddle 0'\) does not show it"):
            refuse()

    whole = PromptEncoder.encode_counted

    def drop_item(encoder: PromptEncoder, histories: list[list[int]]) -> Prompts:
        kept = [[item for item in history if item != 3] for history in histories]
        return Prompts(whole(encoder, kept).ids, whole(encoder, histories).left_out_N)

    monkeypatch.setattr(PromptEncoder, "encode_counted", drop_item)
    with pytest.raises(DataError, match=r'template = "instruments": .* lacks it: expected the 2'):
        opened(by_ids)


def opened(recipe: Recipe) -> None:
    setup.open_context(recipe, Silent())
