"""The page "A pretrained model on a laptop" is followed with the real model and few steps."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from tests.docs.doc_pages import DOCS, blocks, read
from tests.experiments import typed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # peft asks by an old name; nobody sees it
]


def test_the_page_works_with_the_real_model(
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two updates a stage, four test users: the commands, the prompt, and lists that differ."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").symlink_to(smollm2)
    page = list(blocks(read(DOCS / "pretrained.md")))
    (recipe,) = (block.text for block in page if block.language == "toml")
    for key, few in (("max_steps", 2), ("batch", 2), ("rows", 4), ("validate_rows", 2)):
        recipe, changed = re.subn(rf"^{key} = \d+", f"{key} = {few}", recipe, flags=re.MULTILINE)
        assert changed == 1
    (tmp_path / "laptop.toml").write_text(recipe)
    text = "\n".join(block.text for block in page if block.language == "console")
    typed_lines = (shlex.split(line, comments=True) for line in text.splitlines())
    commands = [words[1:] for words in typed_lines if words[:1] == ["llmrec"]]
    assert {words[0] for words in commands} >= {"sample", "validate", "prepare", "sft", "recommend"}
    said = {}
    for words in commands:
        done = typed(capsys, *words)
        assert done.code == 0, (words, done.err)
        said[" ".join(words)] = done.out
    shown = said["validate laptop.toml --rows"]
    prompt = next(line for line in shown.splitlines() if "prompt: " in line)
    tokens = prompt.split()[1:]  # the model's own turns, their special tokens whole
    assert (tokens[0], tokens[1]) == ("<|im_start|>", "system")
    assert tokens[-3:] == ["ass", "istant", "Ċ"]
    assert tokens[-4] == "<|im_start|>"
    runs = tmp_path / "runs" / "laptop"
    lists = {}
    for name in ("base", "sft", "align-msl"):
        report = json.loads((runs / name / "report.json").read_text())
        assert report["rows"] == 4
        frame = pd.read_parquet(runs / name / "predictions.parquet")
        lists[name] = frame["ranked"].map(tuple)
    assert len(set(lists["base"])) > 1  # the model reads its prompt
    assert not lists["base"].equals(lists["sft"])
    assert not lists["sft"].equals(lists["align-msl"])
    for name in ("base", "sft", "align-msl"):
        assert name in said["eval laptop.toml"]
