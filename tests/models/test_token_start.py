"""Rows of new tokens start from the titles of the items that have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.loading import fit_vocabulary, start_from_text
from llmrec_cli.models.tokenizer import add_item_tokens, train_tokenizer
from llmrec_cli.pipeline import train
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.setup import CatalogueContext, describe_token_start, open_context
from llmrec_cli.pipeline.validate import validate
from llmrec_cli.runs.record import describe_other_settings, find_token_start, require_same_settings
from llmrec_cli.runs.run import run_at, sft_run
from llmrec_cli.training.checkpoint import write_result
from llmrec_cli.utils.files import read_json, write_json
from llmrec_cli.utils.progress import Silent
from tests.models.sample_adapters import PEFT_SAYS, RECIPE, on_base, write_base

pytestmark = [pytest.mark.filterwarnings(words) for words in PEFT_SAYS]
MEAN, TEXT = "model.new_tokens=mean", "model.new_tokens=text"
FULL, LORA = "model.tuning=full", "model.tuning=lora"
BASES = ("tied", "untied")
UNTITLED, ALONE = "7", "<c_9>"  # an item without a title, and a token that only this item has
TITLES = {
    str(item): f"{colour} {'very ' * (item % 4)}{thing}"
    for item, (colour, thing) in enumerate(
        (colour, thing) for colour in ("red", "blue", "old") for thing in ("kite", "boat", "b", "t")
    )
    if str(item) != UNTITLED
}
INDEX = {str(i): [f"<a_{i % 4}>", f"<b_{i // 4}>", f"<c_{i % 2}>"] for i in range(12)}
INDEX[UNTITLED][2] = ALONE
INDEX["3"] = ["<a_3>", "<b_0>", "<a_3>"]  # a token twice: the item counts once


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with bases, and users who bought twelve items, eleven with titles."""
    home = tmp_path_factory.mktemp("start")
    for base in BASES:
        write_base(home / base)
    users = {str(u): [(u * 5 + t * 7) % 12 for t in range(6)] for u in range(20)}
    (home / "inter.json").write_text(json.dumps(users))
    (home / "index.json").write_text(json.dumps(INDEX))
    (home / "meta.json").write_text(json.dumps(TITLES))
    data = 'format = "semantic-ids"\nreviews = "./inter.json"\nindex = "./index.json"\n'
    data += 'metadata = "./meta.json"'
    for base in BASES:
        text = RECIPE.format(data=data, base=base, targets='["q_proj"]')
        (home / f"{base}.toml").write_text(text + "[launch]\nthreads = 1\n")
    return home


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def read(base: str, *words: str, name: str = "ids") -> Recipe:
    """A recipe whose data are prepared."""
    recipe = read_recipe(f"{base}.toml", [f"name={base}-{name}", *words])
    if not recipe.prepared_folder.exists():
        prepare_data(recipe, Path)
    return recipe


def load(base: str, *words: str) -> tuple[CatalogueContext, Any]:
    context = open_context(read(base, *words), Silent())
    return context, load_policy(context, None, train=True)


def weights_of(model: Any) -> tuple[Tensor, Tensor]:
    """Embedding and head, with the rows that an adapter trains."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    return ends[0].weight.detach().clone(), ends[1].weight.detach().clone()


def average_by_hand(weight_VD: Tensor, base: str) -> dict[str, NDArray[np.float64]]:
    """Row of each new token, item by item and token by token, from the files alone."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = weight_VD.double().numpy()
    rows: dict[str, NDArray[np.float64]] = {}
    for token in {token for tokens in INDEX.values() for token in tokens}:
        total, items = np.zeros(plain.shape[1]), 0
        for item, tokens in INDEX.items():
            if token in tokens and item in TITLES:
                words = tokenizer(TITLES[item], add_special_tokens=False)["input_ids"]
                one = np.zeros(plain.shape[1])
                for word in words:
                    one += plain[word]
                total, items = total + one / len(words), items + 1
        if items:
            rows[token] = total / items
    return rows


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("tuning", [FULL, LORA])
@pytest.mark.usefixtures("home")
def test_rows_are_the_mean_over_items_of_their_titles_rows(base: str, tuning: str) -> None:
    context, model = load(base, tuning)
    plain = weights_of(AutoModelForCausalLM.from_pretrained(base))
    number_of = context.codec.tokenizer.get_vocab()
    for weight_VD, old_VD in zip(weights_of(model), plain, strict=True):
        assert torch.equal(weight_VD[: len(old_VD)], old_VD)
        rows = average_by_hand(old_VD, base)
        assert rows.keys() == {t for tokens in INDEX.values() for t in tokens} - {ALONE}
        for token, row in rows.items():
            found = weight_VD[number_of[token]].double().numpy()
            np.testing.assert_allclose(found, row, rtol=1e-6, atol=1e-8)
        new_TD = weight_VD[len(old_VD) :]
        assert len(new_TD.unique(dim=0)) == len(new_TD), "each token has a row of its own"
    embedding, head = weights_of(model)
    assert torch.equal(embedding, head) == (base == "tied")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("tuning", [FULL, LORA])
