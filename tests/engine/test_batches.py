"""Batches: places, nodes, the cut of forced tails, and the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trie_walk import walk

from llmrec_cli.engine.answers import lengths
from llmrec_cli.engine.batches import Limits, epoch_order, micro_batches, rows_of_step
from llmrec_cli.engine.collate import Collator
from llmrec_cli.engine.rows import Row
from llmrec_cli.tensors.trie import build_trie

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
    branching = lambda m: int((trie.fan_out(m.batch.node_P) > 1).sum())  # noqa: E731
    assert branching(cut) == branching(whole)
    assert cut.tokens < whole.tokens
    assert len(cut.batch.target_P) < len(whole.batch.target_P)


def test_a_catalogue_of_one_item_has_nothing_to_learn_but_still_collates() -> None:
    trie = build_trie([[5, 2]])
    micro = Collator(trie, cut_forced=True)([Row(np.array([1], dtype=np.int32), (0,))])
    assert len(micro.take_P) == 0
    assert micro.batch.positions == 2


def test_an_epoch_visits_every_row_once_and_order_depends_on_seed_and_epoch_only() -> None:
    n, batch = 103, 10
    seen = [i for step in range(11) for i in rows_of_step(n, batch, 7, step)]
    assert sorted(seen) == list(range(n))
    assert rows_of_step(n, batch, 7, 10) == epoch_order(n, 7, 0)[100:].tolist()
    assert rows_of_step(n, batch, 7, 3) == rows_of_step(n, batch, 7, 3)
    assert rows_of_step(n, batch, 7, 3) != rows_of_step(n, batch, 8, 3)
    assert rows_of_step(n, batch, 7, 3) != rows_of_step(n, batch, 7, 14)
    assert not torch.equal(epoch_order(n, 7, 0), epoch_order(n, 7, 1))


LENGTHS = [5, 1, 9, 2, 8, 1]


def parts_of(rows: int | None = None, tokens: int | None = None) -> list[list[int]]:
    many = [Row(np.zeros(n, dtype=np.int32), (0,)) for n in LENGTHS]
    parts = micro_batches(many, LENGTHS, Limits(rows, tokens))
    return [[len(row.prompt) for row in part] for part in parts]


def test_micro_batches_hold_every_row_once_with_like_lengths_together() -> None:
    assert parts_of(rows=2) == [[9, 8], [5, 2], [1, 1]]
    assert parts_of() == [sorted(LENGTHS, reverse=True)]
    unlimited = Collator(build_trie(CATALOGUE), cut_forced=False).split(rows(), Limits())
    assert [[row.targets for row in part] for part in unlimited] == [[(0,), (3, 1), (2, 4, 1)]]


def test_a_limit_on_tokens_counts_the_padding_and_lets_a_longer_row_travel_alone() -> None:
    assert parts_of(tokens=8) == [[9], [8], [5], [2, 1, 1]]
    assert parts_of(tokens=18) == [[9, 8], [5, 2, 1], [1]]
    assert parts_of(tokens=18, rows=2) == [[9, 8], [5, 2], [1, 1]]


def test_the_length_of_a_row_is_what_the_model_is_fed_and_the_last_token() -> None:
    collate = Collator(build_trie(CATALOGUE), cut_forced=False)
    for row, length in zip(rows(), lengths(rows(), collate.trie), strict=True):
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
