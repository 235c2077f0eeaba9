"""Backbones whose architecture computes otherwise here: refused by every command, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmrec_cli.decoding.probe import probe
from llmrec_cli.pipeline import loading
from llmrec_cli.utils.files import HASHES_FILE, hash_file, write_json
from tests.experiments import typed
from tests.pipeline.sample_backbones import ALL, byte_level, write_checkpoint
from tests.pipeline.test_tokenizers import EVAL, SFT, Capsys, done, refused

pytestmark = pytest.mark.slow  # runs of its own

SMALL = {"vocab_size": 448, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA = WIDTHS | {"intermediate_size": 16, "head_dim": 8, "num_key_value_heads": 2}
VALIDATE = ("validate", "own.toml", "--rows")


def write_model(home: Path, name: str, **settings: Any) -> None:
    """A base of that model type, with random weights, beside a tokenizer."""
    write_checkpoint(home / "base", byte_level(), ALL)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**SMALL, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(home / "base")


def probe_of(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "manifest.json").read_text())["probe"]
    return found


@pytest.mark.parametrize(
    ("name", "settings", "commands", "words"),
    [
        (
            "gemma3_text",
            GEMMA | {"final_logit_softcapping": 30.0},
            (SFT, VALIDATE),
            "(final_logit_softcapping = 30.0)",
        ),
        (
            "bloom",
            {"hidden_size": 16, "n_layer": 2, "n_head": 2},
            (VALIDATE, (*SFT, "model.attention=eager")),
            "packed rows: cannot be computed",
        ),
    ],
)
def test_a_backbone_that_computes_otherwise_is_refused_before_training(
    name: str,
    settings: dict[str, Any],
    commands: tuple[tuple[str, ...], ...],
    words: str,
    home: Path,
    capsys: Capsys,
) -> None:
    write_model(home, name, **settings)
    for command in commands:
        line = refused(capsys, *command, "train.rows=user")
        assert f"model type {name!r}" in line
        assert words in line
        assert "choose another backbone" in line


def test_what_was_looked_at_is_not_looked_at_again(
    home: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(home, "llama", **WIDTHS, intermediate_size=16)
    looked: list[str] = []

    def counted(model: Any, key: str, *words: Any) -> Any:
        looked.append(key)
        return probe(model, key, *words)

    monkeypatch.setattr(loading, "probe", counted)
    Path("own.toml").write_text(Path("own.toml").read_text() + '[align.lml]\nparent = "sft"\n')
    done(capsys, *SFT)
    done(capsys, *EVAL)
    done(capsys, "align", "--method", "lml", "own.toml")
    assert len(looked) == 1
    first, second = probe_of("runs/own/sft"), probe_of("runs/own/align-lml")
    assert first == second
    assert first["key"] == looked[0]
    assert first["faults"] == {}
    assert set(first["differences"]) >= {"head", "packed rows", "tree", "cache"}
    done(capsys, *EVAL, "--again", "model.attention=eager")
    assert len(looked) == 2, "another attention is another matter"


def test_a_finished_run_of_an_older_version_is_looked_at_when_it_is_opened(
    home: Path, capsys: Capsys
) -> None:
    """Its weights may have been trained on something else than the model that is loaded."""
    write_model(home, "gemma3_text", **GEMMA)
    done(capsys, *SFT)
    manifest = Path("runs/own/sft/manifest.json")
    kept = {k: v for k, v in json.loads(manifest.read_text()).items() if k != "probe"}
    manifest.write_text(json.dumps(kept))
    config = Path("runs/own/sft/model/config.json")
    capped = json.loads(config.read_text()) | {"final_logit_softcapping": 30.0}
    config.write_text(json.dumps(capped))
    hashes = config.with_name(HASHES_FILE)
    told = json.loads(hashes.read_text()) | {"config.json": hash_file(config)}
    write_json(hashes, told)
    for command in (EVAL, ("recommend", "--run", "runs/own/sft", "--history", "Red kite")):
        ended = typed(capsys, *command)
        assert ended.code == 2, ended.err
        assert "head: the logits are changed after the output head" in ended.err
