"""Backbones that do not fit tokenizer, catalogue or recipe, and settings that play no part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.setup import ContextLimits
from llmrec_cli.utils.progress import Silent
from tests.experiments import typed
from tests.pipeline.plain_lists import Plain
from tests.pipeline.sample_backbones import ALL, EOS, byte_level, write_checkpoint
from tests.pipeline.test_tokenizers import EVAL, SFT, Capsys, done, refused

TEMPLATE, LONGEST = 233, 36  # tokens of the wording without a history, and of the longest item


def write_gpt2(home: Path, positions: int, *, tied: bool = True) -> Plain:
    """A GPT-2, whose positions are learned: there is nothing behind the last one."""
    write_checkpoint(home / "base", byte_level(), ALL)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=448,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=positions,
        tie_word_embeddings=tied,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(home / "base")
    return Plain(home, ALL, longest=min(512, positions - LONGEST))


@pytest.mark.parametrize("rows", [400, 399, 300])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_an_embedding_smaller_than_the_vocabulary_is_refused(
    rows: int, tuning: str, home: Path, capsys: Capsys
) -> None:
    said = {"eos_token": "<another>"} if rows == 400 else EOS  # one token more than was trained
    write_checkpoint(home / "base", byte_level(), said, vocabulary=rows)
    line = refused(capsys, *SFT, f"model.tuning={tuning}")
    size = 401 if rows == 400 else 400
    assert f"its tokenizer has {size} tokens (such as" in line
    assert f"its embedding {rows} rows" in line


@pytest.mark.slow
@pytest.mark.parametrize("positions", [1024, 275, 300])
def test_learned_positions_give_the_true_lists_and_cut_the_history(
    positions: int, home: Path, capsys: Capsys
) -> None:
    plain = write_gpt2(home, positions)
    done(capsys, *SFT)
    done(capsys, *EVAL)
    whole = Plain(home, ALL)
    lengths = [(len(plain.prompt(h)), len(whole.prompt(h))) for h, _ in plain.rows("test")]
    assert any(cut < uncut for cut, uncut in lengths) == (positions < 1024)
    assert max(map(len, plain.answers)) == LONGEST
    plain.check_lists()


@pytest.mark.parametrize(
    ("positions", "template", "expected"),
    [
        (
            TEMPLATE + LONGEST - 1,
            "items",
            f"268 positions of the backbone less {LONGEST} for the longest item = 232: the "
            f"template alone takes {TEMPLATE} tokens",
        ),
        (
            LONGEST,
            "sequence",
            "item 'item17' ('A title of quite some words, which none of the small toke...') takes "
            f"{LONGEST} tokens in this tokenizer, the backbone has {LONGEST} positions",
        ),
    ],
)
def test_what_leaves_no_room_is_named(
    positions: int, template: str, expected: str, home: Path, capsys: Capsys
) -> None:
    write_gpt2(home, positions)
    assert expected in refused(capsys, *SFT, f"prompt.template={template}")


@pytest.mark.parametrize("positions", [1024, 80, 60])
def test_a_pass_of_many_targets_ends_where_the_positions_end(
    positions: int, home: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gpt2(home, positions)
    words = ("prompt.template=sequence", "train.rows=sequence")
    context = setup.open_context(read_recipe("own.toml", words), Silent())
    frame = context.prepared.split("train")
    rows = setup.build_training_rows(context, "sequence")
    targets = [(row.user, target) for row in rows for target in row.targets]
    assert targets == list(zip(frame["user"], frame["target"], strict=True))
    lengths = [
        len(row.prompt) + sum(len(context.catalogue[target]) for target in row.targets)
        for row in rows
    ]
    assert max(lengths) <= positions
    assert (len(rows) == frame["user"].nunique()) == (positions == 1024)
    done(capsys, *SFT, *words)


def test_without_asking_for_room_a_model_runs_out_of_positions(
    home: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    write_gpt2(home, 250)
    monkeypatch.setattr(
        setup, "find_context_limits", lambda *known: ContextLimits(known[-1], "anything")
    )
    ended = typed(capsys, *SFT)
    assert ended.code == 1
    assert "IndexError" in ended.err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
@pytest.mark.parametrize("targets", ['["c_attn"]', '["all-linear"]'])
def test_an_adapter_of_a_gpt2_is_trained_saved_and_read(
    targets: str, home: Path, capsys: Capsys
) -> None:
    write_gpt2(home, 1024)
    words = ("model.tuning=lora", f"model.lora.targets={targets}")
    done(capsys, *SFT, *words)
    done(capsys, *EVAL, *words)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_of_semantic_ids_get_rows_whatever_the_embedding_is_called(
    tied: bool, home: Path, capsys: Capsys
) -> None:
    write_gpt2(home, 1024, tied=tied)
    index = {str(i): [f"<a_{i % 25}>", f"<b_{i // 5}>"] for i in range(50)}
    users = {str(u): [(u * 7 + t * 3) % 50 for t in range(8)] for u in range(30)}
    (home / "index.json").write_text(json.dumps(index))
    (home / "inter.json").write_text(json.dumps(users))
    words = (
        "name=ids",
        'data.format="semantic-ids"',
        "data.reviews=./inter.json",
        "data.metadata=[]",
        "data.index=./index.json",
        "prompt.template=sequence",
        "model.tuning=lora",
        'model.lora.targets=["c_attn"]',
    )
    for command in (("prepare", "own.toml"), SFT, EVAL):
        done(capsys, *command, *words)
    settings = json.loads(Path("runs/ids/sft/adapter/adapter_config.json").read_text())
    assert set(settings["trainable_token_indices"]) == ({"wte"} if tied else {"wte", "lm_head"})


def test_targets_that_the_backbone_does_not_have_are_named(home: Path, capsys: Capsys) -> None:
    write_gpt2(home, 1024)
    line = refused(capsys, *SFT, "model.tuning=lora")
    assert "model.lora.targets = q_proj, v_proj: the backbone has no such module" in line
    assert '"all-linear", or some of c_attn, c_fc, c_proj' in line


GENERATION: dict[str, dict[str, Any]] = {
    "samples": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 3},
    "temperature without sampling": {"temperature": 0.6, "top_p": 0.9},
    "forces and forbids": {
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [1, 2, 40, 50],
        "begin_suppress_tokens": [5],
        "bad_words_ids": [[6]],
        "forced_bos_token_id": 7,
        "forced_eos_token_id": 9,
        "num_beams": 3,
        "length_penalty": 2.0,
        "max_length": 5,
        "min_length": 4,
        "eos_token_id": [8, 9],
        "pad_token_id": 11,
    },
}


def results(home: Path) -> dict[str, bytes]:
    run = home / "runs/own/sft"
    return {name: (run / name).read_bytes() for name in ("predictions.parquet", MODEL)}


MODEL = "model/model.safetensors"


@pytest.fixture(scope="module")
def without(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of a base whose generation_config says nothing."""
    import shutil

    from llmrec_cli.pipeline.evaluate import evaluate_runs
    from llmrec_cli.pipeline.train import sft

    copy = tmp_path_factory.mktemp("plain") / "home"
    shutil.copytree(prepared_home, copy)
    write_checkpoint(copy / "base", byte_level(), ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        recipe = read_recipe("own.toml")
        sft(recipe, resume=False, progress=Silent())
        evaluate_runs(recipe, ["sft"], split="test", again=False, progress=Silent())
    return results(copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATION)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_generation_settings_of_a_base_change_no_byte(
    name: str, file: str, home: Path, without: dict[str, bytes], capsys: Capsys
) -> None:
    write_checkpoint(home / "base", byte_level(), ALL)
    path = home / "base" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | GENERATION[name]))
    done(capsys, *SFT)
    done(capsys, *EVAL)
    assert results(home) == without


def test_generation_settings_would_change_what_generate_gives(home: Path) -> None:
    """The control: transformers itself obeys them."""
    write_checkpoint(home / "base", byte_level(), ALL)
    prompt, given = torch.tensor([[30, 31, 32]]), []
    for settings in ({}, {"repetition_penalty": 9.0, "suppress_tokens": [*range(40, 400)]}):
        path = home / "base/generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        model = AutoModelForCausalLM.from_pretrained(home / "base")
        given.append(model.generate(prompt, max_new_tokens=4, eos_token_id=0, pad_token_id=0))
    assert not torch.equal(*given)
