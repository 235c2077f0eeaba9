"""Item scores for rewards: exact, of each target's own history, and never of the target itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrec_cli.config.training import BASELINES
from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.sequential import Sequential, build_sequential
from llmrec_cli.training.item_scores import (
    VECTORS,
    ItemScoreTable,
    compute_vectors,
    fingerprint_of_rows,
    load_vectors,
    mask_history,
    target_starts,
)
from llmrec_cli.training.rows import Row

N_LEAVES = 20
LEAF_OF_ITEM = np.array([*range(N_LEAVES), 3, 11])[::-1].copy()  # 22 items, two pairs share a leaf
EVERY_MODEL = pytest.mark.parametrize("name", ["sasrec", "gru4rec", "caser"])
NO_PROMPT = np.empty(0, np.int32)


def model(name: str) -> Sequential:
    options = BASELINES[name].model_validate({"hidden": 16})
    return build_sequential(name, options, N_LEAVES, longest=12, seed=0).eval()


def rows() -> list[Row]:
    """Windows and sequences, with and without a history before the first target."""
    rng = np.random.default_rng(0)
    sizes = [(3, 1), (0, 5), (6, 1), (0, 1), (4, 4), (1, 2)]
    items = [rng.integers(0, len(LEAF_OF_ITEM), sum(size)).tolist() for size in sizes]
    return [
        Row(NO_PROMPT, tuple(all_of[h:]), tuple(all_of[:h]), number=number)
        for number, (all_of, (h, _)) in enumerate(zip(items, sizes, strict=True))
    ]


def table(name: str, of: list[Row], batch: int = 256) -> ItemScoreTable:
    vectors = compute_vectors(model(name), of, LEAF_OF_ITEM, batch=batch)
    return ItemScoreTable(vectors, target_starts(of), model(name).head().weight_VD.detach())


def slow_probabilities(name: str, of: list[Row]) -> Tensor:
    """One forward pass per target over exactly what stands before it, in float64."""
    double = model(name).double()
    found = []
    for row in of:
        for at in range(len(row.targets)):
            before = LEAF_OF_ITEM[[*row.history, *row.targets[:at]]].tolist()
            fed = torch.tensor([[N_LEAVES, *before]])
            with torch.no_grad():
                state_D = double(fed, torch.tensor([len(before)]))[0, 0]
                logit_F = double.embedding.weight[:N_LEAVES] @ state_D
            found.append(logit_F.exp() / logit_F.exp().sum())
    return torch.stack(found)


@EVERY_MODEL
@pytest.mark.parametrize("batch", [2, 256])
def test_equals_one_pass_per_target(name: str, batch: int) -> None:
    got = table(name, rows(), batch).probabilities(range(len(rows())))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, slow_probabilities(name, rows()).float(), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(got.sum(1), torch.ones(len(got)))


@EVERY_MODEL
def test_the_targets_of_any_rows_in_any_order(name: str) -> None:
    scores = table(name, rows())
    parts = [scores.probabilities([number]) for number in (4, 0, 1)]
    assert [len(part) for part in parts] == [4, 1, 5]
    torch.testing.assert_close(scores.probabilities([4, 0, 1]), torch.cat(parts))


@EVERY_MODEL
@pytest.mark.parametrize("at", range(4))
def test_no_target_leaks_into_its_own_scores(name: str, at: int) -> None:
    """A target or what follows it may be any item: the vectors up to it stay bit for bit.

    What stands before a target counts: a changed item changes all later vectors of its row.
    """
    before = rows()
    sequence = before[4]
    items = list(sequence.targets)
    items[at:] = [(item + 1) % len(LEAF_OF_ITEM) for item in items[at:]]
    after = [*before[:4], replace(sequence, targets=tuple(items)), *before[5:]]
    one, other = (compute_vectors(model(name), of, LEAF_OF_ITEM) for of in (before, after))
    start = int(target_starts(before)[4])
    assert torch.equal(one[: start + at + 1], other[: start + at + 1])
    assert (one[start + at + 1 : start + 4] != other[start + at + 1 : start + 4]).any(1).all()
    assert torch.equal(one[start + 4 :], other[start + 4 :])


@EVERY_MODEL
def test_an_item_of_the_history_counts_for_every_target(name: str) -> None:
    before = rows()
    history = (*before[4].history[:-1], before[4].history[-1] ^ 1)
    after = [*before[:4], replace(before[4], history=history), *before[5:]]
    one, other = (compute_vectors(model(name), of, LEAF_OF_ITEM) for of in (before, after))
    start = int(target_starts(before)[4])
    assert (one[start : start + 4] != other[start : start + 4]).any(1).all()


@EVERY_MODEL
def test_the_target_of_a_window_is_no_input_at_all(name: str) -> None:
    before = rows()
    after = [
        replace(row, targets=(*row.targets[:-1], (row.targets[-1] + 1) % len(LEAF_OF_ITEM)))
        for row in before
    ]
    numbers = range(len(before))
    one, other = (table(name, of).probabilities(numbers) for of in (before, after))
    assert torch.equal(one, other)


def test_entries_of_the_history_are_zeroed_the_targets_own_never() -> None:
    """Also where the target was taken before, itself or another item of its entry."""
    of = [*rows(), Row(NO_PROMPT, (5, 5, 9), (5, 2), number=6), Row(NO_PROMPT, (0,), (18, 7))]
    assert LEAF_OF_ITEM[0] == LEAF_OF_ITEM[10] == 11
    of[-1] = replace(of[-1], history=(10, 7), number=7)
    seen_and_own = []
    for row in of:
        for at, target in enumerate(row.targets):
            seen = {int(LEAF_OF_ITEM[item]) for item in (*row.history, *row.targets[:at])}
            seen_and_own.append((seen, int(LEAF_OF_ITEM[target])))
    generator = torch.Generator().manual_seed(0)
    probability_AF = torch.rand(len(seen_and_own), N_LEAVES, generator=generator) + 0.1
    given = probability_AF.clone()
    got = mask_history(probability_AF, of, LEAF_OF_ITEM)
    assert torch.equal(probability_AF, given), "changed in place"
    for answer, (seen, own) in enumerate(seen_and_own):
        for leaf in range(N_LEAVES):
            kept = leaf == own or leaf not in seen
            assert got[answer, leaf] == (given[answer, leaf] if kept else 0), (answer, leaf)


def test_rows_out_of_place_are_refused() -> None:
    with pytest.raises(ValueError, match="numbered by their place"):
        target_starts(rows()[1:])


def test_the_fingerprint_tells_rows_apart() -> None:
    base = rows()
    first = base[0]
    moved = replace(first, history=first.history[:-1], targets=(first.history[-1], *first.targets))
    swapped = [base[1], base[0], *base[2:]]
    prints = [fingerprint_of_rows(r) for r in (base, [moved, *base[1:]], swapped, base[:-1])]
    assert len(set(prints)) == 4
    assert fingerprint_of_rows(rows()) == prints[0]


def test_vectors_are_computed_once_for_the_same_facts(tmp_path: Path) -> None:
    made: list[int] = []

    def compute() -> Tensor:
        made.append(1)
        return torch.full((3, 2), float(len(made)))

    folder = tmp_path / "scores" / "sasrec"
    first = load_vectors(folder, {"model": "a"}, compute)
    assert torch.equal(load_vectors(folder, {"model": "a"}, compute), first)
    assert len(made) == 1
    assert float(load_vectors(folder, {"model": "b"}, compute)[0, 0]) == 2
    assert float(load_vectors(folder, {"model": "b"}, compute)[0, 0]) == 2
    assert float(load_vectors(folder, {"model": "a"}, compute)[0, 0]) == 3
    with (folder / VECTORS).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    with pytest.raises(ArtefactError, match=VECTORS):
        load_vectors(folder, {"model": "a"}, compute)
