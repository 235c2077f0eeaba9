"""From rows to padded tensors, in an order that is a pure function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llmrec_cli.engine.rows import Row
from llmrec_cli.methods.contract import Batch
from llmrec_cli.tensors.trie import Trie, paths


@dataclass(frozen=True)
class MicroBatch:
    """Inputs of one forward pass and what is to be predicted from it."""

    input_ids_BT: Tensor  # right-padded
    take_P: Tensor  # flat position (row * T + t) whose hidden state predicts each target
    batch: Batch

    @property
    def tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids_BT.numel()

    def to(self, device: torch.device) -> MicroBatch:
        batch = self.batch
        moved = replace(
            batch,
            target_P=batch.target_P.to(device, non_blocking=True),
            node_P=batch.node_P.to(device, non_blocking=True),
            row_P=batch.row_P.to(device, non_blocking=True),
        )
        return MicroBatch(
            self.input_ids_BT.to(device, non_blocking=True),
            self.take_P.to(device, non_blocking=True),
            moved,
        )


class Collator:
    """Rows to micro-batches.

    Args:
        trie: the catalogue, on the device where losses are computed; path look-ups use a CPU copy.
        cut_forced: leave out what follows a row's last branching position (legal-token losses).
        dense_head: passed on to the loss.
    """

    def __init__(self, trie: Trie, *, cut_forced: bool, dense_head: bool = False) -> None:
        self.device_trie = trie
        self.trie = trie.to("cpu")
        self.cut_forced = cut_forced
        self.dense_head = dense_head

    def __call__(self, rows: Sequence[Row]) -> MicroBatch:
        """Flatten, place and pad; everything after the look-up of paths is array arithmetic."""
        items = torch.tensor([item for row in rows for item in row.targets])
        node_QT, token_QT, length_Q = paths(self.trie, self.trie.leaf_of_item_I[items])
        row_Q = torch.repeat_interleave(torch.tensor([len(row.targets) for row in rows]))
        prompt_R = torch.tensor([len(row.prompt) for row in rows])
        start_Q = _starts_in_row(prompt_R, row_Q, length_Q)  # where each target's tokens begin

        step_T = torch.arange(node_QT.shape[1])
        inside_QT = step_T < length_Q[:, None]
        kept_QT = inside_QT & self._worth_computing(node_QT, row_Q)
        position_QT = start_Q[:, None] + step_T
        width = int(torch.cat([position_QT[kept_QT], prompt_R]).max())  # the last target is not fed

        input_ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
        for r, row in enumerate(rows):
            input_ids_BT[r, : len(row.prompt)] = torch.from_numpy(row.prompt.astype(np.int64))
        fed_QT = inside_QT & (position_QT < width)
        rows_QT = row_Q[:, None].expand_as(fed_QT)
        input_ids_BT[rows_QT[fed_QT], position_QT[fed_QT]] = token_QT[fed_QT]
        return MicroBatch(
            input_ids_BT=input_ids_BT,
            take_P=(rows_QT * width + position_QT - 1)[kept_QT],
            batch=Batch(
                trie=self.device_trie,
                target_P=token_QT[kept_QT],
                node_P=node_QT[kept_QT],
                row_P=rows_QT[kept_QT],
                rows=len(rows),
                positions=int(length_Q.sum()),
                dense_head=self.dense_head,
            ),
        )

    def _worth_computing(self, node_QT: Tensor, row_Q: Tensor) -> Tensor:
        """All positions, or those up to the last branching one of each row's last target."""
        if not self.cut_forced:
            return torch.ones_like(node_QT, dtype=torch.bool)
        branching_QT = (self.trie.fan_out(node_QT.clamp_min(0)) > 1) & (node_QT >= 0)
        last_Q = torch.ones_like(row_Q, dtype=torch.bool)
        last_Q[:-1] = row_Q[1:] != row_Q[:-1]
        ahead_QT = (
            branching_QT.flip(1).cummax(1).values.flip(1)
        )  # a branching position is at or after
        return ahead_QT | ~last_Q[:, None]


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


def micro_batches(rows: Sequence[Row], size: int | None) -> list[list[Row]]:
    """Split a global batch, rows of similar length together so that little is padding."""
    if size is None or size >= len(rows):
        return [list(rows)]
    by_length = sorted(rows, key=lambda row: (len(row.targets), len(row.prompt)))
    return [by_length[i : i + size] for i in range(0, len(by_length), size)]


def _starts_in_row(prompt_R: Tensor, row_Q: Tensor, length_Q: Tensor) -> Tensor:
    """Position at which each target begins: its row's prompt, then the targets before it."""
    before_Q = length_Q.cumsum(0) - length_Q
    first_of_row = torch.ones_like(row_Q, dtype=torch.bool)
    first_of_row[1:] = row_Q[1:] != row_Q[:-1]
    row_offset_R = before_Q[first_of_row]
    return prompt_R[row_Q] + before_Q - row_offset_R[row_Q]
