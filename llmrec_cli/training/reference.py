"""The reference model: weights that the policy had, on the same base weights.

Only weights that training changes are kept twice (an adapter, or all weights of a fully tuned
model).  For a reference pass the two are exchanged.  The lineage is base -> parent's weights ->
policy.

    precompute: every update of the run, once -> ReferenceStore -> AddStoredReference (rows)
    online:     AddReference (micro-batches), in front of every forward pass
    moving:     MoveReference (in front of the rows' transforms): copies of the policy, stored
    validation: KeepReference (rows), computed once, with the parent's weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from llmrec_cli.errors import ArtefactError
from llmrec_cli.methods.contract import Batch, Forward, Head
from llmrec_cli.models.language_model import inference_mode
from llmrec_cli.training.checkpoint import (
    all_of,
    delete_step,
    remove_leftover_steps,
    restore_weights,
    step_of,
    write_trained,
)
from llmrec_cli.training.collator import Collator, Limits, MicroBatch
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import AnyRow, ComparedRow, FloatArray, PairRow, Row, TextRow
from llmrec_cli.utils.files import (
    FACTS_FILE,
    check_folder,
    read_json,
    translate_tensor_errors,
    write_folder,
    write_json,
    write_safetensors,
)
from llmrec_cli.utils.progress import Progress

LogProbs = Callable[[Forward, Batch], Tensor]
STORED = "reference.safetensors"


class Reference:
    """A copy of the weights that a policy has now, for log-probabilities during training.

    Args:
        policy: with its parent's weights; ``policy.head()`` gives its output head.
        log_probs_of: the method's ``log pi`` of each answer, [A], or of each position, [P].
    """

    def __init__(self, policy: Any, log_probs_of: LogProbs) -> None:
        self.policy = policy
        self.log_probs_of = log_probs_of
        trained = [p for p in policy.parameters() if p.requires_grad]
        self._pairs = [(p, p.detach().clone()) for p in trained]

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with the reference's weights, in evaluation mode and without gradients."""
        with inference_mode(self.policy):
            self._exchange()
            try:
                yield self.policy
            finally:
                self._exchange()

    def log_probs(self, micro: MicroBatch) -> Tensor:
        """``log pi_ref`` of a micro-batch's answers or positions: [A] or [P], nats, fp32."""
        with self.active() as policy:
            hidden_XPD = policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)
            head: Head = self.policy.head()
            return self.log_probs_of(Forward(hidden_XPD[0], head), micro.batch)

    def take_policy_weights(self) -> None:
        """From now on the reference is the policy as it is."""
        with torch.no_grad():
            for parameter, kept in self._pairs:
                kept.copy_(parameter)

    def load(self, folder: Path) -> None:
        """From now on the reference has the weights that ``write_trained`` stored.

        Raises:
            ArtefactError: they are damaged, or another model's.
        """
        check_folder(folder)
        with self.active() as policy:
            restore_weights(policy, folder)

    def _exchange(self) -> None:
        for parameter, kept in self._pairs:
            parameter.data, kept.data = kept.data, parameter.data


