"""A small experiment, made once: the right run folders that targets make wrong ones of."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline.run import run
from llmrec_cli.training.checkpoint import Checkpoints
from llmrec_cli.utils.progress import Silent
from tests.robustness.fuzz.mutate import Files
from tests.robustness.fuzz.raw_seeds import FORMATS
from tests.robustness.fuzz.target import lay_out

RECIPE = """
[data]
format = "amazon2018"
reviews = "./reviews.jsonl"
metadata = "./meta.jsonl"
k_core = 0
history = 5
[model]
backbone = "scratch"
scratch = { hidden = 8, layers = 1, heads = 2, feed_forward = 8, vocabulary = 300 }
[train]
rows = "sequence"
max_steps = 2
batch = 2
validate_rows = 3
[baseline.itemknn]
[eval]
rows = 5
resamples = 100
"""
EXPERIMENT = "runs/own"


@cache
def experiment() -> Files:
    """Recipe, raw files and everything that ``llmrec run`` leaves, by name."""
    ((raw,),) = [seeds() for name, (_, seeds) in FORMATS.items() if name == "amazon2018"]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, contextlib.chdir(name):
        lay_out({**raw, "own.toml": RECIPE.encode()}, Path(name))
        run(read_recipe("own.toml"), progress=Silent())
        return files_of(Path(name))


@cache
def checkpoints() -> Files:
    """Two checkpoints of a small model."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for step in (1, 2):
            Checkpoints(Path(name)).save(model, optimizer, {"step": step, "best_step": 1})
        return files_of(Path(name))


def below(files: Files, *starts: str) -> Files:
    """The files whose names begin with one of the words."""
    return {name: data for name, data in files.items() if name.startswith(starts)}


def files_of(folder: Path) -> Files:
    """Every file of a folder, by its name below it."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
