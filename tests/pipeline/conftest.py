"""A small experiment whose base each test makes for itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.training.rows import PromptEncoder, Prompts
from tests.experiments import copied
from tests.pipeline.sample_backbones import RECIPE, write_raw


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``own.toml`` and prepared data; no base yet."""
    home = tmp_path_factory.mktemp("prepared")
    write_raw(home)
    (home / "own.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        prepare_data(read_recipe("own.toml"), Path)
    return home


@pytest.fixture
def home(prepared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder."""
    return copied(prepared_home, tmp_path, monkeypatch)


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