@pytest.mark.usefixtures("home")
def test_the_control_is_what_it_was_and_differs_in_the_new_rows_alone(
    base: str, tuning: str
) -> None:
    context, model = load(base, tuning, MEAN)
    seed, plain = context.recipe.seed, AutoModelForCausalLM.from_pretrained(base)
    before = plain.get_input_embeddings().num_embeddings
    torch.manual_seed(seed)
    plain.resize_token_embeddings(len(context.codec.tokenizer), mean_resizing=True)
    for ours, theirs in zip(weights_of(model), weights_of(plain), strict=True):
        assert torch.equal(ours, theirs)
    load(base, tuning, MEAN)
    after = torch.get_rng_state()
    _, other = load(base, tuning)
    assert torch.equal(torch.get_rng_state(), after), "the same is drawn from here on"
    alone = context.codec.tokenizer.get_vocab()[ALONE]
    for ours, theirs in zip(weights_of(model), weights_of(other), strict=True):
        same = (ours == theirs).all(dim=1)
        expected = torch.arange(len(same)) < before
        expected[alone] = True  # no item with a title has it
        assert torch.equal(same, expected)
    adapters = [
        {name: weight for name, weight in one.named_parameters() if "lora_" in name}
        for one in (model, other)
    ]
    assert bool(adapters[0]) == (tuning == LORA)
    assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.usefixtures("home")
def test_an_adapter_brings_its_rows_whatever_the_base_starts_from(
    base: str, tmp_path: Path
) -> None:
    """To llmrec, to whoever loads it as its card says, and when it is merged."""
    context, model = load(base, LORA)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    write_result(tmp_path / "adapter", model, context.codec.tokenizer)
    control = open_context(read(base, LORA, MEAN), Silent())
    ids_BT = torch.arange(len(context.codec.tokenizer) - 1, 0, -3)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids_BT).logits
        for one in (context, control):
            loaded = load_policy(one, run_at(tmp_path), train=False)
            assert torch.equal(loaded(input_ids=ids_BT).logits, expected)
        plain = on_base(Path(base), tmp_path / "adapter")
        for other in (plain, plain.merge_and_unload()):
            found = other.eval()(input_ids=ids_BT).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("home")
def test_a_backbone_that_learnt_the_tokens_keeps_their_rows() -> None:
    """An export is a backbone of its own: nothing of what it learnt is overwritten."""
    context, model = load("tied", FULL)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    write_result(Path("learnt"), model, context.codec.tokenizer)
    context, again = load("tied", FULL, "model.backbone=./learnt")
    assert torch.equal(weights_of(again)[0], weights_of(model)[0])
    assert describe_token_start(context, "text") is None


@pytest.mark.usefixtures("home")
def test_tokens_that_a_tokenizer_has_and_its_model_does_not_are_new() -> None:
    tokenizer = AutoTokenizer.from_pretrained("tied")
    tokenizer.add_tokens(sorted({t for tokens in INDEX.values() for t in tokens}))
    AutoModelForCausalLM.from_pretrained("tied").save_pretrained("without")
    tokenizer.save_pretrained("without")
    context, model = load("tied", FULL, "model.backbone=./without")
    assert torch.equal(weights_of(model)[0], weights_of(load("tied", FULL)[1])[0])
    assert "rows of 9 new tokens" in (describe_token_start(context, "text") or "")


@pytest.mark.usefixtures("home")
def test_new_tokens_in_spare_rows_start_from_titles_too() -> None:
    """Of an embedding with more rows than its tokenizer has tokens, none is drawn."""
    tokenizer = AutoTokenizer.from_pretrained("tied")
    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 64, num_attention_heads=2, tie_word_embeddings=True, **size
    )
    LlamaForCausalLM(config).save_pretrained("spare")
    tokenizer.save_pretrained("spare")
    context, model = load("tied", FULL, "model.backbone=./spare")
    old_VD, _ = weights_of(AutoModelForCausalLM.from_pretrained("spare"))
    weight_VD, _ = weights_of(model)
    assert weight_VD.shape == old_VD.shape
    for token, row in average_by_hand(old_VD, "spare").items():
        found = weight_VD[context.codec.tokenizer.get_vocab()[token]].double().numpy()
        np.testing.assert_allclose(found, row, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("home")
def test_rows_are_the_same_to_the_bit_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So they are in all processes of a group."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            _, model = load("untied", FULL, f"launch.threads={threads}")
            assert torch.get_num_threads() == threads
            found.append(weights_of(model))
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr("llmrec_cli.models.loading._TITLES_AT_ONCE", 2)
    found.append(weights_of(load("untied", FULL)[1]))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert torch.equal(ours, theirs)


def test_weights_that_another_process_sends_are_left_alone() -> None:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_attention_heads=2, **size))
    start_from_text(model, [[1, 2]], [[19]])