class MoveReference:
    """A row transform that leaves the rows as they are, and moves the reference when it is time.

    Before every update that ``every`` divides, the reference takes the policy's weights.  They are
    stored: a run that is resumed between two moves reads those of the last one.  A run that is
    resumed before a stored move (it was killed before its next checkpoint) reads them too.  Stored
    weights are deleted when no checkpoint is left that continues after them.

    Args:
        every: updates between two moves, >= 1.
        folder: where the weights are stored, ``step-N``.
        checkpoints: the folder of the run's checkpoints.
        writes: whether this process stores and deletes; all move together.
    """

    runs_ahead = False  # it reads the policy's weights

    def __init__(
        self,
        reference: Reference,
        every: int,
        *,
        folder: Path,
        checkpoints: Path,
        writes: bool = True,
    ) -> None:
        self.reference = reference
        self.every = every
        self.folder = folder
        self.checkpoints = checkpoints
        self.writes = writes
        self._begun = 0  # the update before which the reference moved last; 0: it is the parent

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """The same rows.

        Raises:
            ArtefactError: stored weights are damaged, or missing.
        """
        begun = step - step % self.every
        if begun != self._begun:
            self._move(begun, step)
            self._begun = begun
        return list(rows)

    def _move(self, begun: int, step: int) -> None:
        path = self.folder / f"step-{begun}"
        if path.is_dir():
            self.reference.load(path)
        elif step == begun:
            self.reference.take_policy_weights()
            if self.writes:
                write_trained(path, self.reference.policy)
        else:
            raise ArtefactError(
                f"{path}: missing: the reference of update {step + 1}; delete the run's folder and "
                "start it again"
            )
        if self.writes:
            self._prune(begun)

    def _prune(self, begun: int) -> None:
        """Delete what no checkpoint needs to continue."""
        remove_leftover_steps(self.folder)
        steps = [step_of(checkpoint) for checkpoint in all_of(self.checkpoints)]
        needed = {step - step % self.every for step in steps}
        for path in all_of(self.folder):
            if step_of(path) < begun and step_of(path) not in needed:
                delete_step(path)


def with_reference(micro: MicroBatch, reference: Tensor) -> MicroBatch:
    """The same micro-batch with the reference's log-probabilities."""
    return replace(micro, batch=replace(micro.batch, reference=reference))


def only_compared_rows(rows: Sequence[AnyRow]) -> list[ComparedRow]:
    """The rows that have rejected answers.

    Raises:
        TypeError: one has a single answer; no method with a reference gets such rows.
    """
    compared = [row for row in rows if not isinstance(row, TextRow)]
    if len(compared) < len(rows):
        raise TypeError("a text row has no rejected answers")
    return compared


def count_answers(row: ComparedRow) -> int:
    """How many answers a row lays out for a preference method."""
    if isinstance(row, PairRow):
        return 2 * len(row.prompts)
    return sum(1 + len(rejected) for rejected in row.negatives)


def compute_reference(
    rows: Sequence[AnyRow],
    reference: Reference,
    collate: Collator,
    limits: Limits,
    device: torch.device,
    advance: Callable[[int], object] = lambda n: None,
) -> list[AnyRow]:
    """The rows with ``reference`` filled in, computed in the micro-batches of training.

    Args:
        advance: called after each micro-batch with its number of rows.
    """
    found: dict[int, AnyRow] = {}
    for part in map(only_compared_rows, collate.split(rows, limits)):
        value_A = reference.log_probs(collate(part).to(device)).double().cpu().numpy()
        ends = np.cumsum([count_answers(row) for row in part])
        for row, value in zip(part, np.split(value_A, ends[:-1]), strict=True):
            found[id(row)] = replace(row, reference=value)
        advance(len(part))
    return [found[id(row)] for row in rows]


