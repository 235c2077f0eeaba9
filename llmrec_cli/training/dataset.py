"""Rows of a split, and the named transforms that complete them for a method.

rows -> RowTransforms (AddNegatives, AddStoredReference) -> collator
     -> BatchTransforms (AddReference, AddItemScores), on the device -> the policy's loss
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmrec_cli.training.collator import MicroBatch
from llmrec_cli.training.rows import AnyRow


class RowTransform(Protocol):
    """Completes the rows of an update: a pure function of rows and update."""

    @property
    def runs_ahead(self) -> bool:
        """Whether it may run while an earlier update is computed.

        That is so where it asks neither the policy's weights nor other processes.
        """
        ...

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """The completed rows of this process; ``step`` is the update's 0-based number."""
        ...


class BatchTransform(Protocol):
    """Adds to a micro-batch on the device, right before its forward pass."""

    def __call__(self, micro: MicroBatch, rows: Sequence[AnyRow]) -> MicroBatch:
        """The completed micro-batch of these rows."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Rows of a split, numbered by their place, and what completes them."""

    rows: Sequence[AnyRow]
    row_transforms: Sequence[RowTransform] = field(default=())
    batch_transforms: Sequence[BatchTransform] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def runs_ahead(self) -> bool:
        """Whether the rows of an update can be completed before the update in front is done."""
        return all(transform.runs_ahead for transform in self.row_transforms)

    def complete_rows(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """Some rows of update ``step``, through every row transform in turn."""
        completed = list(rows)
        for transform in self.row_transforms:
            completed = transform(completed, step)
        return completed

    def complete_batch(self, micro: MicroBatch, rows: Sequence[AnyRow]) -> MicroBatch:
        """A micro-batch on the device, through every batch transform in turn."""
        for transform in self.batch_transforms:
            micro = transform(micro, rows)
        return micro
