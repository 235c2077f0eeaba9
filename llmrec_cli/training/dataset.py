"""Rows of a split, and the named transforms that complete them for a method.

rows -> RowTransforms (AddNegatives, AddStoredReference) -> collator
     -> BatchTransforms (AddReference, AddItemScores), on the device -> the policy's loss
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmrec_cli.training.collator import Collator, Limits, MicroBatch, has_two_kinds
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import AnyRow


class RowTransform(Protocol):
    """Complete the rows of an update: a pure function of rows and update."""

    @property
    def runs_ahead(self) -> bool:
        """Whether it may run while an earlier update is computed.

        It may if it needs neither the policy's weights nor other processes.
        """
        ...

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """The completed rows of this process; ``step`` is the update's 0-based number."""
        ...


class BatchTransform(Protocol):
    """Complete a micro-batch on the device, right before its forward pass."""

    def __call__(self, micro: MicroBatch, rows: Sequence[AnyRow]) -> MicroBatch:
        """The completed micro-batch of these rows."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Rows of a split, numbered by their place, and the transforms that complete them."""

    rows: Sequence[AnyRow]
    row_transforms: Sequence[RowTransform] = field(default=())
    batch_transforms: Sequence[BatchTransform] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def runs_ahead(self) -> bool:
        """Whether the rows of an update can be completed before the update before it is done."""
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


_EPOCHS_KEPT = 2  # an update and those made ahead may be on both sides of an epoch's end


def draw_order(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in one epoch: a pure function of its arguments."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order_N: NDArray[np.int64] = torch.randperm(n_rows, generator=generator).numpy()
    return order_N


class Sampler:
    """Row numbers of every update: a pure function of (seed, epoch, step).

    An epoch's permutation is drawn once and kept, so that the cost of choosing an update's rows
    depends on the update's size, not on the split's.

    Args:
        n_rows: of the split.
        batch: rows of an update over all processes; the last one of an epoch may have fewer.
        seed: of the run.
        shuffle: False: rows keep their order.
    """

    def __init__(self, n_rows: int, batch: int, seed: int = 0, *, shuffle: bool = True) -> None:
        self.n_rows = n_rows
        self.batch = batch
        self.seed = seed
        self.shuffle = shuffle
        self._orders: dict[int, NDArray[np.int64]] = {}  # by epoch, the one drawn last at the end

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_rows // self.batch)

    def epoch_of(self, step: int) -> int:
        """The 0-based epoch of an update."""
        return step // self.steps_per_epoch

    def numbers_of(self, step: int) -> list[int]:
        """Row numbers of one update.

        Args:
            step: 0-based number of the update, counted over all epochs.
        """
        epoch, at = divmod(step, self.steps_per_epoch)
        chosen = slice(at * self.batch, (at + 1) * self.batch)
        if not self.shuffle:
            return list(range(self.n_rows)[chosen])
        numbers: list[int] = self._order_of(epoch)[chosen].tolist()
        return numbers

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        order_N = self._orders.get(epoch)
        if order_N is None:
            while len(self._orders) >= _EPOCHS_KEPT:
                del self._orders[next(iter(self._orders))]
            order_N = self._orders[epoch] = draw_order(self.n_rows, self.seed, epoch)
        return order_N


@dataclass(frozen=True)
class Pass:
    """Rows of one forward pass, collated on the CPU."""

    rows: list[AnyRow]
    micro: MicroBatch


@dataclass(frozen=True)
class Update:
    """This process's work of one update."""

    numbers: list[int]  # of all its rows, those of other processes too
    passes: list[Pass]  # none where there are fewer rows than processes
    spare: Pass  # computed without effect where other processes have more passes


class DataLoader:
    """Completed, collated updates; the next one is made in a thread while one is computed.

    That thread neither communicates with other processes nor reads the policy's weights.  If a row
    transform does, its updates are made when they are needed.  An exception of the thread is raised
    by ``load_update``, at the update that it belongs to.

    Args:
        steps: updates of the whole run; none after them is made.
        shared: whether each process gets its share of an update, or all of it.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        collator: Collator,
        limits: Limits,
        ranks: Ranks,
        *,
        steps: int = 1,
        shared: bool = True,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.collator = collator
        self.limits = limits
        self.ranks = ranks
        self.steps = steps
        self.shared = shared
        self.passes_vary = limits != Limits() or has_two_kinds(dataset.rows)
        """Whether processes may have different numbers of passes in an update."""
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[Update]] | None = None

    def __enter__(self) -> DataLoader:
        """Make updates ahead until the block ends."""
        if self.dataset.runs_ahead:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._ahead = None

    def load_update(self, step: int) -> Update:
        """The update with this 0-based number; begins to make the next one."""
        if self._ahead is not None and self._ahead[0] == step:
            update = self._ahead[1].result()
        else:
            update = self._make_update(step)
        self._ahead = None
        if self._thread is not None and step + 1 < self.steps:
            self._ahead = step + 1, self._thread.submit(self._make_update, step + 1)
        return update

    def iterate_passes(self, step: int) -> Iterator[Pass]:
        """This process's forward passes of an update, each collated when it is needed."""
        _, own, completed = self._complete(step)
        for part in self.collator.split(completed, self.limits) if own else []:
            yield Pass(part, self.collator(part))

    def _make_update(self, step: int) -> Update:
        numbers, own, completed = self._complete(step)
        parts = self.collator.split(completed, self.limits) if own else []
        passes = [Pass(part, self.collator(part)) for part in parts]
        if passes:
            return Update(numbers, passes, passes[-1])
        return Update(numbers, [], Pass(completed[:1], self.collator(completed[:1])))

    def _complete(self, step: int) -> tuple[list[int], bool, list[AnyRow]]:
        """Numbers of all rows, whether this process has some, and the rows that it computes."""
        numbers = self.sampler.numbers_of(step)
        mine = self.ranks.share(numbers) if self.shared else numbers
        fed = mine or numbers[:1]  # a process without rows computes one without effect
        return (
            numbers,
            bool(mine),
            self.dataset.complete_rows([self.dataset.rows[n] for n in fed], step),
        )
