"""What a person should know before a stage is trained: memory, warm-up, slow arithmetic.

Each is a line.  ``validate --rows`` prints them, training says them first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from llmrec_cli.config.model import ModelSection
from llmrec_cli.config.training import TrainSection
from llmrec_cli.runs.run import Run
from llmrec_cli.training.trainer import count_updates
from llmrec_cli.utils.machine import has_bf16_units


def warn_of_warmup(section: TrainSection, n_rows: int, run: Run) -> Iterator[str]:
    """A warm-up that is longer than the run.

    Args:
        section: the training of ``run``.
        n_rows: its training rows.
    """
    updates = count_updates(n_rows, section)
    if section.warmup >= 1 and math.ceil(section.warmup) > updates:
        yield (
            f"warning: {run.heading} warmup = {section.warmup:g} updates, but the run has "
            f"{updates:,}: the peak rate of {section.learning_rate:g} is never reached; set "
            f"{run.key}.train.warmup = 0.1 (a tenth of the updates), or train longer"
        )


def warn_of_emulation(model: ModelSection, device: torch.device) -> Iterator[str]:
    """bfloat16 on a processor that has no units for it."""
    if model.dtype == "bfloat16" and device.type == "cpu" and has_bf16_units() is False:
        yield (
            'warning: [model] dtype = "bfloat16": this processor has no bf16 units (avx512_bf16, '
            "amx_bf16), and emulates them: 6 times slower than float32 and more; set model.dtype = "
            '"float32"'
        )
