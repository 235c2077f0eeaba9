"""Preference losses: hand-computed values, the papers' inequalities, slow references, gradcheck."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmrec_cli.tensors.losses import dmpo, dpo, sdpo, sum_over_answers

Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: list[Loss] = [dpo, sdpo, dmpo]


def softplus(x: float) -> float:
    """``-log sigmoid(-x)``."""
    return math.log1p(math.exp(x))


def slow(loss: Loss, chosen: list[float], rejected: list[float], beta: float) -> float:
    """One group by the equations of the page (docs/methods), one chosen answer per rejected one."""
    pairs = list(zip(chosen, rejected, strict=True))
    if loss is dpo:
        return sum(softplus(-(beta * w - beta * d)) for w, d in pairs) / len(pairs)
    if loss is dmpo:
        return softplus(-sum(beta * w - beta * d for w, d in pairs) / len(pairs))
    return softplus(math.log(sum(math.exp(beta * d - beta * w) for w, d in pairs)))


def draw(groups: int, k: int, c: int, scale: float = 20.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(groups * 100 + k * 10 + c)
    chosen_GC = scale * torch.randn(groups, c, dtype=torch.float64)
    return chosen_GC, scale * torch.randn(groups, k, dtype=torch.float64)


# D_w = 1, D = (0, -1, 2), beta = 1/2, so x_i = beta (D_i - D_w) = (-0.5, -1, 0.5):
#   DPO of each   log(1 + e^x) = 0.474077, 0.313262, 0.974077; their mean 0.587139
#   DMPO          mean x = -1/3:  log(1 + 0.716531) = 0.540306
#   S-DPO         log(1 + e^-0.5 + e^-1 + e^0.5) = log(3.623131) = 1.287339
@pytest.mark.parametrize(("loss", "value"), [(dpo, 0.587139), (dmpo, 0.540306), (sdpo, 1.287339)])
def test_golden_values(loss: Loss, value: float) -> None:
    chosen_GC, rejected_GK = torch.tensor([[1.0]]), torch.tensor([[0.0, -1.0, 2.0]])
    assert loss(chosen_GC, rejected_GK, 0.5).tolist() == pytest.approx([value], abs=1e-6)


# Pairs of their own, D_w = (1, 0, 2), D = (0, -1, 2), beta = 1: x = (-1, -1, 0):
#   DPO    (2 * 0.313262 + 0.693147) / 3 = 0.439890
#   DMPO   mean x = -2/3: log(1 + 0.513417) = 0.414370
#   S-DPO  log(1 + 2 e^-1 + 1) = log(2.735759) = 1.006409
@pytest.mark.parametrize(("loss", "value"), [(dpo, 0.439890), (dmpo, 0.414370), (sdpo, 1.006409)])
def test_golden_values_of_pairs(loss: Loss, value: float) -> None:
    chosen_GC, rejected_GK = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0, -1.0, 2.0]])
    assert loss(chosen_GC, rejected_GK, 1.0).tolist() == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("k", [1, 2, 7])
def test_equal_to_the_equations_in_plain_python(loss: Loss, k: int) -> None:
    for c in {1, k}:
        chosen_GC, rejected_GK = draw(20, k, c)
        expected = [
            slow(loss, w, d, 0.1)
            for w, d in zip(chosen_GC.expand(-1, k).tolist(), rejected_GK.tolist(), strict=True)
        ]
        assert loss(chosen_GC, rejected_GK, 0.1).tolist() == pytest.approx(expected, rel=1e-12)


def test_one_negative_makes_all_three_dpo() -> None:
    chosen_GC, rejected_GK = draw(50, 1, 1)
    expected = dpo(chosen_GC, rejected_GK, 0.3)
    for loss in (sdpo, dmpo):
        torch.testing.assert_close(loss(chosen_GC, rejected_GK, 0.3), expected)


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_inequalities_between_the_losses(k: int, scale: float) -> None:
    """docs/methods: mean of DPO >= DMPO; S-DPO >= -log sigmoid(margin - log k) >= DMPO."""
    for c in (1, k):
        chosen_GC, rejected_GK = draw(500, k, c, scale)
        outside = [dpo(chosen_GC[:, [i % c]], rejected_GK[:, [i]], 0.5) for i in range(k)]
        inside = dmpo(chosen_GC, rejected_GK, 0.5)
        margin = 0.5 * (chosen_GC.mean(1) - rejected_GK.mean(1))
        between = -torch.nn.functional.logsigmoid(margin - math.log(k))
        tiny = 1e-12
        assert (torch.stack(outside).mean(0) >= inside - tiny).all()
        assert (sdpo(chosen_GC, rejected_GK, 0.5) >= between - tiny).all()
        assert (between >= inside).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("c", [1, 3])
def test_gradcheck(loss: Loss, c: int) -> None:
    chosen_GC, rejected_GK = draw(4, 3, c, scale=2.0)
    assert torch.autograd.gradcheck(
        lambda w, d: loss(w, d, 0.7),
        (chosen_GC.requires_grad_(), rejected_GK.requires_grad_()),
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_far_apart_answers_keep_finite_values_and_gradients(loss: Loss) -> None:
    for distance in (1e4, -1e4):
        chosen_GC = torch.tensor([[distance]], requires_grad=True)
        rejected_GK = torch.tensor([[0.0, -distance, 5.0]], requires_grad=True)
        value_G = loss(chosen_GC, rejected_GK, 1.0)
        value_G.sum().backward()
        assert value_G.isfinite().all()
        assert chosen_GC.grad is not None
        assert chosen_GC.grad.isfinite().all()
        assert rejected_GK.grad is not None
        assert rejected_GK.grad.isfinite().all()
    assert float(value_G.detach()) > 5e3  # the wrong order costs what it is apart


@pytest.mark.parametrize("loss", LOSSES)
def test_no_group_is_a_connected_zero(loss: Loss) -> None:
    chosen_GC = torch.zeros((0, 1), requires_grad=True)
    total = loss(chosen_GC, torch.zeros((0, 3)), 0.1).sum()
    total.backward()
    assert float(total.detach()) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_as_many_chosen_as_rejected_or_one(loss: Loss) -> None:
    with pytest.raises(ValueError, match="2 chosen answers beside 3 rejected"):
        loss(torch.zeros((1, 2)), torch.zeros((1, 3)), 0.1)


def test_log_probabilities_of_answers_are_sums_over_their_tokens() -> None:
    nll_P = torch.tensor([1.0, 2.0, 4.0, 0.5], requires_grad=True)
    log_prob_A = sum_over_answers(nll_P, torch.tensor([0, 0, 2, 2]), 4)
    assert log_prob_A.tolist() == [-3.0, 0.0, -4.5, 0.0]
    log_prob_A[2].backward()
    assert nll_P.grad is not None
    assert nll_P.grad.tolist() == [0.0, 0.0, -1.0, -1.0]


groups = st.tuples(
    st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 2**16), st.floats(0.01, 3)
)


@pytest.mark.parametrize("loss", LOSSES)
@given(group=groups, shift=st.floats(-1000, 1000))
@settings(max_examples=40, deadline=None)
def test_losses_of_any_shape(
    loss: Loss, group: tuple[int, int, bool, int, float], shift: float
) -> None:
    """The equations; negatives in any order, with their pairs; a shift of both sides; each group
    for itself."""
    count, k, pairs, seed, beta = group
    draw = torch.Generator().manual_seed(seed)
    chosen_GC = 5 * torch.randn(count, k if pairs else 1, generator=draw, dtype=torch.float64)
    rejected_GK = 5 * torch.randn(count, k, generator=draw, dtype=torch.float64)
    found = loss(chosen_GC, rejected_GK, beta)
    each = zip(chosen_GC.expand(-1, k).tolist(), rejected_GK.tolist(), strict=True)
    assert found.tolist() == pytest.approx([slow(loss, w, d, beta) for w, d in each], rel=1e-9)
    order = torch.randperm(k, generator=draw)
    beside = chosen_GC[:, order] if pairs else chosen_GC
    torch.testing.assert_close(loss(beside, rejected_GK[:, order], beta), found)
    shifted = loss(chosen_GC + shift, rejected_GK + shift, beta)
    torch.testing.assert_close(shifted, found, rtol=1e-8, atol=1e-8)
    alone = [loss(chosen_GC[[g]], rejected_GK[[g]], beta) for g in range(count)]
    torch.testing.assert_close(torch.cat(alone), found)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_log_probs_of_answers_add_up_over_any_split(owners: list[int], seed: int) -> None:
    nll_P = torch.randn(
        len(owners), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    answer_P = torch.tensor(owners)
    expected = [-sum(n for n, a in zip(nll_P.tolist(), owners, strict=True) if a == b)
                for b in range(4)]  # fmt: skip
    assert sum_over_answers(nll_P, answer_P, 4).tolist() == pytest.approx(expected, abs=1e-12)
    cut = len(owners) // 2
    parts = [sum_over_answers(nll_P[at], answer_P[at], 4) for at in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(parts[0] + parts[1], sum_over_answers(nll_P, answer_P, 4))
