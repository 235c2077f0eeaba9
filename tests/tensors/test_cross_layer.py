"""ILRec's terms: hand-made cases with closed-form gradients, gradcheck, rewards on a trie.

Faults that were released, or that lie close, are written out here and fail the same checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmrec_cli.tensors.cross_layer import (
    Choices,
    distillation,
    negative_weights,
    penalised_nll,
    reward_divergence,
    self_hard,
    token_rewards,
)
from llmrec_cli.tensors.trie import build_trie, edges_of, leaf_mass, leaf_ranges, paths
from tests.tensors.cross_layer_slow import INF, dense, rewards
from tests.tensors.trie_walk import walk

Penalty = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def gradient(loss: Tensor, of: Tensor) -> list[float]:
    (found,) = torch.autograd.grad(loss.sum(), of)
    return found.squeeze(0).tolist()


# One position, columns y, h, o.  z^L = (1, -0.5, 0), one intermediate layer z^l = (0, 2, -1).
#   softmax(z^L)(y) = e / (e + e^-0.5 + 1) = 2.718282 / 4.324812 = 0.628532 = thr
#   softmax(z^l)    = (1, 7.389056, 0.367879) / 8.756935 = (0.114195, 0.843795, 0.042010)
# so N = {h}, w = 1: a self-hard negative whose logit is below 0.  With a = 0.5
#   z^ = (1, -0.5 + 0.5 * 0.5, 0) = (1, -0.25, 0);  sum exp = 4.497083
#   L_CPO = log 4.497083 - 1 = 0.503429
#   its gradient, softmax(z^) - (1, 0, 0) = (-0.395546, 0.173179, 0.222366)
#   plain cross-entropy's, softmax(z^L) - (1, 0, 0) = (-0.371468, 0.140245, 0.231224)
LAST, LAYER, TARGET = row(1.0, -0.5, 0.0), row(0.0, 2.0, -1.0), torch.tensor([0])
WEIGHT = row(0.0, 1.0, 0.0)
PLAIN_PUSH = 0.140245


def test_the_self_hard_negative_of_the_hand_made_case() -> None:
    hard_PU = self_hard(LAYER, LAST, TARGET, Choices())
    assert hard_PU.tolist() == [[False, True, False]]
    assert negative_weights(LAYER, hard_PU).tolist() == [[0.0, 1.0, 0.0]]


def test_cpo_pushes_the_self_hard_negative_and_renormalises_the_rest() -> None:
    last_PU = LAST.clone().requires_grad_()
    loss_P = penalised_nll(last_PU, WEIGHT, TARGET, 0.5)
    assert float(loss_P.detach()) == pytest.approx(0.503429, abs=1e-6)
    found = gradient(loss_P, last_PU)
    assert found == pytest.approx([-0.395546, 0.173179, 0.222366], abs=1e-6)
    # Outside of N nothing changes but the sum that all are divided by.
    shrunk = 4.324812 / 4.497083
    plain = LAST.softmax(1).squeeze(0).tolist()
    assert found[2] == pytest.approx(plain[2] * shrunk, abs=1e-6)
    assert found[0] + 1 == pytest.approx(plain[0] * shrunk, abs=1e-6)


def released(last_PU: Tensor, weight_PU: Tensor, target_P: Tensor, a: float) -> Tensor:
    """The released script: ``torch.where`` has its branches swapped, so N is what is spared."""
    hard_PU = weight_PU > 0
    penalised_PU = torch.where(hard_PU, last_PU, last_PU * (1 + a * weight_PU))
    return torch.nn.functional.cross_entropy(penalised_PU, target_P, reduction="none")


def product(last_PU: Tensor, weight_PU: Tensor, target_P: Tensor, a: float) -> Tensor:
    """``z (1 + a w)`` with the branches right: rewards a negative whose logit is below 0."""
    penalised_PU = last_PU * (1 + a * weight_PU)
    return torch.nn.functional.cross_entropy(penalised_PU, target_P, reduction="none")


def through_size(last_PU: Tensor, weight_PU: Tensor, target_P: Tensor, a: float) -> Tensor:
    """``z + a w |z|`` with a gradient through ``|z|``."""
    penalised_PU = last_PU + a * weight_PU * last_PU.abs()
    return torch.nn.functional.cross_entropy(penalised_PU, target_P, reduction="none")


def pushes_harder_than_cross_entropy(penalty: Penalty, logit: float, a: float) -> bool:
    last_PU = row(1.0, logit, 0.0).requires_grad_()
    plain = torch.nn.functional.cross_entropy(last_PU, TARGET, reduction="none")
    pushed = gradient(penalty(last_PU, WEIGHT, TARGET, a), last_PU)
    return pushed[1] > gradient(plain, last_PU)[1] + 1e-9


@pytest.mark.parametrize("logit", [-6.0, -0.5, -0.01, 0.3, 4.0])
@pytest.mark.parametrize("a", [0.05, 0.1, 1.0, 3.0])
def test_a_self_hard_negative_is_pushed_harder_whatever_its_sign(logit: float, a: float) -> None:
    assert pushes_harder_than_cross_entropy(penalised_nll, logit, a)
    assert not pushes_harder_than_cross_entropy(released, logit, a)


def test_the_faults_nearby_fail_the_same_check() -> None:
    assert pushes_harder_than_cross_entropy(product, 4.0, 0.5)
    assert not pushes_harder_than_cross_entropy(product, -6.0, 0.5)
    assert pushes_harder_than_cross_entropy(through_size, 4.0, 0.5)
    assert not pushes_harder_than_cross_entropy(through_size, -0.5, 0.5)
    assert not pushes_harder_than_cross_entropy(through_size, -6.0, 1.0)


# Teacher softmax(z^L) = (1/2, 1/2), z^l = (0, ln 3): softmax = (1/4, 3/4).
#   KL = 1/2 ln 2 + 1/2 ln(2/3) = 0.143841, its gradient softmax(z^l) - softmax(z^L) = (-1/4, 1/4)
def test_cpd_moves_the_intermediate_layer_to_the_last() -> None:
    last_PU = row(0.0, 0.0, -INF).requires_grad_()
    layer_PU = row(0.0, math.log(3), -INF).requires_grad_()
    loss_LP = distillation(last_PU, layer_PU[None])
    assert loss_LP.tolist() == [[pytest.approx(0.143841, abs=1e-6)]]
    (found,) = torch.autograd.grad(loss_LP.sum(), layer_PU)
    assert found.tolist() == [[pytest.approx(-0.25), pytest.approx(0.25), 0.0]]
    teacher = torch.autograd.grad(
        distillation(last_PU, layer_PU[None]).sum(), last_PU, allow_unused=True
    )
    assert teacher[0] is None


# Columns y, h, o; C = {y, h}; R = (0.1, 0.3, 0.6): q = (1/4, 3/4, 0).  z^L = 0: p = 1/3 each.
#   KL = 1/4 ln(3/4) + 3/4 ln(9/4) = -0.071921 + 0.608198 = 0.536277
#   its gradient, p - q = (1/12, -5/12, 1/3)
# With T_r = 1/2 rewards are squared: q = (1/10, 9/10, 0), p - q = (0.233333, -0.566667, 1/3).
def test_crr_moves_the_candidates_to_their_rewards() -> None:
    last_PU = torch.zeros((1, 3), dtype=torch.float64, requires_grad=True)
    among_PU = torch.tensor([[True, True, False]])
    reward_PU = row(0.1, 0.3, 0.6)
    loss_P = reward_divergence(last_PU, rewards(reward_PU), among_PU, 1.0)
    assert float(loss_P.detach()) == pytest.approx(0.536277, abs=1e-6)
    assert gradient(loss_P, last_PU) == pytest.approx([1 / 12, -5 / 12, 1 / 3])
    sharper_P = reward_divergence(last_PU, rewards(reward_PU), among_PU, 0.5)
    assert gradient(sharper_P, last_PU) == pytest.approx([0.233333, -0.566667, 1 / 3], abs=1e-6)


def test_crr_without_reward_has_no_loss_and_a_partial_one_keeps_finite_gradients() -> None:
    last_PU = row(0.3, -1.0, 2.0, -INF).expand(3, 4).clone().requires_grad_()
    among_PU = torch.tensor([[True, True, False, False]]).expand(3, 4)
    reward_PU = torch.cat([row(0, 0, 0.6, 0), row(0, 0.3, 0.6, 0), row(0.2, 0, 0.1, 0)])
    loss_P = reward_divergence(last_PU, rewards(reward_PU), among_PU, 1.0)
    (found,) = torch.autograd.grad(loss_P.sum(), last_PU)
    p = last_PU.detach().softmax(1)[0]
    assert loss_P.tolist() == [
        0.0,
        pytest.approx(-math.log(p[1])),  # all of q on the other candidate
        pytest.approx(-math.log(p[0])),
    ]
    assert found[0].tolist() == [0.0] * 4
    torch.testing.assert_close(found[1], p - torch.tensor([0.0, 1, 0, 0], dtype=torch.float64))
    assert found.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-4, 1.0, 1e4])
def test_crr_at_extreme_temperatures(temperature: float) -> None:
    """T_r near 0 leaves the best candidate alone, a large one spreads q evenly; none is NaN."""
    last_PU = row(1.0, 0.0, -1.0).requires_grad_()
    among_PU = torch.ones((1, 3), dtype=torch.bool)
    reward_PU = row(1e-30, 1e-9, 2e-9)
    found = gradient(reward_divergence(last_PU, rewards(reward_PU), among_PU, temperature), last_PU)
    q = {1e-4: (0, 0, 1), 1.0: (0, 1 / 3, 2 / 3), 1e4: (1 / 3, 1 / 3, 1 / 3)}[temperature]
    p = last_PU.detach().softmax(1).squeeze(0).tolist()
    assert found == pytest.approx([a - b for a, b in zip(p, q, strict=True)], abs=2e-3)


def test_the_threshold_in_either_space() -> None:
    # z^L(y) = 2; zb = (5, 1.9, 2.1, -inf).  softmax(z^L)(y) = 0.576, softmax(zb) = (.89, .04, .05)
    last_PU, source_PU = row(2.0, 1.0, 1.0, -INF), row(5.0, 1.9, 2.1, -INF)
    target_P = torch.tensor([0])
    logit = Choices(space="logit")
    assert self_hard(source_PU, last_PU, target_P, logit).tolist() == [[False, False, True, False]]
    assert not self_hard(source_PU, last_PU, target_P, Choices()).any()  # y takes it all
    low = Choices(phi=0.08)  # threshold 0.0461
    assert self_hard(source_PU, last_PU, target_P, low).tolist() == [[False, False, True, False]]
    half = replace(logit, phi=0.5)
    assert self_hard(source_PU, last_PU, target_P, half).tolist() == [[False, True, True, False]]


def test_a_negative_at_the_threshold_counts() -> None:
    last_PU = row(0.0, 0.0)
    assert self_hard(last_PU, last_PU, torch.tensor([0]), Choices()).tolist() == [[False, True]]


def test_gradcheck_of_each_term() -> None:
    """Away from a threshold; illegal columns are constants."""
    torch.manual_seed(2)
    last_PU = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    layers_LPU = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    target_P = torch.tensor([0, 2, 1, 4])
    weight_PU = torch.rand(4, 5, dtype=torch.float64).scatter(1, target_P[:, None], 0.0)
    size_PU = last_PU.detach().abs()  # the penalty's size is a constant
    among_PU = (weight_PU > 0.4).scatter(1, target_P[:, None], True)
    reward_PU = torch.rand(4, 5, dtype=torch.float64)

    def cpo(z_PU: Tensor) -> Tensor:
        shifted = penalised_nll(z_PU, weight_PU, target_P, 0.0)  # a = 0: no constant hidden in it
        return shifted + torch.logsumexp(z_PU + 0.3 * weight_PU * size_PU, 1)

    assert torch.autograd.gradcheck(cpo, (last_PU,))
    assert torch.autograd.gradcheck(lambda z: distillation(last_PU.detach(), z), (layers_LPU,))
    assert torch.autograd.gradcheck(
        lambda z: reward_divergence(z, rewards(reward_PU), among_PU, 0.7), (last_PU,)
    )


def test_rewards_are_shares_of_a_nodes_mass() -> None:
    """``R_t(v)`` against sums over items that start with a prefix."""
    eos = 9
    items = [[3, 4, eos], [3, 5, eos], [3, eos], [6, 4, eos], [7, eos], [6, 8, 8, eos]]
    trie = build_trie(items)
    torch.manual_seed(0)
    probability_AI = torch.rand(2, len(items), dtype=torch.float64)
    probability_AI[1, [1, 4]] = 0
    probability_AF = torch.zeros_like(probability_AI)
    probability_AF[:, trie.leaf_of_item_I.long()] = probability_AI
    mass = leaf_mass(probability_AF, leaf_ranges(trie))
    prefixes = [(), (3,), (6,), (3, 5), (6, 8)]
    node_P = torch.tensor([walk(trie, prefix) for prefix in prefixes]).repeat(2)
    answer_P = torch.arange(2).repeat_interleave(len(prefixes))
    columns_U = torch.unique(trie.edge_token_E[edges_of(trie, node_P)[0]].long())
    dense_PV = dense(token_rewards(trie, mass, node_P, answer_P), len(node_P), 11)
    narrow = token_rewards(trie, mass, node_P, answer_P, columns_U)
    narrow_PU = dense(narrow, len(node_P), len(columns_U))
    torch.testing.assert_close(dense_PV[:, columns_U], narrow_PU)
    for p, (answer, prefix) in enumerate((a, x) for a in range(2) for x in prefixes):
        below = {i: item for i, item in enumerate(items) if item[: len(prefix)] == list(prefix)}
        total = sum(float(probability_AI[answer, i]) for i in below)
        wanted = [0.0] * 11
        for i, item in below.items():
            if total > 0:
                wanted[item[len(prefix)]] += float(probability_AI[answer, i]) / total
        assert dense_PV[p].tolist() == pytest.approx(wanted, abs=1e-12)
    assert float(dense_PV[1 * len(prefixes) + 3].sum()) == 0  # (3, 5) has no mass for answer 1


def test_rewards_of_a_target_lie_on_its_path() -> None:
    """A model sure of one item gives its tokens all the reward, at every step."""
    trie = build_trie([[3, 4, 9], [3, 5, 9], [6, 9]])
    node_BT, token_BT, length_B = paths(trie, torch.tensor([1]))
    sure = torch.tensor([[0.0, 1.0, 0.0]])
    mass = leaf_mass(sure, leaf_ranges(trie))
    steps = int(length_B[0])
    found = token_rewards(trie, mass, node_BT[0], torch.zeros(steps).long())
    reward = dense(found, steps, 10)
    assert reward.gather(1, token_BT[0][:, None]).squeeze(1).tolist() == [1.0] * steps
    assert float(reward.sum()) == steps
