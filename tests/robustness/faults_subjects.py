"""What a run writes, one kind after the other, for ``tests.robustness.faults``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmrec_cli.config.model import ScratchModel
from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.loading import build_scratch
from llmrec_cli.runs.record import finish_run
from llmrec_cli.runs.run import run_at
from llmrec_cli.runs.tracking import MetricsLog
from llmrec_cli.training.checkpoint import Checkpoints, all_of, write_result
from llmrec_cli.training.dataset import Sampler
from llmrec_cli.training.negatives import Miner
from llmrec_cli.training.reference import ReferenceStore
from llmrec_cli.training.rows import Row
from llmrec_cli.utils.files import MANIFEST_FILE, check_folder, read_json, write_json


@dataclass(frozen=True)
class Subject:
    """One kind of writing; each function gets a folder that is its own.

    Args:
        before: makes what is there before.
        write: writes; done again, it gives the same.
        intact: whether everything that can be seen is valid, as before or as written.
        written: whether what was to be written is there.
    """

    name: str
    before: Callable[[Path], None]
    write: Callable[[Path], None]
    intact: Callable[[Path], bool]
    written: Callable[[Path], bool]


@cache
def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and an optimizer with moments; no backward pass, which would start threads."""
    model = nn.Linear(20, 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


@cache
def _result() -> tuple[Any, Any]:
    """A model (12 kB) and a tokenizer (6 kB)."""
    section = ScratchModel(hidden=8, layers=1, heads=2, feed_forward=8, vocabulary=300, tied=True)
    return build_scratch(section, ["a list of words"], [], seed=0)


def _save(root: Path, *steps: int) -> None:
    for step in steps:
        Checkpoints(root).save(*_trained(), {"step": step})


def _valid(root: Path) -> set[int]:
    """The checkpoints, all of which must be whole: half of one never bears the name of one."""
    for folder in all_of(root):
        check_folder(folder)
    return {int(folder.name.removeprefix("step-")) for folder in all_of(root)}


def _newest(root: Path) -> int:
    found = Checkpoints(root, writes=False).newest()
    return int(found.state["step"]) if found else 0


def _whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except ArtefactError:
        return False
    return True


def _manifest(folder: Path) -> Any:
    return read_json(folder / MANIFEST_FILE)


def _steps(folder: Path) -> list[int]:
    return [row["step"] for row in MetricsLog(folder / "metrics.jsonl").rows()]


def _log(folder: Path, *steps: int) -> None:
    log = MetricsLog(folder / "metrics.jsonl")
    log.keep_until(steps[0] - 1)
    for step in steps:
        log.append({"step": step, "loss": 1 / step})
    log.sync()


def _store(folder: Path) -> ReferenceStore:
    return ReferenceStore(folder / "reference-0-of-1", {"base": "x"})


def _reference(folder: Path) -> None:
    row = Row(np.arange(9, dtype=np.int32), (1,), negatives=((2, 3),), reference=np.ones(3))
    _store(folder).save([[row]] * 40)


def _mine(folder: Path) -> None:
    row = Row(np.arange(9, dtype=np.int32), (1,))
    miner = Miner(
        lambda asked: [[[5, 6, 7]] for _ in asked],
        [row],
        Sampler(1, 1, shuffle=False),
        steps=1,
        refresh=2,
        folder=folder / "negatives",
    )
    miner.find_lists([row], 0)


def _mined(folder: Path) -> Path:
    return folder / "negatives" / "step-0"


SUBJECTS = [
    Subject(
        "checkpoint",
        before=lambda folder: _save(folder, 1),
        write=lambda folder: _save(folder, 2),
        intact=lambda folder: _valid(folder) >= {1},
        written=lambda folder: _newest(folder) == 2,
    ),
    Subject(
        "prune",
        before=lambda folder: _save(folder, 1, 2, 3, 4, 5),
        write=lambda folder: Checkpoints(folder).prune(keep=2, best_step=2),
        intact=lambda folder: _valid(folder) >= {2, 4, 5},
        written=lambda folder: _valid(folder) == {2, 4, 5},
    ),
    Subject(
        "result",
        before=lambda folder: write_result(folder / "model", *_result()),
        write=lambda folder: write_result(folder / "model", *_result()),
        intact=lambda folder: not (folder / "model").exists() or _whole(folder / "model"),
        written=lambda folder: _whole(folder / "model"),
    ),
    Subject(
        "manifest",
        before=lambda folder: write_json(folder / "manifest.json", {"status": "running"}),
        write=lambda folder: finish_run(run_at(folder), {"steps": 3}, {}),
        intact=lambda folder: _manifest(folder)["status"] in ("running", "done"),
        written=lambda folder: bool(_manifest(folder)["outcome"] == {"steps": 3}),
    ),
    Subject(
        "metrics",
        before=lambda folder: _log(folder, 1, 2),
        write=lambda folder: _log(folder, 3, 4),
        intact=lambda folder: _steps(folder)[:2] == [1, 2],
        written=lambda folder: _steps(folder) == [1, 2, 3, 4],
    ),
    Subject(
        "reference",
        before=lambda folder: None,
        write=_reference,
        intact=lambda folder: _store(folder).load() or not _store(folder).folder.exists(),
        written=lambda folder: _store(folder).load(),
    ),
    Subject(
        "negatives",
        before=lambda folder: None,
        write=_mine,
        intact=lambda folder: not _mined(folder).exists() or _whole(_mined(folder)),
        written=lambda folder: _whole(_mined(folder)),
    ),
]
