"""Checkpoints: nothing damaged is ever used, and pruning never leaves too few."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmrec_cli.errors import ArtefactError, MachineError
from llmrec_cli.training import checkpoint
from llmrec_cli.training.checkpoint import Checkpoints
from llmrec_cli.training.trainer import read_trainer_state
from llmrec_cli.utils.files import check_folder
from tests.robustness.operations import announced
from tests.training.tiny import job


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_weights_and_optimizer_come_back_bit_by_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = Checkpoints(tmp_path).save(model, optimizer, {"step": 2})
    other, other_optimizer = trained(steps=0)
    checkpoint.restore(folder, other, other_optimizer)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, other_optimizer.state[b][key]), key


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flip": damage_flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "delete": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE, "files.json"]
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, damage: str, name: str
) -> None:
    model, optimizer = trained()
    Checkpoints(tmp_path).save(model, optimizer, {"step": 1})
    newest = Checkpoints(tmp_path).save(model, optimizer, {"step": 2})
    DAMAGES[damage](newest / name)
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found.state["step"] == 1
    assert len(found.skipped) == 1
    assert name in found.skipped[0] or name == "files.json"
    DAMAGES[damage](tmp_path / "step-1" / name)
    with pytest.raises(ArtefactError, match="no valid checkpoint is left"):
        Checkpoints(tmp_path).newest()


def test_a_file_that_llmrec_did_not_write_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = Checkpoints(tmp_path).save(model, optimizer, {"step": 1})
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(ArtefactError, match=r"extra\.bin: not written by llmrec"):
        Checkpoints(tmp_path).newest()


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in (1, 2, 3, 10, 11):
        Checkpoints(tmp_path).save(model, optimizer, {"step": step})
    Checkpoints(tmp_path).prune(keep=1, best_step=2)
    assert [p.name for p in checkpoint.all_of(tmp_path)] == ["step-2", "step-10", "step-11"]


def test_a_damaged_one_does_not_count_and_the_best_is_kept_even_so(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in (1, 2, 3, 4, 5):
        Checkpoints(tmp_path).save(model, optimizer, {"step": step})
    for step in (1, 4):
        damage_flip(tmp_path / f"step-{step}" / checkpoint.WEIGHTS)
    Checkpoints(tmp_path).prune(keep=2, best_step=1)
    assert [p.name for p in checkpoint.all_of(tmp_path)] == ["step-1", "step-3", "step-4", "step-5"]


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 3])
def test_at_no_instant_are_there_fewer_than_two_or_is_the_best_gone(
    tmp_path: Path, keep: int
) -> None:
    """Looked at before every single file operation of a whole run."""
    root, seen = tmp_path / "checkpoints", [0]

    def look(name: str, path: str) -> None:
        valid = {}
        for folder in checkpoint.all_of(root):
            check_folder(folder)  # what bears the name of a checkpoint is one
            valid[int(folder.name[5:])] = json.loads((folder / checkpoint.STATE).read_text())
        assert len(valid) >= min(max(seen), 2)
        seen.append(len(valid))
        best = valid[max(valid)]["best_step"] if valid else None
        assert best is None or best in valid

    scores = iter([0.1, 0.9, 0.4, 0.3, 0.2, 0.1])
    running = job(tmp_path, epochs=6, save_every=1, keep=keep)
    object.__setattr__(running, "rank_valid", lambda: {"ndcg@2": next(scores)})
    with announced(look):
        running.train(resume=False)
    assert len(seen) > 18 * 20
    assert max(seen) == max(keep, 2) + 2  # the best, and the newest before the oldest goes


def test_everything_is_durable_before_it_has_its_name(tmp_path: Path) -> None:
    done: list[tuple[str, str]] = []

    def note(name: str, path: str) -> None:
        if path.startswith("descriptor"):
            path = os.readlink(f"/proc/self/fd/{path.split()[1]}")
        done.append((name, os.path.relpath(path, tmp_path)))

    model, optimizer = trained()
    with announced(note):
        Checkpoints(tmp_path).save(model, optimizer, {"step": 1})
    renamed = [path for name, path in done if name == "rename"]
    (temporary,) = (path for path in renamed if "/" not in path)
    assert temporary.startswith(".step-1.")
    committed = done.index(("rename", temporary))
    synced = {path for name, path in done[:committed] if name == "fsync"}
    files = [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE, "files.json"]
    assert synced >= {temporary, *(f"{temporary}/{file}" for file in files)}
    assert ("fsync", ".") in done[committed:]


def test_a_save_that_fails_leaves_the_checkpoint_before_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained()
    Checkpoints(tmp_path).save(model, optimizer, {"step": 1})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmrec_cli.utils.files.os.fsync", full)
    with pytest.raises(MachineError, match="No space left on device"):
        Checkpoints(tmp_path).save(model, optimizer, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found.state == {"step": 1}


def test_weights_of_another_model_are_refused_with_both_shapes(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = Checkpoints(tmp_path).save(model, optimizer, {"step": 1})
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with pytest.raises(ArtefactError, match=r"shape \(4, 3\), the model expects \(5, 3\)"):
        checkpoint.restore_weights(other, folder)
    with pytest.raises(ArtefactError, match=r"2\.weight is missing in the checkpoint|missing"):
        checkpoint.restore_weights(nn.Sequential(*other, nn.Linear(2, 2)), folder)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest() is None


def test_nothing_is_pickled(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = Checkpoints(tmp_path).save(model, optimizer, {"step": 1})
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    json.loads((folder / checkpoint.STATE).read_text())


@pytest.mark.parametrize("content", ["null\n", "[]\n", '{"a": -Infinity}', "[" * 5000])
def test_hashes_that_are_none_are_damage(content: str, tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = Checkpoints(tmp_path).save(model, optimizer, {"step": 1})
    (folder / "files.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"files\.json: (damaged|not valid JSON)"):
        Checkpoints(tmp_path).newest()


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"step": 1, "beststep": 2}, "beststep is unknown"),
        ({"step": "1"}, "Expected `int`"),
        ([1], "1 is unknown"),
        (7, "not iterable"),
        ({"step": 4}, "it has step 4"),
        ({}, "it has step 0"),
    ],
)
def test_a_state_that_is_no_position_is_refused(tmp_path: Path, state: Any, problem: str) -> None:
    folder = tmp_path / "step-3"
    assert read_trainer_state(folder, {"step": 3, "best_score": 0.5}).step == 3
    with pytest.raises(ArtefactError, match=f"no position of a run: .*{problem}"):
        read_trainer_state(folder, state)
