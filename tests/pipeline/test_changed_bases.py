"""Runs whose base, tokenizer or data are no longer those that they were trained with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.train import sft
from llmrec_cli.utils.files import hash_file
from llmrec_cli.utils.progress import Silent
from tests.experiments import copied, typed
from tests.pipeline.sample_backbones import (
    ALL,
    RECIPE,
    TITLES,
    byte_level,
    write_checkpoint,
    write_raw,
)
from tests.pipeline.test_tokenizers import Capsys, done

pytestmark = [  # slow, and what peft has to say
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
ALIGN = '[align.lml]\nparent = "sft"\n'
LORA, FULL = ("name=lora", "model.tuning=lora"), ("name=full",)
OTHER_EOS = {"eos_token": "<s>"}
Change = Callable[[Path], object]  # of the working folder


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished adapter and a finished model on one base."""
    home = tmp_path_factory.mktemp("trained")
    write_raw(home)
    (home / "own.toml").write_text(RECIPE + ALIGN)
    write_checkpoint(home / "base", byte_level(), ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for words in (LORA, FULL):
            recipe = read_recipe("own.toml", words)
            prepare_data(recipe, Path)
            sft(recipe, resume=False, progress=Silent())
    return home


@pytest.fixture
def trained(trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; paths of a recipe lead to the working folder."""
    copy = copied(trained_home, tmp_path, monkeypatch)
    for name in ("recipe.toml", "manifest.json"):
        for file in copy.glob(f"runs/*/sft/{name}"):
            file.write_text(file.read_text().replace(str(trained_home), str(copy)))
    return copy


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def changed(home: Path) -> None:
        file = home / "base/model.safetensors"
        tensors = {name: change(tensor) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})

    return changed


def settings(file: str, **changes: object) -> Change:
    def changed(home: Path) -> None:
        path = home / "base" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return changed


def swap_tokens(home: Path) -> None:
    """The same number of tokens, two of them the other way round."""
    path = home / "base/tokenizer.json"
    known = json.loads(path.read_text())
    vocabulary = known["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(known))


def resize(home: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(home / "base")
    model.resize_token_embeddings(512)
    model.save_pretrained(home / "base")


def another_shape(home: Path) -> None:
    config = json.loads((home / "base/config.json").read_text())
    shutil.rmtree(home / "base")
    write_checkpoint(home / "base", byte_level(), ALL, vocabulary=config["vocab_size"] + 64)


def another_item(home: Path) -> None:
    """What is sold and bought changed; the data were prepared anew."""
    write_raw(home, (*TITLES, "One more"))
    for words in (LORA, FULL):
        recipe = read_recipe("own.toml", words)
        shutil.rmtree(recipe.prepared_folder)
        prepare_data(recipe, Path)


TOKENIZER = {  # what changes, and what both runs say of it
    "two tokens": (swap_tokens, "base_files.tokenizer.json"),
    "special tokens": (
        settings("tokenizer_config.json", **OTHER_EOS),
        "base_files.tokenizer_config.json",
    ),
    "a file more": (
        lambda home: (home / "base/added_tokens.json").write_text("{}"),
        "base_files.added_tokens.json",
    ),
    "the data": (another_item, "prepared"),
}
BELOW = {  # what changes below an adapter, and is not read beside a whole model
    "weights": (weights(lambda tensor: tensor + 0.01), "base_files.model.safetensors"),
    "configuration": (settings("config.json", rms_norm_eps=1e-3), "base_files.config.json"),
    "embedding resized": (resize, "base_files.config.json"),
    "another shape": (another_shape, "base_files.config.json"),
}
EITHER = {**TOKENIZER, **BELOW}
CASES = [(LORA, name) for name in EITHER] + [(FULL, name) for name in TOKENIZER]


def commands(name: str, words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [
        ("eval", "own.toml", "--run", "sft", *words),
        ("align", "--method", "lml", "own.toml", *words),
        ("recommend", "--run", f"runs/{name}/sft", "--history", "item01"),
        ("export", "--run", f"runs/{name}/sft", "--to", "out"),
    ]


def snapshot(home: Path) -> dict[str, str]:
    """Every file but locks, and its hash."""
    files = (p for p in sorted(home.rglob("*")) if p.is_file() and p.suffix != ".lock")
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(("words", "change"), CASES, ids=str)
def test_a_run_on_other_ground_is_refused_with_both_values(
    words: tuple[str, ...], change: str, trained: Path, capsys: Capsys
) -> None:
    make, key = EITHER[change]
    name = words[0].removeprefix("name=")
    facts = json.loads((trained / f"runs/{name}/sft/manifest.json").read_text())["facts"]
    make(trained)
    capsys.readouterr()
    before, group, _, file = snapshot(trained), *key.partition(".")
    recorded = facts[group].get(file) if file else facts[group]
    lies = trained / "base" / file if file else trained / f"runs/{name}/prepared/manifest.json"
    for command in commands(name, words):
        ended = typed(capsys, *command)
        assert (ended.code, ended.out) == (2, ""), ended.err
        *_, line = ended.err.splitlines()  # before it, what was begun
        assert ended.err.count(": error: ") == 1
        assert f"sft: trained with {key} = {recorded!r}, now it is {hash_file(lies)!r}" in line
        assert snapshot(trained) == before


@pytest.mark.parametrize("change", ["weights", "configuration", "embedding resized"])
def test_a_whole_model_needs_no_weights_below_it(
    change: str, trained: Path, capsys: Capsys
) -> None:
    BELOW[change][0](trained)
    for command in commands("full", FULL):
        done(capsys, *command)


@pytest.mark.parametrize("words", [LORA, FULL])
def test_an_untouched_base_and_a_run_of_an_older_version_are_taken(
    words: tuple[str, ...], trained: Path, capsys: Capsys
) -> None:
    name = words[0].removeprefix("name=")
    file = trained / f"runs/{name}/sft/manifest.json"
    manifest = json.loads(file.read_text())
    done(capsys, *commands(name, words)[2])
    del manifest["facts"]["base_files"]
    manifest["facts"]["base"] = "where the base was"
    file.write_text(json.dumps(manifest))
    weights(lambda tensor: tensor + 0.01)(trained)
    for command in commands(name, words):
        done(capsys, *command)


@pytest.mark.parametrize("known", [True, False])
def test_a_run_is_resumed_on_the_base_that_it_knows(
    known: bool, trained: Path, capsys: Capsys
) -> None:
    """One that an older version began knows none."""
    run = trained / "runs/full/sft"
    manifest = json.loads((run / "manifest.json").read_text()) | {"status": "running"}
    if not known:
        del manifest["facts"]["base_files"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(run / "model")
    weights(lambda tensor: tensor + 0.01)(trained)
    ended = typed(capsys, "sft", "own.toml", "--resume", *FULL)
    assert ended.code == (2 if known else 0), ended.err
    assert ("started with base_files.model.safetensors = " in ended.err) == known


def test_pairs_are_not_scored_on_another_base(trained: Path, capsys: Capsys) -> None:
    words = ("name=pairs", *LORA[1:], "prompt.task=rank-pair", "train.select=auc")
    shutil.copytree("runs/lora/prepared", "runs/pairs/prepared")
    done(capsys, "sft", "own.toml", *words)
    weights(lambda tensor: tensor + 0.01)(trained)
    ended = typed(capsys, "eval", "own.toml", "--run", "sft", *words)
    assert ended.code == 2
    assert "sft: trained with base_files.model.safetensors = " in ended.err


def test_a_base_of_the_same_content_elsewhere_is_the_same(trained: Path, capsys: Capsys) -> None:
    shutil.move(trained / "base", trained / "moved")
    done(capsys, *commands("lora", (*LORA, "model.backbone=./moved"))[0])


@pytest.mark.parametrize("run", ["eval", "align", "recommend", "export --merge"])
def test_an_adapter_of_another_shape_is_refused(run: str, trained: Path, capsys: Capsys) -> None:
    """The adapter of a wider run, with its own hashes, in the folder of this one."""
    write_checkpoint(trained / "wide", byte_level(), ALL, hidden=32)
    wide = (*LORA[1:], "name=wide", "model.backbone=./wide")
    shutil.copytree("runs/lora/prepared", "runs/wide/prepared")
    done(capsys, "sft", "own.toml", *wide)
    shutil.rmtree("runs/lora/sft/adapter")
    shutil.copytree("runs/wide/sft/adapter", "runs/lora/sft/adapter")
    before = snapshot(trained)
    (command,) = (c for c in commands("lora", LORA) if c[0] == run.split()[0])
    ended = typed(capsys, *command, *run.split()[1:])
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert "size mismatch" in ended.err
    assert "torch.Size([8, 32])" in ended.err
    assert "torch.Size([8, 16])" in ended.err
    assert ended.err.count(": error: ") == 1
    assert snapshot(trained) == before


def on_hub(home: Path, cache: Path, commit: str) -> None:
    """The base as the hub's own client keeps it, at its newest commit."""
    repository = cache / "models--acme--tiny"
    shutil.copytree(home / "base", repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs/main").write_text(commit)


@pytest.mark.filterwarnings("ignore:Unable to fetch remote file:UserWarning")  # peft, offline
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_of_a_hub_id_the_commit_is_compared(
    trained: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, old, new = trained / "cache", 40 * "a", 40 * "b"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    on_hub(trained, cache, old)
    words = (*LORA[1:], "name=hub", "model.backbone=acme/tiny")
    shutil.copytree("runs/lora/prepared", "runs/hub/prepared")
    done(capsys, "sft", "own.toml", *words)
    on_hub(trained, cache, new)
    for command in commands("hub", words):
        ended = typed(capsys, *command)
        assert (ended.code, ended.out) == (2, ""), ended.err
        assert f"trained with base_files.commit = {old!r}, now it is {new!r}" in ended.err
        assert f'set model.revision = "{old}"' in ended.err
    done(capsys, *commands("hub", words)[0], f"model.revision={old}")


def without_head(home: Path) -> None:
    file = home / "base/model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


WEIGHTS = {  # what is wrong with them, and what is said
    "another size": (
        settings("config.json", vocab_size=512),
        "lm_head.weight has shape (448, 16), by config.json it should have (512, 16)",
    ),
    "one is missing": (without_head, "its weights have no lm_head.weight, which config.json needs"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_would_be_drawn_at_random_are_refused(
    name: str, trained: Path, capsys: Capsys
) -> None:
    change, expected = WEIGHTS[name]
    change(trained)
    shutil.copytree("runs/full/prepared", "runs/again/prepared")
    ended = typed(capsys, "sft", "own.toml", "name=again")
    (line,) = ended.err.splitlines()
    assert ended.code == 2
    assert expected in line
    assert not Path("runs/again/sft").exists()
