"""The reference model: the policy as it began, frozen, on the same base weights.

Only what training changes is kept twice (an adapter, or all weights of a fully tuned model); for a
reference pass the two are exchanged.  The lineage is base -> parent's weights -> policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from llmrec_cli.engine.batches import Limits
from llmrec_cli.engine.collate import Collator, MicroBatch
from llmrec_cli.engine.rows import AnyRow, PairRow, Row
from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import (
    FACTS_FILE,
    check_folder,
    read_json,
    tensors_of,
    write_folder,
    write_json,
    write_safetensors,
)
from llmrec_cli.methods.contract import Batch, Forward, Head
from llmrec_cli.models.policy import inference

LogProbs = Callable[[Forward, Batch], Tensor]
STORED = "reference.safetensors"


class Reference:
    """The weights that a policy has now, to be asked for log-probabilities while it is trained.

    Args:
        policy: at its parent's result; ``policy.head()`` gives its output head.
        answer_log_probs: the method's ``log pi(y | x)`` of each answer of a batch, [A].
    """

    def __init__(self, policy: Any, answer_log_probs: LogProbs) -> None:
        self.policy = policy
        self.answer_log_probs = answer_log_probs
        trained = [p for p in policy.parameters() if p.requires_grad]
        self._pairs = [(p, p.detach().clone()) for p in trained]

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with the reference's weights, in evaluation mode and without gradients."""
        with inference(self.policy):
            self._exchange()
            try:
                yield self.policy
            finally:
                self._exchange()

    def log_probs(self, micro: MicroBatch) -> Tensor:
        """``log pi_ref`` of each answer of a micro-batch: [A], nats, fp32."""
        with self.active() as policy:
            hidden_XPD = policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)
            head: Head = self.policy.head()
            return self.answer_log_probs(Forward(hidden_XPD[0], head), micro.batch)

    def _exchange(self) -> None:
        for parameter, kept in self._pairs:
            parameter.data, kept.data = kept.data, parameter.data


def with_reference(micro: MicroBatch, reference_A: Tensor) -> MicroBatch:
    """The same micro-batch with the reference's log-probabilities in it."""
    known = micro.batch.preferences and replace(micro.batch.preferences, reference_A=reference_A)
    return replace(micro, batch=replace(micro.batch, preferences=known))


def answers_of(row: AnyRow) -> int:
    """How many answers a row lays out for a preference method."""
    if isinstance(row, PairRow):
        return 2 * len(row.prompts)
    return sum(1 + len(rejected) for rejected in row.negatives)


def log_probs_of(
    rows: Sequence[AnyRow],
    reference: Reference,
    collate: Collator,
    limits: Limits,
    device: torch.device,
) -> list[AnyRow]:
    """The rows with ``reference`` filled in, computed in the micro-batches of training."""
    found: dict[int, AnyRow] = {}
    for part in collate.split(rows, limits):
        value_A = reference.log_probs(collate(part).to(device)).double().cpu().numpy()
        ends = np.cumsum([answers_of(row) for row in part])
        for row, value in zip(part, np.split(value_A, ends[:-1]), strict=True):
            found[id(row)] = replace(row, reference=value)
    return [found[id(row)] for row in rows]


class Store:
    """What ``reference = "precompute"`` keeps: negatives and log-probabilities of every update.

    One file per rank with a hash, written once; a resumed run reads what it finds.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.facts = facts
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}

    def load(self) -> bool:
        """Read what an earlier start of this run stored; False where there is nothing.

        Raises:
            ArtefactError: it is damaged, or was made from something else.
        """
        if not self.folder.is_dir():
            return False
        check_folder(self.folder)
        found = read_json(self.folder / FACTS_FILE)
        if found != self.facts:
            raise ArtefactError(f"{self.folder}: made from {found}, now {self.facts}; delete it")
        with tensors_of(self.folder / STORED):
            self._arrays = load_file(self.folder / STORED)
        return True

    def save(self, steps: Sequence[Sequence[AnyRow]]) -> None:
        """Store the rows of every update."""
        for step, rows in enumerate(steps):
            known = [row.reference for row in rows if row.reference is not None]
            negatives = [n for row in rows if isinstance(row, Row) for n in row.negatives]
            self._arrays[f"reference-{step}"] = np.concatenate(known)
            self._arrays[f"negatives-{step}"] = np.asarray(negatives, dtype=np.int32)

        def fill(temporary: Path) -> None:
            tensors = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
            write_safetensors(temporary / STORED, tensors)
            write_json(temporary / FACTS_FILE, self.facts)

        write_folder(self.folder, fill)

    def fill(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        """Rows of one update (as in ``save``, without reference) with what is stored of them.

        Raises:
            ArtefactError: nothing is.
        """
        names = f"negatives-{step}", f"reference-{step}"
        if not self._arrays.keys() >= set(names):
            raise ArtefactError(f"{self.folder / STORED}: has no {' and '.join(names)}; delete it")
        negatives, values = self._arrays[names[0]].tolist(), self._arrays[names[1]]
        filled: list[AnyRow] = []
        at = target = 0
        for row in rows:
            if isinstance(row, Row):
                own = negatives[target : target + len(row.targets)]
                target += len(row.targets)
                row = replace(row, negatives=tuple(map(tuple, own)))
            size = answers_of(row)
            filled.append(replace(row, reference=values[at : at + size]))
            at += size
        return filled
