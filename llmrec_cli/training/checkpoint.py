"""Checkpoints: safetensors and JSON with hashes. One rename completes a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmrec_cli.errors import ArtefactError
from llmrec_cli.training.distributed import gather_pieces, lay_out_like, scatter_into
from llmrec_cli.utils.files import (
    check_folder,
    read_json,
    translate_os_errors,
    translate_tensor_errors,
    write_folder,
    write_json,
    write_safetensors,
)

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint, and the newer damaged ones that were skipped."""

    folder: Path
    state: dict[str, Any]
    skipped: tuple[str, ...]


class Checkpoints:
    """The checkpoints of a run, ``root/step-N``: written whole, checked before use.

    Args:
        root: their folder, which may not exist yet.
        writes: whether this process writes and deletes; all call the same methods.
    """

    def __init__(self, root: Path, *, writes: bool = True) -> None:
        self.root = root
        self.writes = writes
        self._checked: dict[Path, tuple[Any, ...]] = {}  # their sizes and times when intact
        if writes:
            self._remove_leftovers()  # of a process that was killed

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> Path:
        """Write ``step-N`` with N = ``state["step"]``; returns its folder.

        Raises:
            MachineError: the disk refuses; earlier checkpoints are unchanged.
        """
        folder = self.root / f"step-{state['step']}"
        weights, moments = trained_weights(model), _optimizer_tensors(optimizer)
        if self.writes:

            def fill(temporary: Path) -> None:
                write_safetensors(temporary / WEIGHTS, weights)
                write_safetensors(temporary / OPTIMIZER, moments)
                write_json(temporary / STATE, state)

            write_folder(folder, fill)
            self._checked[folder] = _looks(folder)
        return folder

    def prune(self, *, keep: int, best_step: int | None) -> None:
        """Delete all but the newest ``max(keep, 2)`` intact checkpoints and the best one.

        Raises:
            MachineError: the disk refuses.
        """
        if not self.writes:
            return
        intact = 0
        for folder in reversed(all_of(self.root)):
            if intact >= max(keep, 2) and folder.name != f"step-{best_step}":
                delete_step(folder)
            elif self.damage(folder) is None:
                intact += 1
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        remove_leftover_steps(self.root)

    def newest(self) -> Found | None:
        """The newest checkpoint whose files are all intact; None where there is none.

        Raises:
            ArtefactError: there are checkpoints, and every one is damaged.
        """
        skipped: list[str] = []
        for folder in reversed(all_of(self.root)):
            problem = self.damage(folder)
            if problem is None:
                return Found(folder, read_json(folder / STATE), tuple(skipped))
            skipped.append(problem)
        if skipped:
            raise ArtefactError(f"{self.root}: no valid checkpoint is left: {'; '.join(skipped)}")
        return None

    def intact(self, step: int) -> Path:
        """The folder of one checkpoint.

        Raises:
            ArtefactError: it is damaged or missing.
        """
        folder = self.root / f"step-{step}"
        problem = self.damage(folder)
        if problem is not None:
            raise ArtefactError(problem)
        return folder

    def damage(self, folder: Path) -> str | None:
        """The problem of a checkpoint; None: it is intact.

        One that was found intact is hashed again only if its sizes or times have changed.
        """
        try:
            looks = _looks(folder)
            if self._checked.get(folder) != looks:
                check_folder(folder)
                self._checked[folder] = looks
        except ArtefactError as error:
            return str(error)
        return None


def delete_step(folder: Path) -> None:
    """Delete a ``step-N``; while that lasts, what is left of it has another name.

    Raises:
        MachineError: the disk refuses.
    """
    gone = folder.with_name(f".{folder.name}.tmp")
    with translate_os_errors(folder):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftover_steps(root: Path) -> None:
    """Delete what a killed process left of a ``step-N``."""
    for leftover in root.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_trained(folder: Path, model: nn.Module) -> None:
    """Write what training changes, alone, as ``restore_weights`` reads it."""
    weights = trained_weights(model)
    write_folder(folder, lambda temporary: write_safetensors(temporary / WEIGHTS, weights))


def _looks(folder: Path) -> tuple[Any, ...]:
    stats = ((path.name, path.stat()) for path in sorted(folder.rglob("*")))
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that training changes, by name; contiguous CPU copies."""
    named = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: _copy_tensor(p) for name, p in named}


def restore_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        ArtefactError: names or shapes differ.
    """
    with translate_tensor_errors(folder / WEIGHTS):
        loaded = load_file(folder / WEIGHTS)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in sorted(set(loaded) ^ set(named)):
        where = "the checkpoint" if name in named else "the model"
        raise ArtefactError(f"{folder / WEIGHTS}: {name} is missing in {where}")
    for name, parameter in named.items():
        if parameter.shape != loaded[name].shape:
            raise ArtefactError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(loaded[name].shape)}, "
                f"the model expects {tuple(parameter.shape)}"
            )
        scatter_into(parameter, loaded[name])


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore weights and optimizer."""
    restore_weights(model, folder)
    with translate_tensor_errors(folder / OPTIMIZER):
        tensors = load_file(folder / OPTIMIZER)
    for index, parameter in enumerate(_parameters(optimizer)):
        prefix = f"{index}/"
        entries = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if entries:
            optimizer.state[parameter] = {
                key: value if key == "step" else lay_out_like(parameter, value)
                for key, value in entries.items()
            }


def all_of(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    folders = [p for p in root.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """N of ``step-N``."""
    return int(folder.name.removeprefix("step-"))


def write_result(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a finished model or adapter as an ordinary Hugging Face folder.

    An adapter has only what was trained.  Where new tokens made the embedding matrices longer, PEFT
    would add both of them whole, but the adapter has their new rows already (``pipeline.loading``).
    """
    alone = {"save_embedding_layers": False} if hasattr(model, "get_base_model") else {}

    def fill(temporary: Path) -> None:
        model.save_pretrained(temporary, **alone)
        tokenizer.save_pretrained(temporary)

    write_folder(folder, fill)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a finished model of our own as ``weights.safetensors``."""
    stored = {name: _copy_tensor(tensor) for name, tensor in tensors.items()}
    write_folder(folder, lambda temporary: write_safetensors(temporary / WEIGHTS, stored))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}/{key}": _copy_tensor(value)
        for index, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _copy_tensor(tensor: Tensor) -> Tensor:
    """A whole, contiguous copy on the CPU."""
    return gather_pieces(tensor).cpu().contiguous().clone()
