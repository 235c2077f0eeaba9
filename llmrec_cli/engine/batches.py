"""Which rows an update sees: an order that is a pure function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmrec_cli.engine.rows import AnyRow, PairRow


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


def micro_batches(rows: Sequence[AnyRow], size: int | None) -> list[list[AnyRow]]:
    """Split a global batch, rows of similar length together so that little is padding."""
    if size is None or size >= len(rows):
        return [list(rows)]
    by_length = sorted(rows, key=_length)
    return [by_length[i : i + size] for i in range(0, len(by_length), size)]


def _length(row: AnyRow) -> tuple[int, int]:
    if isinstance(row, PairRow):
        return len(row.prompts), max(len(prompt) for prompt in row.prompts)
    return len(row.targets), len(row.prompt)
