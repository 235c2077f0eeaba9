"""ILRec's terms together: against the slow way, through chunks, and whom they train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from llmrec_cli.tensors.cross_layer import Choices, Terms, cross_layer_terms, vocab_terms
from tests.tensors.cross_layer_slow import draw, rewards, slow


def every_choice() -> list[Choices]:
    """The default, and each choice changed alone."""
    values: dict[str, Any] = {"a": 0.7, "phi": 0.3, "distil": False, "reward_temperature": 2.0}
    hints = get_type_hints(Choices)
    changed = [replace(Choices(), **{name: value}) for name, value in values.items()]
    for name in ("ensemble", "space", "negatives_from"):
        changed += [replace(Choices(), **{name: value}) for value in get_args(hints[name])[1:]]
    return [Choices(), *changed, Choices(a=0.0, phi=0.1, ensemble="sum", space="logit")]


@pytest.mark.parametrize("choices", every_choice(), ids=str)
@pytest.mark.parametrize("rewarded", [False, True])
def test_terms_and_gradients_equal_the_slow_reference(choices: Choices, rewarded: bool) -> None:
    logits_XPU, target_P, rewards_PU = draw()
    logits_XPU.requires_grad_()
    final_P = torch.arange(7) % 3 == 0
    reward_PU = rewards_PU if rewarded else None
    terms = cross_layer_terms(
        *(logits_XPU[0], logits_XPU[1:], target_P, final_P, choices),
        None if reward_PU is None else rewards(reward_PU),
    )
    cpo_P, cpd_P, crr_P, sizes = slow(logits_XPU, target_P, final_P, choices, reward_PU)
    assert terms.negatives_P.tolist() == sizes
    for found_P, wanted_P in ((terms.cpo_P, cpo_P), (terms.cpd_P, cpd_P), (terms.crr_P, crr_P)):
        torch.testing.assert_close(found_P, wanted_P)
    scale_P = torch.linspace(0.5, 2, 7)
    (found,) = torch.autograd.grad((together(terms) * scale_P).sum(), logits_XPU)
    total_P = cpo_P + 0.3 * cpd_P + 0.2 * crr_P
    (wanted,) = torch.autograd.grad((total_P * scale_P).sum(), logits_XPU)
    torch.testing.assert_close(found, wanted.nan_to_num(0.0))


def together(terms: Terms) -> Tensor:
    return terms.cpo_P + 0.3 * terms.cpd_P + 0.2 * terms.crr_P


def test_the_reference_sees_negatives() -> None:
    """The cases above are not vacuous: some positions have none, some have several."""
    logits_XPU, target_P, _ = draw()
    terms = cross_layer_terms(logits_XPU[0], logits_XPU[1:], target_P, target_P < 0, Choices())
    assert int(terms.negatives_P.min()) == 0
    assert int(terms.negatives_P.max()) > 1


@pytest.mark.parametrize("choices", [Choices(), Choices(phi=0.2, space="logit")])
def test_which_layer_each_term_trains(choices: Choices) -> None:
    logits_XPU, target_P, reward_PU = draw()
    logits_XPU.requires_grad_()
    never_P = torch.zeros(7, dtype=torch.bool)
    terms = cross_layer_terms(
        logits_XPU[0], logits_XPU[1:], target_P, never_P, choices, rewards(reward_PU)
    )
    reached = {}
    for name in ("cpo_P", "cpd_P", "crr_P"):
        (found,) = torch.autograd.grad(getattr(terms, name).sum(), logits_XPU, retain_graph=True)
        reached[name] = (found.abs().amax((1, 2)) > 0).tolist()
    only_last = [True, False, False, False]
    assert reached == {"cpo_P": only_last, "cpd_P": [False, True, True, True], "crr_P": only_last}


def test_eos_positions_are_not_distilled() -> None:
    logits_XPU, target_P, _ = draw()
    last_PU, layers_LPU = logits_XPU[0], logits_XPU[1:]
    every_P = torch.ones(7, dtype=torch.bool)
    silent = cross_layer_terms(last_PU, layers_LPU, target_P, every_P, Choices())
    assert silent.cpd_P.tolist() == [0.0] * 7
    terms = cross_layer_terms(last_PU, layers_LPU, target_P, ~every_P, Choices())
    assert bool((terms.cpd_P > 0).all())


def test_each_layers_own_negatives_are_counted() -> None:
    logits_XPU, target_P, _ = draw()
    never_P = torch.zeros(7, dtype=torch.bool)
    last_PU, layers_LPU = logits_XPU[0], logits_XPU[1:]
    terms = cross_layer_terms(last_PU, layers_LPU, target_P, never_P, Choices())
    for layer in range(3):
        alone = cross_layer_terms(last_PU, layers_LPU[[layer]], target_P, never_P, Choices())
        assert terms.negatives_LP[layer].tolist() == alone.negatives_P.tolist()


def test_no_position_is_a_connected_zero() -> None:
    for columns in (0, 4):
        logits_XPU = torch.zeros((3, 0, columns), requires_grad=True)
        none_P = torch.zeros(0, dtype=torch.int64)
        none = rewards(torch.zeros((0, columns)))
        last_PU, layers_LPU = logits_XPU[0], logits_XPU[1:]
        terms = cross_layer_terms(last_PU, layers_LPU, none_P, none_P > 0, Choices(), none)
        together(terms).sum().backward()
        assert [tuple(x.shape) for x in terms] == [(0,)] * 4 + [(2, 0)]


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunks_of_positions_change_nothing(rows: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    hidden_XPD = torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    bias_V = torch.randn(9, dtype=torch.float64, requires_grad=True) if with_bias else None
    leaves = [hidden_XPD, weight_VD, *([] if bias_V is None else [bias_V])]
    target_P, final_P = torch.randint(9, (7,)), torch.arange(7) == 2
    reward_PV = torch.rand(7, 9, dtype=torch.float64)
    scale_P = torch.linspace(0.5, 2, 7)
    logits_XPV = hidden_XPD @ weight_VD.T + (0 if bias_V is None else bias_V)
    whole = cross_layer_terms(
        logits_XPV[0], logits_XPV[1:], target_P, final_P, Choices(), rewards(reward_PV)
    )
    wanted = torch.autograd.grad((together(whole) * scale_P).sum(), leaves)
    terms = vocab_terms(
        hidden_XPD,
        weight_VD,
        bias_V,
        target_P,
        final_P,
        Choices(),
        lambda at: rewards(reward_PV[at]),
        chunk=rows * 9 * 3,
    )
    for found, expected in zip(terms, whole, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((together(terms) * scale_P).sum(), leaves), wanted
    )
