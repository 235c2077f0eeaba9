"""Plans and children for the tests of sweeps; no training happens here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmrec_cli.sweep.plan import SweepPlan, make_plan
from tests import experiments


def plan_in(
    home: Path, *grid: str, section: str = "", overrides: tuple[str, ...] = (), **asked: object
) -> SweepPlan:
    """A plan over the tiny recipe of ``experiments``, which lies in ``home``."""
    recipe = home / "tiny.toml"
    recipe.write_text(experiments.RECIPE + section)
    words = [f"out={home / 'runs'}", "name=tiny", *overrides]
    return make_plan(str(recipe), words, asked, grid, "study")


def playing(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command that a sweep starts be a Python script; its words are ``sys.argv[3:]``."""
    program = folder / "llmrec-played"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    monkeypatch.setattr("llmrec_cli.sweep.trial.sys.executable", str(program))
