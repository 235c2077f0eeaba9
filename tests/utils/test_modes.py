"""Whoever shares a group's folders reads what llmrec writes: files and folders follow the umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmrec_cli.serving.card import Wanted
from llmrec_cli.serving.export import export
from llmrec_cli.utils.files import write_folder, write_safetensors
from llmrec_cli.utils.progress import Silent
from tests.experiments import run_experiment


@pytest.fixture(params=[0o022, 0o002], ids=["022", "002"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask of this process during a test."""
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    """Files and folders whose mode is not what open and mkdir give."""
    wanted = {path: 0o777 if path.is_dir() else 0o666 for path in (folder, *folder.rglob("*"))}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in wanted}
    return {str(p): oct(modes[p]) for p in wanted if modes[p] != wanted[p] & ~umask}


@pytest.mark.slow
def test_a_finished_experiment_and_its_export_follow_the_umask(umask: int, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    folder = run_experiment(tmp_path / "home", "shared", "eval.rows=10")
    export(folder / "sft", tmp_path / "home/out", Wanted(), progress=Silent())
    names = {path.name for path in (tmp_path / "home").rglob("*")}
    written = {"prepared", "base", "checkpoints", "model.safetensors", "report.json", "report.html"}
    assert {*written, "optimizer.safetensors", "rank.py", "sft", "align-msl"} <= names
    assert wrong_modes(tmp_path / "home", umask) == {}


def test_a_folder_follows_the_umask_whatever_fills_it(umask: int, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        write_safetensors(folder / "weights.safetensors", {"a": torch.zeros(2)})
        (folder / "private").mkdir(mode=0o700)
        (folder / "private/key").touch(mode=0o600)
        (folder / "open").touch()
        (folder / "open").chmod(0o666)

    write_folder(tmp_path / "made", fill)
    assert wrong_modes(tmp_path / "made", umask) == {}
