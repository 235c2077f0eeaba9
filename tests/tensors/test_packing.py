"""Packing against the obvious: every token sees exactly the tokens before it in its sequence."""

from __future__ import annotations

import random

import pytest
import torch

from llmrec_cli.tensors.packing import Packed, pack, sees


def padded(sequences: list[list[int]]) -> torch.Tensor:
    width = max(map(len, sequences))
    return torch.tensor([tokens + [-1] * (width - len(tokens)) for tokens in sequences])


def packed(sequences: list[list[int]], rows: list[int]) -> Packed:
    return pack(padded(sequences), torch.tensor(rows))


def test_a_prompt_and_two_answers_by_hand() -> None:
    # prompt 7 8, answers 1 2 and 1 3: the answers share the prompt and their first token
    laid = packed([[7, 8, 1, 3], [7, 8, 1, 2]], [0, 0])
    assert laid.input_ids_BT.tolist() == [[7, 8, 1, 2, 3]]
    assert laid.tree.position_BT.tolist() == [[0, 1, 2, 3, 3]]
    assert laid.tree.end_BT.tolist() == [[5, 5, 5, 4, 5]]
    assert laid.slot_SW.tolist() == [[0, 1, 2, 4], [0, 1, 2, 3]]
    assert sees(laid.tree.end_BT)[0, 4].tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("seed", range(40))
def test_every_token_sees_its_own_sequence_and_nothing_else(seed: int) -> None:
    draw = random.Random(seed)
    rows = sorted([r for r in range(3)] + [draw.randrange(3) for _ in range(9)])
    draw.shuffle(rows)
    sequences = [[draw.randrange(3) for _ in range(draw.randint(1, 6))] for _ in rows]
    laid = packed(sequences, rows)
    width = laid.input_ids_BT.shape[1]
    visible = sees(laid.tree.end_BT)
    for sequence, row, slots in zip(sequences, rows, laid.slot_SW.tolist(), strict=True):
        own = [slot - row * width for slot in slots[: len(sequence)]]
        assert [int(laid.input_ids_BT[row, at]) for at in own] == sequence
        assert [int(laid.tree.position_BT[row, at]) for at in own] == list(range(len(sequence)))
        for place, at in enumerate(own):
            assert torch.nonzero(visible[row, at]).flatten().tolist() == own[: place + 1]


def test_shared_prefixes_are_stored_once() -> None:
    rows = [0, 0, 0, 1]
    sequences = [[1, 2, 3], [1, 2, 4], [1, 2], [1, 2, 3]]
    laid = packed(sequences, rows)
    for row, distinct in ((0, 4), (1, 3)):
        own = laid.slot_SW[torch.tensor(rows) == row]
        inside = padded(sequences)[torch.tensor(rows) == row] >= 0
        assert own[inside].unique().numel() == distinct


def test_padding_sees_itself_alone() -> None:
    laid = packed([[1, 2, 3], [1]], [0, 1])
    visible = sees(laid.tree.end_BT)
    assert visible[1].tolist() == [[True, False, False], [False, True, False], [False, False, True]]
