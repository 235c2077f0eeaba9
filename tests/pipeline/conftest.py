"""A small experiment whose base each test makes for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline.prepare import prepare_data
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
