"""Runs whose prompts are chats: what is trained on, what is told, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llmrec_cli.models.language_model import Policy
from tests.experiments import typed
from tests.models.test_chat import CHATS
from tests.pipeline.sample_backbones import ALL, byte_level, wrapped, write_checkpoint

Capsys = pytest.CaptureFixture[str]
CHAT = "prompt.chat=true"
SFT = ("sft", "own.toml")


def write_chat(folder: Path, chat: str | None) -> None:
    """A checkpoint whose tokenizer adds BOS, with a chat template."""
    tokenizer: Tokenizer = wrapped(byte_level(), "<s>")
    tokenizer.add_special_tokens(CHATS[chat or "ChatML"][1])
    write_checkpoint(folder, tokenizer, {**ALL, "chat_template": chat and CHATS[chat][0]})


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every row that a policy is given to train on."""
    rows: list[list[int]] = []
    plain = Policy.forward
    agreement = "llmrec_cli.pipeline.loading._require_agreement"
    monkeypatch.setattr(agreement, lambda *words, **named: None)

    def forward(policy: Policy, input_ids_BT: torch.Tensor, *words: Any, **named: Any) -> Any:
        rows.extend(input_ids_BT.tolist())
        return plain(policy, input_ids_BT, *words, **named)

    monkeypatch.setattr(Policy, "forward", forward)
    return rows


def told(capsys: Capsys, *words: str) -> str:
    ended = typed(capsys, *words)
    assert ended.code == 0, ended.err
    return ended.out + ended.err


def own_prompts(home: Path) -> list[list[int]]:
    """By transformers, of every training row with letters alone in its titles."""
    tokenizer = AutoTokenizer.from_pretrained(home / "base")
    titles = pd.read_parquet(home / "runs/own/prepared/items.parquet")["title"]
    rows = pd.read_parquet(home / "runs/own/prepared/train.parquet")
    system = "Given a list of items the user has bought before, please recommend a new item that "
    found = []
    for history in rows["history"]:
        listed = ", ".join(f'"{titles[item]}"' for item in history)
        turns = [
            {"role": "system", "content": system + "the user likes to the user."},
            {
                "role": "user",
                "content": f"The user has bought the following items before: {listed}",
            },
        ]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        if not any(special in listed for special in tokenizer.get_added_vocab()):
            found.append(ids)
    return found


@pytest.mark.parametrize("rows", ["window", "user"])
@pytest.mark.parametrize("chat", ["ChatML", "Llama 3"])
def test_rows_begin_with_what_transformers_makes(
    home: Path, capsys: Capsys, fed: list[list[int]], chat: str, rows: str
) -> None:
    write_chat(home / "base", chat)
    told(capsys, *SFT, CHAT, f"train.rows={rows}", "train.batch=256")
    starts = {tuple(row[: len(ids)]) for ids in own_prompts(home) for row in fed}
    prompts = [ids for ids in own_prompts(home) if tuple(ids) in starts]
    assert len(prompts) >= len(own_prompts(home)) // (1 if rows == "window" else 8)
    assert prompts


def test_eval_ranks_with_chats_too(home: Path, capsys: Capsys) -> None:
    write_chat(home / "base", "ChatML")
    told(capsys, *SFT, CHAT)
    told(capsys, "eval", "own.toml", "--run", "sft", CHAT)
    assert Path("runs/own/sft/report.json").is_file()
    recorded = json.loads(Path("runs/own/sft/manifest.json").read_text())
    assert recorded["settings"]["prompt"]["chat"] is True
    ended = typed(capsys, "sft", "own.toml", "--resume")
    assert ended.code == 2
    assert "started with prompt.chat = True, now False" in ended.err


def test_runs_of_versions_without_chats_go_on(home: Path, capsys: Capsys) -> None:
    write_chat(home / "base", "ChatML")
    told(capsys, *SFT)
    file = Path("runs/own/sft/manifest.json")
    recorded = json.loads(file.read_text())
    del recorded["settings"]["prompt"]["chat"]
    file.write_text(json.dumps(recorded))
    told(capsys, *SFT, "--resume")
    told(capsys, "eval", "own.toml", "--run", "sft")
    ended = typed(capsys, *SFT, "--resume", CHAT)
    assert (ended.code, "started with prompt.chat = False, now True" in ended.err) == (2, True)


def test_a_run_stands_on_its_chat_template(home: Path, capsys: Capsys) -> None:
    write_chat(home / "base", None)
    file = home / "base/chat_template.jinja"
    file.write_text(CHATS["ChatML"][0])
    told(capsys, *SFT, CHAT)
    evaluate = ("eval", "own.toml", "--run", "sft")
    file.write_text(CHATS["ChatML"][0].replace("helpful", "terse"))
    for words, said in (
        ((CHAT,), "trained with chat_template = "),
        ((), "prompt.chat = True, now"),
    ):
        ended = typed(capsys, *evaluate, *words)
        assert (ended.code, said in ended.err) == (2, True)
    file.write_text(CHATS["ChatML"][0])
    told(capsys, *evaluate, CHAT)


@pytest.mark.parametrize("chat", CHATS)
def test_a_missing_system_turn_is_told_once(home: Path, capsys: Capsys, chat: str) -> None:
    write_chat(home / "base", chat)
    said = told(capsys, *SFT, CHAT)
    assert said.count("its chat template has no system turn") == (not CHATS[chat][2])
    assert "plays no part" not in said
    validated = told(capsys, "validate", "own.toml", "--rows", CHAT)
    assert validated.count("its chat template has no system turn") == (not CHATS[chat][2])


def test_a_tokenizer_without_chat_template_is_one_line(home: Path, capsys: Capsys) -> None:
    write_chat(home / "base", None)
    ended = typed(capsys, *SFT, CHAT)
    assert ended.code == 2
    (line,) = ended.errors
    assert "prompt.chat = true: the tokenizer of model.backbone" in line
    assert "has no chat template" in line
    assert not list(Path("runs/own").glob("sft*"))
    told(capsys, *SFT)


def test_a_token_that_is_none_and_a_layout_without_part_are_told(
    home: Path, capsys: Capsys
) -> None:
    write_chat(home / "base", "ChatML")
    Path("mine.toml").write_text(
        'instruction = "Go on."\nhistory = "Seen: {history}"\nempty = "None."\n'
        'layout = "<|im_start|>{instruction} {history}<|eot_id|>"\n'
    )
    said = told(capsys, *SFT, "prompt.template=./mine.toml")
    assert "mine.toml: its wording has <|eot_id|>: no token of this tokenizer" in said
    assert "<|im_start|>" not in said
    shutil.rmtree("runs/own/sft")
    said = told(capsys, "validate", "own.toml", "--rows", "prompt.template=./mine.toml", CHAT)
    assert "mine.toml: its layout plays no part, because prompt.chat = true" in said
    assert "no token of this tokenizer" not in said
