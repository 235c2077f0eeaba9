"""LML: cross-entropy over the vocabulary at response positions."""

from __future__ import annotations

import torch
from torch import Tensor

from llmrec_cli.methods import find
from llmrec_cli.methods.contract import Batch, Forward, Head
from llmrec_cli.tensors.trie import build_trie, paths

V, D = 12, 5
ITEMS = [[5, 6, 2], [5, 7, 2], [8, 2], [9, 10, 11, 2], [8, 2]]


def draw(leaves: list[int]) -> tuple[Batch, Tensor, Tensor]:
    torch.manual_seed(0)
    trie = build_trie(ITEMS)
    node_BT, token_BT, length_B = paths(trie, torch.tensor(leaves))
    inside = node_BT >= 0
    target_P = token_BT[inside]
    rows = torch.repeat_interleave(length_B)
    batch = Batch(trie, target_P, node_BT[inside], rows, len(leaves), len(target_P))
    hidden = torch.randn(len(target_P), D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    return batch, hidden, weight


def part(batch: Batch, keep_P: Tensor) -> Batch:
    positions = int(keep_P.sum())
    return Batch(
        batch.trie,
        batch.target_P[keep_P],
        batch.node_P[keep_P],
        batch.row_P[keep_P],
        batch.rows,
        positions,
    )


def test_lml_is_the_sum_of_cross_entropies() -> None:
    method = find("lml")
    batch, hidden, weight = draw([0, 1, 3])
    bias = torch.randn(V, dtype=torch.float64)
    sums = method.loss(Forward(hidden, Head(weight, bias)), batch, method.options(), {})
    log_probs_PV = (hidden @ weight.T + bias).log_softmax(1)
    torch.testing.assert_close(
        sums.total, -log_probs_PV[torch.arange(len(hidden)), batch.target_P].sum()
    )
    assert sums.count == 3 + 3 + 4
    assert not method.legal_only(method.options())


def test_lml_adds_up_over_any_split() -> None:
    method = find("lml")
    batch, hidden, weight = draw([0, 1, 2, 3])
    whole = method.loss(Forward(hidden, Head(weight)), batch, method.options(), {})
    (wanted,) = torch.autograd.grad(whole.total, weight)
    total, count = 0.0, 0
    for row in range(batch.rows):
        keep = batch.row_P == row
        sums = method.loss(
            Forward(hidden[keep], Head(weight)), part(batch, keep), method.options(), {}
        )
        sums.total.backward()
        total, count = total + float(sums.total.detach()), count + sums.count
    assert abs(total - float(whole.total.detach())) < 1e-12
    assert count == whole.count
    torch.testing.assert_close(weight.grad, wanted)
