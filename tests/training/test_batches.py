"""Batches: places, nodes, the cut of forced tails, and the order of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator, Limits, MicroBatch, count_tokens, split_rows
from llmrec_cli.training.dataset import Sampler, draw_order
from llmrec_cli.training.rows import Row
from tests.tensors.trie_walk import walk

CATALOGUE = [[5, 6, 7, 2], [5, 6, 8, 9, 9, 2], [5, 2], [6, 6, 6, 6, 2], [5, 6, 7, 2]]


def rows() -> list[Row]:
    prompts = [[1, 5, 2], [1], [1, 6, 6, 6, 6, 2]]
    targets = [(0,), (3, 1), (2, 4, 1)]
    return [Row(np.array(p, dtype=np.int32), t) for p, t in zip(prompts, targets, strict=True)]


@pytest.mark.parametrize("cut", [False, True])
def test_every_position_predicts_its_token_from_the_one_before(cut: bool) -> None:
    trie = build_trie(CATALOGUE)
    micro = Collator(trie, cut_forced=cut)(rows())
    width = micro.input_ids_BT.shape[1]
    batch = micro.batch
    found: dict[int, list[tuple[int, int]]] = {r: [] for r in range(3)}
    row_of_answer = [r for r, row in enumerate(rows()) for _ in row.targets]
    for take, target, node, answer in zip(
        micro.take_P.tolist(),
        batch.target_P.tolist(),
        batch.node_P.tolist(),
        batch.answer_P.tolist(),
        strict=True,
    ):
        r = row_of_answer[answer]
        assert take // width == r
        found[r].append((take % width, target))
        full = [*rows()[r].prompt.tolist(), *(x for i in rows()[r].targets for x in CATALOGUE[i])]
        at = take % width + 1
        assert full[at] == target
        assert micro.input_ids_BT[r, :at].tolist() == full[:at]  # everything before it is fed
        starts = np.cumsum([len(rows()[r].prompt), *(len(CATALOGUE[i]) for i in rows()[r].targets)])
        begin = max(s for s in starts if s <= at)
        assert node == walk(trie, full[begin:at])
    assert batch.positions == sum(len(CATALOGUE[i]) for row in rows() for i in row.targets)
    if not cut:
        assert len(batch.target_P) == batch.positions


def test_the_cut_drops_only_forced_positions_and_feeds_less() -> None:
    trie = build_trie(CATALOGUE)
    whole, cut = (Collator(trie, cut_forced=c)(rows()) for c in (False, True))

    def branching(made: MicroBatch) -> int:
        return int((trie.fan_out(made.batch.node_P) > 1).sum())

    assert branching(cut) == branching(whole)
    assert cut.tokens < whole.tokens
    assert len(cut.batch.target_P) < len(whole.batch.target_P)


def test_a_catalogue_of_one_item_has_nothing_to_learn_but_still_collates() -> None:
    trie = build_trie([[5, 2]])
    micro = Collator(trie, cut_forced=True)([Row(np.array([1], dtype=np.int32), (0,))])
    assert len(micro.take_P) == 0
    assert micro.batch.positions == 2


def rows_of_step(n_rows: int, batch: int, seed: int, step: int) -> list[int]:
    """The obvious reference: the epoch's whole permutation, drawn for this update alone."""
    epoch, at = divmod(step, -(-n_rows // batch))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(n_rows, generator=generator).tolist()
    return order[at * batch : (at + 1) * batch]


def test_an_epoch_visits_every_row_once_and_order_depends_on_seed_and_epoch_only() -> None:
    n, sampler = 103, Sampler(103, 10, 7)
    seen = [i for step in range(11) for i in sampler.numbers_of(step)]
    assert sorted(seen) == list(range(n))
    assert sampler.numbers_of(10) == draw_order(n, 7, 0)[100:].tolist()
    assert sampler.numbers_of(3) == Sampler(103, 10, 7).numbers_of(3)
    assert sampler.numbers_of(3) != Sampler(103, 10, 8).numbers_of(3)
    assert sampler.numbers_of(3) != sampler.numbers_of(14)
    assert not np.array_equal(draw_order(n, 7, 0), draw_order(n, 7, 1))


@pytest.mark.parametrize("seed", [0, 3, 2026])
@pytest.mark.parametrize(("n", "batch"), [(1, 1), (22, 8), (103, 10), (100, 10), (64, 100)])
def test_kept_permutations_give_the_rows_of_permutations_drawn_anew(
    n: int, batch: int, seed: int
) -> None:
    """In turn, from the middle of a run on, to and fro over the ends of epochs, and at random."""
    steps = -(-n // batch)
    orders = {
        "in turn": list(range(4 * steps)),
        "resumed": list(range(2 * steps + steps // 2, 4 * steps)),
        "looking ahead": [at for step in range(3 * steps) for at in (step, step + 1, step + 3)],
        "at random": np.random.default_rng(0).integers(0, 9 * steps, 40).tolist(),
    }
    for name, asked in orders.items():
        sampler = Sampler(n, batch, seed)
        for step in asked:
            assert sampler.numbers_of(step) == rows_of_step(n, batch, seed, step), name


def test_rows_that_are_not_shuffled_come_as_they_stand() -> None:
    sampler = Sampler(7, 3, shuffle=False)
    assert [sampler.numbers_of(step) for step in (0, 2, 3)] == [[0, 1, 2], [6], [0, 1, 2]]


@pytest.mark.parametrize(("first", "epochs"), [(0, 5), (13, 4)])
def test_an_epochs_permutation_is_drawn_once_whoever_looks_ahead(
    first: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing an update's rows must not cost what the split holds, also after a resumption."""
    drawn: list[int] = []

    def counting(n_rows: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
        drawn.append(epoch)
        return draw_order(n_rows, seed, epoch)

    monkeypatch.setattr("llmrec_cli.training.dataset.draw_order", counting)
    sampler = Sampler(100, 10, 0)
    for step in range(first, 48):
        for at in (step, step + 1, step + 2):  # an update, the one made ahead, and mining
            sampler.numbers_of(at)
        sampler.numbers_of(step)
    assert drawn == list(range(5 - epochs, 5))


LENGTHS = [5, 1, 9, 2, 8, 1]


def parts_of(rows: int | None = None, tokens: int | None = None) -> list[list[int]]:
    many = [Row(np.zeros(n, dtype=np.int32), (0,)) for n in LENGTHS]
    parts = split_rows(many, LENGTHS, Limits(rows, tokens))
    return [[len(row.prompt) for row in part if isinstance(row, Row)] for part in parts]


def test_micro_batches_hold_every_row_once_with_like_lengths_together() -> None:
    assert parts_of(rows=2) == [[9, 8], [5, 2], [1, 1]]
    assert parts_of() == [sorted(LENGTHS, reverse=True)]
    unlimited = Collator(build_trie(CATALOGUE), cut_forced=False).split(rows(), Limits())
    (part,) = unlimited
    assert [row.targets for row in part if isinstance(row, Row)] == [(0,), (3, 1), (2, 4, 1)]


def test_a_limit_on_tokens_counts_the_padding_and_lets_a_longer_row_travel_alone() -> None:
    assert parts_of(tokens=8) == [[9], [8], [5], [2, 1, 1]]
    assert parts_of(tokens=18) == [[9, 8], [5, 2, 1], [1]]
    assert parts_of(tokens=18, rows=2) == [[9, 8], [5, 2], [1, 1]]


def test_the_length_of_a_row_is_what_the_model_is_fed_and_the_last_token() -> None:
    collate = Collator(build_trie(CATALOGUE), cut_forced=False)
    for row, length in zip(rows(), count_tokens(rows(), collate.trie), strict=True):
        assert length == collate([row]).tokens + 1


def test_rows_split_by_tokens_carry_less_padding_than_equal_numbers_of_rows() -> None:
    trie = build_trie(CATALOGUE)
    prompts = [1, 1, 1, 1, 1, 1, 40, 40]
    many = [Row(np.ones(n, dtype=np.int32), (0,)) for n in prompts]
    collate = Collator(trie, cut_forced=False)
    tokens = [
        sum(collate(part).tokens for part in collate.split(many, limits))
        for limits in (Limits(rows=4), Limits(tokens=90))
    ]
    assert tokens[1] < 0.7 * tokens[0]
