"""Accelerate's handle on devices and processes."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from llmrec_cli.errors import MachineError
from llmrec_cli.recipe.recipe import Recipe


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's handle on devices and processes, as the recipe wants them.

    Raises:
        MachineError: a GPU was asked for and there is none.
    """
    if recipe.launch.device == "cuda" and not torch.cuda.is_available():
        raise MachineError('launch.device = "cuda": no CUDA device is visible; use "auto" or "cpu"')
    if recipe.launch.threads:
        torch.set_num_threads(recipe.launch.threads)
    mixed = recipe.model.dtype if recipe.model.tuning == "full" else "float32"
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    return Accelerator(
        cpu=recipe.launch.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=names[mixed],
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.launch.timeout)),
            DistributedDataParallelKwargs(broadcast_buffers=False),  # constants, alike everywhere
        ],
    )
