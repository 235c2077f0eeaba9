"""Collating: rows become padded tensors, and what is to be predicted from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llmrec_cli.engine.answers import (
    Answers,
    chained,
    fed_sequences,
    lengths,
    packed,
    pair_answers,
)
from llmrec_cli.engine.batches import Limits, micro_batches
from llmrec_cli.engine.rows import AnyRow, PairRow, Row
from llmrec_cli.methods.contract import Batch, Preferences
from llmrec_cli.tensors.mass import LeafMass
from llmrec_cli.tensors.packing import Tree, pack
from llmrec_cli.tensors.trie import Trie, paths

Masses = Callable[[Sequence[Row]], LeafMass]


@dataclass(frozen=True)
class MicroBatch:
    """Inputs of one forward pass and what is to be predicted from it."""

    input_ids_BT: Tensor  # right-padded
    take_P: Tensor  # flat position (row * T + t) whose hidden state predicts each target
    batch: Batch
    tree: Tree | None = None  # of packed rows; without one, every token sees all before it

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
            answer_P=batch.answer_P.to(device, non_blocking=True),
            final_P=batch.final_P.to(device, non_blocking=True),
            length_A=batch.length_A.to(device, non_blocking=True),
            preferences=batch.preferences and _moved(batch.preferences, device),
            mass=batch.mass and batch.mass.to(device),
        )
        return MicroBatch(
            self.input_ids_BT.to(device, non_blocking=True),
            self.take_P.to(device, non_blocking=True),
            moved,
            self.tree and self.tree.to(device),
        )


def _moved(preferences: Preferences, device: torch.device) -> Preferences:
    reference_A = preferences.reference_A
    return Preferences(
        preferences.chosen_GC.to(device, non_blocking=True),
        preferences.rejected_GK.to(device, non_blocking=True),
        None if reference_A is None else reference_A.to(device, non_blocking=True),
    )


class Collator:
    """Rows to micro-batches.

    Args:
        trie: the catalogue, on the device where losses are computed; path look-ups use a CPU copy.
        cut_forced: leave out what follows an answer's last branching position (legal-token losses).
        dense_head: passed on to the loss.
        masses: item probabilities of each target's history, for methods that need them.
        rejected: whether the rejected answers of pair rows are laid out too.
    """

    def __init__(
        self,
        trie: Trie,
        *,
        cut_forced: bool,
        dense_head: bool = False,
        masses: Masses | None = None,
        rejected: bool = False,
    ) -> None:
        self.device_trie = trie
        self.trie = trie.to("cpu")
        self.cut_forced = cut_forced
        self.dense_head = dense_head
        self.masses = masses
        self.rejected = rejected

    def __call__(self, rows: Sequence[AnyRow]) -> MicroBatch:
        """Flatten, place and pad; everything after the look-up of paths is array arithmetic."""
        catalogue_rows = [row for row in rows if isinstance(row, Row)]
        if len(catalogue_rows) < len(rows):
            pairs = [row for row in rows if isinstance(row, PairRow)]
            return self._lay_out(pair_answers(pairs, rejected=self.rejected), pairs, None)
        apart = any(row.negatives or row.prompts for row in catalogue_rows)
        answers = (packed if apart else chained)(catalogue_rows, self.trie)
        return self._lay_out(answers, catalogue_rows, self.masses and self.masses(catalogue_rows))

    def split(self, rows: Sequence[AnyRow], limits: Limits) -> list[list[AnyRow]]:
        """The rows of one batch in forward passes of like lengths (``batches.micro_batches``)."""
        if limits == Limits():
            return [list(rows)]
        return micro_batches(rows, lengths(rows, self.trie), limits)

    def _lay_out(
        self, answers: Answers, rows: Sequence[AnyRow], mass: LeafMass | None
    ) -> MicroBatch:
        node_AT, token_AT, length_A = paths(answers.trie, answers.leaf_A)
        step_T = torch.arange(node_AT.shape[1])
        inside_AT = step_T < length_A[:, None]
        kept_AT = inside_AT & self._worth_computing(answers, node_AT)
        position_AT = answers.prefix_A[:, None] + step_T
        fed_SW = fed_sequences(answers, token_AT, kept_AT, inside_AT)
        alone = len(answers.row_S) == int(answers.row_S[-1]) + 1  # one sequence in every row
        if alone:
            input_ids_BT, tree = fed_SW.clamp_min(0), None
            slot_AT = answers.sequence_A[:, None] * fed_SW.shape[1] + position_AT - 1
        else:
            input_ids_BT, tree, slot_SW = pack(fed_SW, answers.row_S)
            before_AT = (position_AT - 1).clamp_max(fed_SW.shape[1] - 1)
            slot_AT = slot_SW[answers.sequence_A[:, None], before_AT]
        answer_AT = torch.arange(len(length_A))[:, None].expand_as(kept_AT)
        return MicroBatch(
            input_ids_BT=input_ids_BT,
            take_P=slot_AT[kept_AT],
            batch=Batch(
                trie=self.device_trie if answers.trie is self.trie else answers.trie,
                target_P=token_AT[kept_AT],
                node_P=node_AT[kept_AT],
                answer_P=answer_AT[kept_AT],
                final_P=(step_T == length_A[:, None] - 1)[kept_AT],
                length_A=length_A,
                answers=len(length_A),
                positions=int(length_A.sum()),
                dense_head=self.dense_head,
                preferences=_preferences(rows) if self.rejected else None,
                mass=mass,
            ),
            tree=tree,
        )

    def _worth_computing(self, answers: Answers, node_AT: Tensor) -> Tensor:
        """All positions, or those up to the last branching one of each answer."""
        if not self.cut_forced:
            return torch.ones_like(node_AT, dtype=torch.bool)
        branching_AT = (answers.trie.fan_out(node_AT.clamp_min(0)) > 1) & (node_AT >= 0)
        return branching_AT.flip(1).cummax(1).values.flip(1)  # at or after the position


def _preferences(rows: Sequence[AnyRow]) -> Preferences:
    """Answer numbers of each group; all groups have equally many rejected answers."""
    chosen: list[list[int]] = []
    rejected: list[list[int]] = []
    answer = 0
    for row in rows:
        if isinstance(row, PairRow):
            numbers = range(answer, answer + 2 * len(row.prompts))
            chosen.append(list(numbers[0::2]))
            rejected.append(list(numbers[1::2]))
            answer = numbers.stop
            continue
        for negatives in row.negatives:
            chosen.append([answer])
            rejected.append(list(range(answer + 1, answer + 1 + len(negatives))))
            answer += 1 + len(negatives)
    known = [row.reference for row in rows if row.reference is not None]
    reference_A = torch.from_numpy(np.concatenate(known)) if len(known) == len(rows) else None
    return Preferences(torch.tensor(chosen), torch.tensor(rejected), reference_A)
