"""Accelerate's handle on devices and processes."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)

from llmrec_cli.engine.variables import check_variables, hide_variables, is_cpu_wanted
from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.recipe.recipe import Recipe


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's handle on devices and processes, as the recipe wants them.

    What Accelerate takes from the environment where it is not told is told here, or hidden from it:
    precision, accumulation (each backward pass would be divided by it), compilation, the device.

    Raises:
        MachineError: a GPU was asked for and there is none.
        UserError: variables of a launcher that fit no group, or that llmrec cannot work under.
    """
    group = check_variables()
    if recipe.launch.device == "cuda" and is_cpu_wanted():
        raise RecipeError(
            'launch.device = "cuda", but ACCELERATE_USE_CPU (accelerate launch --cpu) wants the '
            'CPU; unset it, or set launch.device = "cpu"'
        )
    if recipe.launch.device == "cuda" and not torch.cuda.is_available():
        raise MachineError('launch.device = "cuda": no CUDA device is visible; use "auto" or "cpu"')
    if recipe.launch.threads:
        torch.set_num_threads(recipe.launch.threads)
    mixed = recipe.model.dtype if recipe.model.tuning == "full" else "float32"
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    hide_variables(group)
    return Accelerator(
        cpu=recipe.launch.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=names[mixed],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.launch.timeout)),
            DistributedDataParallelKwargs(broadcast_buffers=False),  # constants, alike everywhere
        ],
    )