class ReferenceStore:
    """What ``reference = "precompute"`` keeps: negatives and log-probabilities of every update.

    There is one file per rank, with a hash, written once.  A resumed run reads it.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.facts = facts
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}

    def load(self) -> bool:
        """Read what an earlier start of this run stored; False where there is nothing.

        Raises:
            ArtefactError: it is damaged, or was made from other inputs.
        """
        if not self.folder.is_dir():
            return False
        check_folder(self.folder)
        found = read_json(self.folder / FACTS_FILE)
        if found != self.facts:
            raise ArtefactError(f"{self.folder}: made from {found}, now {self.facts}; delete it")
        with translate_tensor_errors(self.folder / STORED):
            self._arrays = load_file(self.folder / STORED)
        return True

    def save(self, steps: Sequence[Sequence[AnyRow]]) -> None:
        """Store the rows of every update."""
        for step, rows in enumerate(steps):
            compared = only_compared_rows(rows)
            known = [row.reference for row in compared if row.reference is not None]
            negatives = [n for row in rows if isinstance(row, Row) for n in row.negatives]
            self._arrays[f"reference-{step}"] = np.concatenate(known)
            self._arrays[f"negatives-{step}"] = np.asarray(negatives, dtype=np.int32)

        def fill(temporary: Path) -> None:
            tensors = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
            write_safetensors(temporary / STORED, tensors)
            write_json(temporary / FACTS_FILE, self.facts)

        write_folder(self.folder, fill)

    def fill(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """Rows of one update (as in ``save``, without reference) with the stored figures.

        Raises:
            ArtefactError: none are stored.
        """
        names = f"negatives-{step}", f"reference-{step}"
        if not self._arrays.keys() >= set(names):
            raise ArtefactError(f"{self.folder / STORED}: has no {' and '.join(names)}; delete it")
        negatives, values = self._arrays[names[0]].tolist(), self._arrays[names[1]]
        filled: list[AnyRow] = []
        at = target = 0
        for row in only_compared_rows(rows):
            if isinstance(row, Row):
                own = negatives[target : target + len(row.targets)]
                target += len(row.targets)
                row = replace(row, negatives=tuple(map(tuple, own)))
            size = count_answers(row)
            filled.append(replace(row, reference=values[at : at + size]))
            at += size
        return filled


def store_reference(
    store: ReferenceStore,
    data: Dataset,
    sampler: Sampler,
    steps: int,
    compute_rows: Callable[[Sequence[AnyRow], Callable[[int], object]], list[AnyRow]],
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Compute the reference for this process's rows of every update, or read the stored one.

    Args:
        data: training rows, and the transforms that add negatives.
        steps: updates of the whole run.
        compute_rows: gets the completed rows, and what to call as ``compute_reference`` does.
    """
    if not ranks.most(not store.load()):
        return  # mining is work of all: where one lacks its file, all do it again
    with progress.track("reference", steps, unit="updates") as advance:
        computed = []
        for step in range(steps):
            rows = [data.rows[number] for number in ranks.pick_share(sampler.numbers_of(step))]
            completed = data.complete_rows(rows, step)
            with advance.within("rows", len(completed)) as done:
                computed.append(compute_rows(completed, done))
            advance(1)
    store.save(computed)


@dataclass(frozen=True)
class AddStoredReference:
    """A row transform: the stored negatives and log-probabilities of an update."""

    store: ReferenceStore
    runs_ahead: bool = True

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        return self.store.fill(rows, step)


@dataclass(frozen=True)
class KeepReference:
    """A row transform for rows that are always the same: log-probabilities, computed once."""

    reference: Reference
    collate: Collator
    limits: Limits
    device: torch.device
    progress: Progress
    runs_ahead: bool = False  # the reference shares its base weights with the policy
    _known: dict[int, FloatArray] = field(default_factory=dict)  # by row number

    def compute_rows(
        self, rows: Sequence[AnyRow], advance: Callable[[int], object]
    ) -> list[AnyRow]:
        """The rows with ``reference`` filled in, by the weights that the reference has now."""
        return compute_reference(
            rows, self.reference, self.collate, self.limits, self.device, advance
        )

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        if not all(row.number in self._known for row in rows):
            with self.progress.track("validation, reference", len(rows), unit="rows") as advance:
                found = only_compared_rows(self.compute_rows(rows, advance))
            self._known.update({r.number: r.reference for r in found if r.reference is not None})
        return [replace(row, reference=self._known[row.number]) for row in only_compared_rows(rows)]


@dataclass(frozen=True)
class AddReference:
    """A batch transform: log-probabilities of the reference, where the rows have none yet."""

    reference: Reference

    def __call__(self, micro: MicroBatch, rows: Sequence[AnyRow]) -> MicroBatch:
        if micro.batch.reference is not None:
            return micro
        return with_reference(micro, self.reference.log_probs(micro))
