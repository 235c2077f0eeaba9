"""A conventional model's item probabilities for the history before every training target.

The model's states are stored, one vector per target (34 MB where all probabilities would be 5 GB).
One product per batch with the item embeddings gives the exact probabilities.

    rows -> history_vectors, stored once -> ItemScoreTable -> AddItemScores (micro-batches)

Shape suffixes: Q targets of all rows, A targets of some rows, F catalogue entries (leaves), D model
width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.base import batches_by_length
from llmrec_cli.models.sequential import Sequential, states_at
from llmrec_cli.tensors.trie import leaf_mass
from llmrec_cli.training.collator import MicroBatch
from llmrec_cli.training.rows import AnyRow, Row
from llmrec_cli.utils.files import (
    FACTS_FILE,
    check_folder,
    read_json,
    translate_tensor_errors,
    write_folder,
    write_json,
    write_safetensors,
)
from llmrec_cli.utils.locks import lock_to_make

VECTORS = "vectors.safetensors"


@dataclass(frozen=True)
class ItemScoreTable:
    """Probabilities of every catalogue entry after each target's own history."""

    vector_QD: Tensor
    start_R1: Tensor  # targets of row r: start_R1[r] .. start_R1[r + 1]
    weight_FD: Tensor  # item embeddings, in order of the entries

    def probabilities(self, numbers: Sequence[int]) -> Tensor:
        """Softmax over the catalogue for each target of these rows, in order: [A, F] fp32."""
        ranges = [range(int(self.start_R1[n]), int(self.start_R1[n + 1])) for n in numbers]
        at_A = torch.tensor([q for targets in ranges for q in targets], dtype=torch.int64)
        vector_AD = self.vector_QD[at_A].to(self.weight_FD.device)
        return torch.softmax((vector_AD @ self.weight_FD.T).float(), dim=1)


@dataclass(frozen=True)
class AddItemScores:
    """A batch transform: item probabilities of each target's history, as prefix sums.

    Args:
        ranges: of ``tensors.trie.leaf_ranges``, on the device of the losses.
        leaf_of_item_I: entry of each catalogue item.
        keeps_history: whether entries of a target's history keep their probability.
    """

    table: ItemScoreTable
    ranges: tuple[Tensor, Tensor]
    leaf_of_item_I: NDArray[Any]
    keeps_history: bool

    def __call__(self, micro: MicroBatch, rows: Sequence[AnyRow]) -> MicroBatch:
        own = [row for row in rows if isinstance(row, Row)]
        if len(own) < len(rows):
            return micro  # texts have no item probabilities
        probability_AF = self.table.probabilities([row.number for row in own])
        if not self.keeps_history:
            probability_AF = mask_history(probability_AF, own, self.leaf_of_item_I)
        mass = leaf_mass(probability_AF.to(micro.input_ids_BT.device), self.ranges)
        return replace(micro, batch=replace(micro.batch, mass=mass))


def mask_history(
    probability_AF: Tensor, rows: Sequence[Row], leaf_of_item_I: NDArray[Any]
) -> Tensor:
    """The probabilities with 0 for the entries before each target, except the target's own."""
    kept_AF = torch.ones_like(probability_AF)
    answer = 0
    for row in rows:
        leaves = leaf_of_item_I[[*row.history, *row.targets]]
        for at in range(len(row.history), len(leaves)):
            kept_AF[answer, leaves[:at]] = 0
            kept_AF[answer, leaves[at]] = 1
            answer += 1
    return probability_AF * kept_AF


def target_starts(rows: Sequence[Row]) -> Tensor:
    """``start_R1`` of an ``ItemScoreTable``.

    Raises:
        ValueError: the rows are not numbered by their place.
    """
    if any(row.number != place for place, row in enumerate(rows)):
        raise ValueError("rows must be numbered by their place: 0, 1, ...")
    counts = torch.tensor([0, *(len(row.targets) for row in rows)])
    return counts.cumsum(0)


def compute_vectors(
    model: Sequential,
    rows: Sequence[Row],
    leaf_of_item_I: NDArray[Any],
    *,
    batch: int = 256,
    advance: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """The state of a sequential model before each target: vector_QD fp32, on the CPU.

    A row's history and targets go in as one causal sequence, and a target's vector is taken from
    the place before it: no target, and nothing after it, is in its own score's input.

    Args:
        leaf_of_item_I: entry of each catalogue item.
    """
    lengths = [len(row.history) + len(row.targets) for row in rows]
    vectors: list[Tensor] = [torch.empty(0)] * len(rows)
    for part in batches_by_length(lengths, batch):
        found = _compute_vectors([rows[r] for r in part], model, leaf_of_item_I)
        for r, vector_AD in zip(part, found, strict=True):
            vectors[r] = vector_AD
        advance(len(part))
    return torch.cat(vectors)


def _compute_vectors(
    rows: Sequence[Row], model: Sequential, leaf_of_item_I: NDArray[Any]
) -> tuple[Tensor, ...]:
    fed = [[*row.history, *row.targets[:-1]] for row in rows]  # nothing follows the last target
    leaves = [leaf_of_item_I[np.asarray(items, dtype=np.int64)].tolist() for items in fed]
    places = [range(len(r.history), len(r.history) + len(r.targets)) for r in rows]
    state_AD = states_at(model, leaves, places).float().cpu()
    return torch.split(state_AD, [len(row.targets) for row in rows])


def fingerprint_of_rows(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows' histories and targets."""
    digest = hashlib.sha256()
    for row in rows:
        for items in (row.history, row.targets):
            digest.update(np.array([len(items), *items], dtype=np.int64).tobytes())
    return digest.hexdigest()


def load_vectors(
    folder: Path,
    facts: Mapping[str, str],
    compute: Callable[[], Tensor],
    say: Callable[[str], object] = lambda text: None,
) -> Tensor:
    """Vectors computed before from the same model, data and rows; else computed and stored.

    Args:
        say: receives a line where another process computes them, and this one waits.

    Raises:
        ArtefactError: the stored vectors are damaged.
    """
    with suppress(ArtefactError):  # perhaps being replaced: looked at again below
        if (found := _read_vectors(folder, facts)) is not None:
            return found
    with lock_to_make(folder, say):
        if (found := _read_vectors(folder, facts)) is not None:
            return found
        vector_QD = compute()

        def fill(temporary: Path) -> None:
            write_safetensors(temporary / VECTORS, {"vectors": vector_QD})
            write_json(temporary / FACTS_FILE, dict(facts))

        write_folder(folder, fill)
    return vector_QD


def _read_vectors(folder: Path, facts: Mapping[str, str]) -> Tensor | None:
    """The stored vectors; None where there are none, or they are of another model or rows.

    Raises:
        ArtefactError: they are damaged.
    """
    if not folder.is_dir():
        return None
    check_folder(folder)
    if read_json(folder / FACTS_FILE) != dict(facts):
        return None
    with translate_tensor_errors(folder / VECTORS):
        return load_file(folder / VECTORS)["vectors"]
