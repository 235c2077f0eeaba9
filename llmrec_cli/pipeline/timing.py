"""How long a recipe's stages will take, from a few timed passes of its backbone.

backbone, rows -> Speed: tokens a second, forward and backward, and forward alone
rows and limits of a stage -> StageTokens -> seconds of an update, an epoch, the run
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from llmrec_cli.models.language_model import Policy, inference_mode
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.memory import RowSizes
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.pipeline.setup import CatalogueContext
from llmrec_cli.tasks.base import StageRows, load_operations
from llmrec_cli.training.collator import (
    Collator,
    Limits,
    MicroBatch,
    count_tokens,
    split_kinds,
    split_rows,
)
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.trainer import PolicyLoss, count_updates

PASSES: Final = 2  # that are timed
_UPDATES: Final = 200  # of which the tokens are counted, where a run has more


@dataclass(frozen=True)
class Speed:
    """What one process computes here, tokens a second, padding included."""

    train: float  # forward and backward
    prefill: float  # forward alone
    tokens: int  # that were timed

    def __str__(self) -> str:
        return (
            f"timed on {self.tokens:,} tokens: {self.train:,.0f} tokens/s forward and backward, "
            f"{self.prefill:,.0f} forward alone"
        )


def measure_speed(stage: TrainingStage, found: StageRows) -> Speed:
    """Compute the first passes of a stage's first update, nothing else; weights do not change.

    Args:
        stage: of a method that needs its rows alone, such as SFT.

    Raises:
        UserError: the backbone cannot be loaded.
    """
    context, section = stage.context, stage.section
    policy = Policy(load_policy(context, None, train=True))
    loss = PolicyLoss(policy, stage.method, stage.options)
    state = dict(stage.method.init_state(stage.options, context.trie))
    numbers = Sampler(len(found.rows), section.batch, context.recipe.seed).numbers_of(0)
    rows = Dataset(found.rows, found.transforms or ()).complete_rows(
        [found.rows[number] for number in numbers], 0
    )
    collator = Collator(context.trie, cut_forced=stage.method.legal_only(stage.options))
    parts = collator.split(rows, Limits.of_section(section))
    passes = [collator(part).to(context.ranks.device) for part in islice(parts, PASSES)]

    def train(micro: MicroBatch) -> None:
        total, _ = loss(micro, state)
        total.backward()

    def prefill(micro: MicroBatch) -> None:
        policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)

    policy.train()
    train(collator(parts[-1][-1:]).to(context.ranks.device))  # what is made at a first call
    tokens = sum(micro.tokens for micro in passes)
    trained = _measure_seconds(train, passes)
    with inference_mode(policy):
        filled = _measure_seconds(prefill, passes)
    return Speed(tokens / trained, tokens / filled, tokens)


def _measure_seconds(compute: Callable[[MicroBatch], Any], passes: Sequence[MicroBatch]) -> float:
    _wait_for_device()
    begun = time.perf_counter()
    for micro in passes:
        compute(micro)
    _wait_for_device()
    return time.perf_counter() - begun


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class StageTokens:
    """What a training stage computes, padding included."""

    updates: int
    updates_per_epoch: int
    per_update: float  # forward and backward
    forward: float  # of an update, forward alone: the reference, and the search for rollouts
    validations: int
    per_validation: int  # forward alone

    def describe(self, speed: Speed) -> str:
        """Seconds of an update, an epoch and the run, in words."""
        update = self.per_update / speed.train + self.forward / speed.prefill
        validating = self.validations * self.per_validation / speed.prefill
        return (
            f"an update {show_seconds(update)}, an epoch of {self.updates_per_epoch:,} "
            f"{show_seconds(update * self.updates_per_epoch)}, the run of {self.updates:,} updates "
            f"and {self.validations:,} validation{'' if self.validations == 1 else 's'} "
            f"{show_seconds(update * self.updates + validating)}"
        )


def count_stage_tokens(stage: TrainingStage, found: StageRows, sizes: RowSizes) -> StageTokens:
    """Count the tokens of a stage's passes, of its first updates where it has many."""
    section, needs = stage.section, stage.needs
    order = Sampler(len(sizes.tokens), section.batch, stage.context.recipe.seed)
    updates, limits = count_updates(len(sizes.tokens), section), Limits.of_section(section)
    looked_at = range(min(updates, _UPDATES))
    tokens = [_count_padded(found, sizes, order.numbers_of(step), limits) for step in looked_at]
    per_update = float(np.mean(tokens))
    every = section.validate_every * order.steps_per_epoch
    valid = sum(count_tokens(list(found.valid_rows), stage.context.trie.to("cpu")))
    return StageTokens(
        updates=updates,
        updates_per_epoch=order.steps_per_epoch,
        per_update=per_update,
        forward=per_update * ((needs.reference is not None) + (needs.rollouts is not None)),
        validations=max(-(-updates // max(int(every), 1)), 1),
        per_validation=valid if section.selection.is_loss else 2 * valid,  # the loss; to rank
    )


def _count_padded(found: StageRows, sizes: RowSizes, numbers: Sequence[int], limits: Limits) -> int:
    """Tokens of one update, each pass padded to its longest row."""
    length = {id(found.rows[number]): sizes.tokens[number] for number in numbers}
    rows = [found.rows[number] for number in numbers]
    parts = [
        part
        for own in split_kinds(rows)
        for part in split_rows(own, [length[id(row)] for row in own], limits)
    ]
    return sum(len(part) * max(length[id(row)] for row in part) for part in parts)


def count_evaluation_tokens(context: CatalogueContext, frame: pd.DataFrame) -> int:
    """Tokens of the prompts and answers of some test rows."""
    encoded = load_operations(context.recipe.task).encode_answers(context, frame, "test")
    return sum(len(prompt) + len(answer) for prompt, answer in encoded)


def show_seconds(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