def test_no_titles_and_empty_ones_leave_the_rows_alone() -> None:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_attention_heads=2, **size))
    fit_vocabulary(model, range(23))
    before = weights_of(model)
    start_from_text(model, [], [])
    start_from_text(model, [[], [1]], [[21], []])
    assert all(map(torch.equal, weights_of(model), before))


# Runs that were begun before there was a choice.


class Stopped(Exception):
    """In place of training."""


def begin(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends where its model would be loaded."""

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(train, "load_policy", stop)
        with pytest.raises(Stopped):
            train.sft(recipe, resume=False, progress=Silent())


def forget_start(recipe: Recipe) -> None:
    """The manifest as an earlier version wrote it."""
    file = sft_run(recipe).manifest_file
    manifest = read_json(file)
    del manifest["settings"]["model"]["new_tokens"]
    write_json(file, manifest)


@pytest.mark.usefixtures("home")
def test_a_run_of_an_earlier_version_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {}
    for name, words in {"begun-mean": [MEAN], "begun-text": [TEXT]}.items():
        recipe = read("tied", FULL, *words, name=name)
        train.sft(recipe, resume=False, progress=Silent())
        trained[name] = load_file(sft_run(recipe).result_folder(recipe) / "model.safetensors")
    recipe = read("tied", FULL, name="begun-earlier")
    begin(recipe, monkeypatch)
    forget_start(recipe)
    run = sft_run(recipe)
    chosen = read("tied", FULL, TEXT, name="begun-earlier")
    with pytest.raises(ArtefactError, match=r"model\.new_tokens = 'mean', now 'text'"):
        train.sft(chosen, resume=True, progress=Silent())
    train.sft(recipe, resume=True, progress=Silent())
    found = load_file(run.result_folder(recipe) / "model.safetensors")
    assert all(torch.equal(weight, found[key]) for key, weight in trained["begun-mean"].items())
    assert any(not torch.equal(w, found[key]) for key, w in trained["begun-text"].items())
    require_same_settings(recipe, run)
    require_same_settings(read("tied", FULL, MEAN, name="begun-earlier"), run)
    assert describe_other_settings(recipe, run) is None
    assert "new_tokens = 'mean', the recipe now has 'text'" in (
        describe_other_settings(chosen, run) or ""
    )
    evaluate_runs(recipe, ["sft"], split="test", again=False, progress=Silent())


@pytest.mark.usefixtures("home")
def test_a_run_of_this_version_records_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read("tied", FULL, name="recorded")
    begin(recipe, monkeypatch)
    run = sft_run(recipe)
    assert run.read_manifest()["settings"]["model"]["new_tokens"] == "text"
    assert find_token_start(recipe, run) == "text"
    require_same_settings(recipe, run)
    require_same_settings(read_recipe(str(run.recipe_file), whole=True), run)
    control = read("tied", FULL, MEAN, name="recorded")
    with pytest.raises(ArtefactError, match=r"new_tokens = 'text', now 'mean'"):
        require_same_settings(control, run)


@pytest.mark.usefixtures("home")
def test_a_run_does_not_record_what_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    words = FULL, "data.metadata=[]"
    recipe = read("tied", *words, TEXT, name="untitled")
    begin(recipe, monkeypatch)
    run = sft_run(recipe)
    assert "new_tokens" not in run.read_manifest()["settings"]["model"]
    for other in ((), (MEAN,)):
        require_same_settings(read("tied", *words, *other, name="untitled"), run)


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ((), "text"),
        ((TEXT,), "text"),
        ((MEAN,), "mean"),
        (("data.metadata=[]", TEXT), None),
        (("model.weights=random", FULL, TEXT), None),
        (("model.backbone=scratch", FULL, TEXT), None),
    ],
)
def test_what_has_a_start_to_choose(words: tuple[str, ...], start: str | None, home: Path) -> None:
    assert read_recipe("tied.toml", words).token_start == start


@pytest.mark.usefixtures("home")
def test_validate_says_what_new_tokens_start_from() -> None:
    lines = {words: list(validate(read("tied", *words), rows=True)) for words in ((), (MEAN,))}
    assert (
        f"rows of 9 new tokens start from the titles of the items that have them; 1 more, such as "
        f"{ALONE}, have no item with a title, and start near the mean of all rows"
    ) in lines[()]
    assert "rows of 10 new tokens start near the mean of all rows" in lines[(MEAN,)]


def test_resizing_says_nothing_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """transformers tells how it drew the rows, which is not what they start from."""
    said_once = type(transformers_logging.get_logger("transformers")).warning_once
    said_once.cache_clear()  # a thing is said once in a process
    tokenizer = train_tokenizer(["a b c"], vocabulary=300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    add_item_tokens(tokenizer, ["<a_1>", "<b_2>"])
    assert len(fit_vocabulary(LlamaForCausalLM(config), tokenizer)) == 2
    assert not caplog.records
