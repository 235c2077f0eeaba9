"""LML: cross-entropy over the vocabulary at response positions."""

from __future__ import annotations

import torch

from llmrec_cli.methods import find_method
from tests.methods.random_batches import catalogue, part, positions, states


def test_lml_is_the_sum_of_cross_entropies() -> None:
    method = find_method("lml")
    batch = positions(catalogue(), [0, 1, 3])
    forward = states(batch, bias=True)
    sums = method.loss(forward, batch, method.options(), {})
    assert forward.head.bias_V is not None
    logits_PV = forward.hidden_PD @ forward.head.weight_VD.T + forward.head.bias_V
    log_probs_PV = logits_PV.log_softmax(1)
    torch.testing.assert_close(
        sums.total, -log_probs_PV[torch.arange(len(logits_PV)), batch.target_P].sum()
    )
    assert sums.count == int(batch.length_A.sum())
    assert not method.legal_only(method.options())


def test_lml_adds_up_over_any_split() -> None:
    method = find_method("lml")
    batch = positions(catalogue(), [0, 1, 2, 3])
    forward = states(batch)
    weight = forward.head.weight_VD
    whole = method.loss(forward, batch, method.options(), {})
    (wanted,) = torch.autograd.grad(whole.total, weight)
    total, count = 0.0, 0
    for answer in range(batch.answers):
        one, at = part(batch, forward, [answer])
        sums = method.loss(at, one, method.options(), {})
        sums.total.backward()
        total, count = total + float(sums.total.detach()), count + int(sums.count)
    assert abs(total - float(whole.total.detach())) < 1e-12
    assert count == whole.count
    torch.testing.assert_close(weight.grad, wanted)
