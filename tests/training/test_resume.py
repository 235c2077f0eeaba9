"""Stopping anywhere: a resumed run has the same state, and feeds the same batches ever after."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.methods.contract import Negatives
from llmrec_cli.training import trainer
from llmrec_cli.training.checkpoint import Checkpoints
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.negatives import AddNegatives, Miner, NegativeSampler, Users
from llmrec_cli.training.rows import AnyRow, Row
from llmrec_cli.training.trainer import PolicyLoss, Trainer
from tests.training.tiny import CATALOGUE, final_state, job, metrics, rows

pytestmark = pytest.mark.slow

EPOCHS, PER_EPOCH, REFRESH = 19, 3, 2
LAST = EPOCHS * PER_EPOCH - 1
STOPS = {  # (update, forward pass of it) in which the run dies; one start after the other
    "at the first step": [(0, 0)],
    "after the first step": [(1, 0)],
    "in the middle of an accumulation": [(3, 1)],
    "in the middle of an epoch": [(4, 0)],
    "at the end of an epoch": [(6, 0)],
    "in the last step": [(LAST, 1)],
    "twice in one epoch": [(4, 1), (5, 0)],
}
Fed = dict[int, list[tuple[int, tuple[tuple[int, ...], ...]]]]
"""Of each update, the rows' numbers and their negatives."""


class Killed(Exception):
    pass


def mined_job(folder: Path, fed: Fed) -> Trainer:
    """A job with the state of adaptive tau, dropout, and negatives that the policy itself finds."""
    running = job(folder, "ats", epochs=EPOCHS, micro_batch=3, save_every=2, validate_every=2)
    leaves = gather_entries(pd.DataFrame({"count": range(7)}), np.arange(len(CATALOGUE)))
    wanted = Negatives(k=2, draw="model", pool=4, refresh=REFRESH)
    users = Users({0: "ann"}, {0: frozenset()}, {})

    def ask(asked: Sequence[Row]) -> list[list[list[int]]]:
        """Lists that change with the last bit of the policy's weights."""
        bits = running.policy.head().weight_VD.detach().numpy().tobytes()
        draw = np.random.default_rng(list(bits))
        return [[draw.permutation(7).tolist() for _ in row.targets] for row in asked]

    order = Sampler(22, 8, running.seed)
    miner = Miner(
        ask,
        rows(),
        order,
        steps=LAST + 1 + REFRESH,
        refresh=REFRESH,
        folder=folder / "negatives",
    )
    drawn = AddNegatives(NegativeSampler(wanted, leaves, users, 3), rows(), order, miner)
    return replace(running, train_set=Dataset(rows(), (drawn, Watched(fed))))


@dataclass(frozen=True)
class Watched:
    """A row transform that notes what it is given."""

    fed: Fed
    runs_ahead: bool = True

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        self.fed[step] = [(row.number, row.negatives) for row in rows if isinstance(row, Row)]
        return list(rows)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fed]:
    folder, fed = tmp_path_factory.mktemp("straight"), Fed()
    mined_job(folder, fed).train(resume=False)
    return folder, fed


def dies_in(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process of the next run die in a forward pass of an update."""
    forward, update = PolicyLoss.forward, Trainer.run_update
    at = {"step": -1, "pass": 0}

    def watched(*args: Any) -> Any:
        at.update({"step": args[0].state.step, "pass": 0})
        return update(*args)

    def dying(self: PolicyLoss, *args: Any) -> Any:
        if (at["step"], at["pass"]) == (step, number) and torch.is_grad_enabled():
            raise Killed
        at["pass"] += torch.is_grad_enabled()
        return forward(self, *args)

    monkeypatch.setattr(Trainer, "run_update", watched)
    monkeypatch.setattr(PolicyLoss, "forward", dying)


@pytest.mark.parametrize("name", STOPS)
def test_state_and_batches_are_those_of_a_run_that_never_stopped(
    straight: tuple[Path, Fed], tmp_path: Path, name: str
) -> None:
    for start, (step, number) in enumerate(STOPS[name]):
        with pytest.MonkeyPatch.context() as monkeypatch:
            dies_in(step, number, monkeypatch)
            with pytest.raises(Killed):
                mined_job(tmp_path, {}).train(resume=start > 0)
    fed: Fed = {}
    mined_job(tmp_path, fed).train(resume=True)
    folder, expected = straight
    assert metrics(tmp_path) == metrics(folder)
    assert final_state(tmp_path) == final_state(folder)
    assert list(fed) == [step for step in expected if step >= min(fed)]
    assert fed == {step: expected[step] for step in fed}
    assert len(fed) >= 50 or name == "in the last step"


def test_what_the_last_pruning_did_not_delete_goes_after_a_resume(
    straight: tuple[Path, Fed], tmp_path: Path
) -> None:
    prune = Checkpoints.prune

    def dying(self: Checkpoints, *, keep: int, best_step: int | None) -> None:
        if (self.root / f"step-{LAST + 1}").exists():
            raise Killed
        prune(self, keep=keep, best_step=best_step)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Checkpoints, "prune", dying)
        with pytest.raises(Killed):
            mined_job(tmp_path, {}).train(resume=False)
    mined_job(tmp_path, {}).train(resume=True)
    kept = [{p.name for p in (f / "checkpoints").iterdir()} for f in (tmp_path, straight[0])]
    assert kept[0] == kept[1]


def test_an_update_that_was_left_out_is_noted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between such an update and the checkpoint behind it, the run comes to it again."""
    backward = Trainer._compute_gradients

    def poisoned(*args: Any) -> Any:
        found = backward(*args)
        if args[0].state.step == 2:
            found.sums["total"] = found.sums["total"] * math.nan
        return found

    def running() -> Trainer:
        return job(tmp_path, save_every=2, on_nonfinite="skip")

    monkeypatch.setattr(Trainer, "_compute_gradients", poisoned)
    with pytest.MonkeyPatch.context() as patched:
        dies_in(3, 0, patched)
        with pytest.raises(Killed):
            running().train(resume=False)
    running().train(resume=True)
    noted = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in noted] == [3]
    assert [row["step"] for row in metrics(tmp_path) if row.get("skipped")] == [3]


def test_a_position_hidden_in_a_generator_would_be_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without a seed of its own for every step, dropout differs after a resume."""
    monkeypatch.setattr(trainer, "_step_seed", lambda *_: 0)  # and then, where it was used:
    reseed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: reseed(seed) if seed else None)
    mined_job(tmp_path / "straight", {}).train(resume=False)
    with pytest.MonkeyPatch.context() as patched:
        dies_in(4, 0, patched)
        with pytest.raises(Killed):
            mined_job(tmp_path / "stopped", {}).train(resume=False)
    mined_job(tmp_path / "stopped", {}).train(resume=True)
    assert final_state(tmp_path / "stopped") != final_state(tmp_path / "straight")
