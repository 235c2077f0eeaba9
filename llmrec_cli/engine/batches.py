"""Which rows an update sees: an order that is a pure function of (seed, epoch, step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmrec_cli.engine.rows import AnyRow


def epoch_order(n_rows: int, seed: int, epoch: int) -> Tensor:
    """The order of the rows in one epoch: a pure function of its arguments."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_rows, generator=generator)


def rows_of_step(n_rows: int, batch: int, seed: int, step: int) -> list[int]:
    """Row numbers of one update's global batch; the last batch of an epoch may be smaller.

    Args:
        step: 0-based number of the update, counted over all epochs.
    """
    steps = -(-n_rows // batch)
    epoch, at = divmod(step, steps)
    chosen: list[int] = epoch_order(n_rows, seed, epoch)[at * batch : (at + 1) * batch].tolist()
    return chosen


class Limits(NamedTuple):
    """What one forward pass holds at most; None: no limit."""

    rows: int | None = None
    tokens: int | None = None  # padding included; a longer row travels alone


def micro_batches(
    rows: Sequence[AnyRow], lengths: Sequence[int], limits: Limits
) -> list[list[AnyRow]]:
    """Split a global batch into forward passes, longest rows first, like lengths together.

    A pass is padded to its longest row, so a limit on tokens puts many short rows or few long ones
    into it; memory is then alike everywhere and little is padding.

    Args:
        lengths: tokens of each row.
    """
    most_rows, room = limits.rows or len(rows), limits.tokens or math.inf
    parts: list[list[AnyRow]] = []
    longest = 0  # of the last part
    for i in sorted(range(len(rows)), key=lambda i: -lengths[i]):
        fits = parts and len(parts[-1]) < most_rows and longest * (len(parts[-1]) + 1) <= room
        if not fits:
            parts.append([])
            longest = lengths[i]
        parts[-1].append(rows[i])
    return parts
