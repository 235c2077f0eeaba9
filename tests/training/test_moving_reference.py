"""A reference that takes the policy's weights every n updates, and survives a kill anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmrec_cli.errors import ArtefactError
from llmrec_cli.methods.contract import ReferenceModel
from llmrec_cli.training.checkpoint import trained_weights
from llmrec_cli.training.reference import MoveReference
from llmrec_cli.training.trainer import PolicyLoss, Trainer
from tests.training.tiny import METHODS, final_state, job, metrics

STEPS, EVERY = 9, 2  # 22 rows in batches of 8, three epochs
Weights = dict[str, Tensor]


class Killed(Exception):
    pass


def mover_of(running: Trainer) -> MoveReference:
    found = running.train_set.row_transforms[0]
    assert isinstance(found, MoveReference)
    return found


def weights_of_reference(running: Trainer) -> Weights:
    with mover_of(running).reference.active() as model:
        return trained_weights(model)


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def watch(running: Trainer, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Weights], list[Weights]]:
    """Train; the policy's weights before each update, and the reference's in it."""
    policy, reference, update = list[Weights](), list[Weights](), Trainer.run_update

    def watched(self: Trainer, *args: Any) -> Any:
        policy.append(trained_weights(self.policy))
        row = update(self, *args)
        reference.append(weights_of_reference(self))
        return row

    monkeypatch.setattr(Trainer, "run_update", watched)
    running.train(resume=False)
    return policy, reference


def test_the_reference_is_the_policy_of_the_last_multiple(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = job(tmp_path, "sprec")
    policy, reference = watch(running, monkeypatch)
    assert len(reference) == STEPS
    for step, weights in enumerate(reference):
        assert equal(weights, policy[step - step % EVERY]), step
    assert not equal(reference[EVERY], policy[0])  # no longer the parent's
    for row in metrics(tmp_path)[::EVERY]:
        assert row["margin"] == pytest.approx(0, abs=0.5)


def test_a_move_that_never_comes_is_a_fixed_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "sprec", {"refresh": STEPS, "beta": 1.0})
    running = job(tmp_path / "never", "sprec")
    running.train(resume=False)
    fixed = job(tmp_path / "fixed", "sprec")
    _, *others = fixed.train_set.row_transforms
    object.__setattr__(fixed.train_set, "row_transforms", tuple(others))
    fixed.train(resume=False)
    assert final_state(tmp_path / "never") == final_state(tmp_path / "fixed")
    assert metrics(tmp_path / "never") == metrics(tmp_path / "fixed")
    assert not (tmp_path / "never/reference").exists()


def dies_in(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run die in the forward pass of an update, after its rows were completed."""
    forward, update, at = PolicyLoss.forward, Trainer.run_update, {"step": -1}

    def watched(self: Trainer, *args: Any) -> Any:
        at["step"] = self.state.step
        return update(self, *args)

    def dying(self: PolicyLoss, *args: Any) -> Any:
        if at["step"] == step and torch.is_grad_enabled():
            raise Killed
        return forward(self, *args)

    monkeypatch.setattr(Trainer, "run_update", watched)
    monkeypatch.setattr(PolicyLoss, "forward", dying)


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, 3, 4])
@pytest.mark.parametrize("save_every", [1, 3])
def test_a_resumed_run_is_the_run_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, save_every: int
) -> None:
    """Between two moves, right after one, and between a move and the next checkpoint."""
    monkeypatch.setitem(METHODS, "sprec", {"refresh": every, "beta": 1.0})
    job(tmp_path / "straight", "sprec", save_every=save_every).train(resume=False)
    for step in range(1, STEPS):
        folder = tmp_path / f"stopped-{step}"
        with pytest.MonkeyPatch.context() as patched:
            dies_in(step, patched)
            with pytest.raises(Killed):
                job(folder, "sprec", save_every=save_every).train(resume=False)
        job(folder, "sprec", save_every=save_every).train(resume=True)
        assert metrics(folder) == metrics(tmp_path / "straight"), step
        assert final_state(folder) == final_state(tmp_path / "straight"), step


def test_validation_compares_with_the_parent_throughout(tmp_path: Path) -> None:
    """The same figures before and after a move, for the same weights; also in a resumed run."""
    running = job(tmp_path, "sprec")
    before = list(running.valid_loader.iterate_passes(0))
    running.train(resume=False)
    for other in (running, job(tmp_path, "sprec")):
        for known, again in zip(before, other.valid_loader.iterate_passes(0), strict=True):
            assert known.micro.batch.reference is not None
            assert again.micro.batch.reference is not None
            assert torch.equal(known.micro.batch.reference, again.micro.batch.reference)


def stored(folder: Path) -> set[str]:
    return {path.name for path in (folder / "reference").iterdir()}


def test_weights_that_no_checkpoint_needs_are_deleted(tmp_path: Path) -> None:
    running = job(tmp_path, "sprec", save_every=1, keep=2)
    leftover = tmp_path / "reference/.step-2.tmp"
    leftover.mkdir(parents=True)
    running.train(resume=False)
    # At the last move, before update 9, checkpoints 7 and 8 were there, and the best one.
    best = running.state.best_step
    assert best is not None
    continued = {7, 8, best} if best < 7 else {7, 8}
    assert stored(tmp_path) == {f"step-{step - step % EVERY}" for step in continued} - {"step-0"}
    assert not leftover.exists()


def moving(tmp_path: Path) -> MoveReference:
    """Of another start of the run: the policy's weights are those at its beginning."""
    return mover_of(job(tmp_path, "sprec"))


def test_a_reference_that_is_missing_is_no_guess(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"step-2: missing: the reference of update 4;"):
        moving(tmp_path)([], 3)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    moving(tmp_path)([], 2)
    file = tmp_path / "reference/step-2/weights.safetensors"
    content = file.read_bytes()
    moving(tmp_path)([], 3)  # intact
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="damaged"):
        moving(tmp_path)([], 3)


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    mover = moving(tmp_path)
    mover.writes = False
    mover([], 2)
    assert not (tmp_path / "reference").exists()


def test_what_moves_cannot_be_precomputed() -> None:
    with pytest.raises(ValueError, match="cannot be precomputed"):
        ReferenceModel("precompute", moves=1)
