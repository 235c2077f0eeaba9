"""Checkpoints: safetensors and JSON, hashed, committed by one rename, pruned only afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import check_folder, machine_errors, read_json, write_folder, write_json

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint, and what was skipped on the way to it."""

    folder: Path
    state: dict[str, Any]
    skipped: tuple[str, ...]


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that training changes, by name; contiguous CPU copies."""
    named = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: p.detach().cpu().contiguous().clone() for name, p in named}


def restore_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        ArtefactError: names or shapes differ.
    """
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
        with torch.no_grad():
            parameter.copy_(loaded[name])


def save(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write ``root/step-N`` with N = ``state["step"]``; returns its folder."""
    folder = root / f"step-{state['step']}"

    def fill(temporary: Path) -> None:
        save_file(trained_weights(model), temporary / WEIGHTS)
        save_file(_optimizer_tensors(optimizer), temporary / OPTIMIZER)
        write_json(temporary / STATE, state)

    with machine_errors(folder):
        write_folder(folder, fill)
    return folder


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer back as they were."""
    restore_weights(model, folder)
    tensors = load_file(folder / OPTIMIZER)
    for index, parameter in enumerate(_parameters(optimizer)):
        prefix = f"{index}/"
        entries = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if entries:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device)
                for key, value in entries.items()
            }


def newest(root: Path) -> Found | None:
    """The newest checkpoint whose files are all intact; None where there is none.

    Raises:
        ArtefactError: there are checkpoints, and every one is damaged.
    """
    skipped: list[str] = []
    for folder in reversed(all_of(root)):
        try:
            check_folder(folder)
            return Found(folder, read_json(folder / STATE), tuple(skipped))
        except ArtefactError as error:
            skipped.append(str(error))
    if skipped:
        raise ArtefactError(f"{root}: no valid checkpoint is left: {'; '.join(skipped)}")
    return None


def all_of(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    folders = [p for p in root.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))


def prune(root: Path, *, keep: int, best_step: int | None) -> None:
    """Delete all but the newest ``max(keep, 2)`` checkpoints and the best one."""
    for folder in all_of(root)[: -max(keep, 2)]:
        if folder.name != f"step-{best_step}":
            shutil.rmtree(folder)


def write_result(folder: Path, model: Any, tokenizer: Any, accelerator: Accelerator) -> None:
    """Write a finished model or adapter as an ordinary Hugging Face folder, on the first rank."""
    if not accelerator.is_main_process:
        return

    def fill(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    write_folder(folder, fill)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Write a finished model of our own as ``weights.safetensors``, on the first rank."""
    if accelerator.is_main_process:
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_folder(folder, lambda temporary: save_file(stored, temporary / WEIGHTS))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}/{key}": value.detach().cpu().contiguous().clone()
        for index, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
    }
