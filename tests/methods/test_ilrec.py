"""ILRec as a method: what it falls back to, what it needs, and its loss on a trie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Batch, Forward, ItemScores, LossSums, Needs
from llmrec_cli.methods.ilrec import METHOD, IlrecOptions
from llmrec_cli.tensors.cross_layer import Choices, Rewards, cross_layer_terms
from tests.methods.random_batches import (
    V,
    catalogue,
    draw,
    leaves_of,
    legal_tokens,
    masses,
    positions,
    states,
)

SUPPORTS = ("vocab", "legal")
TARGETS = [0, 3, 8, 5]


def options_of(**values: Any) -> IlrecOptions:
    return IlrecOptions.model_validate(values)


def problem(options: IlrecOptions, *, bias: bool = False) -> tuple[Batch, Forward]:
    """The same batch for every option: all positions, every input present."""
    batch = replace(positions(catalogue(), TARGETS), mass=masses(catalogue(), len(TARGETS)))
    return batch, states(batch, options.n, bias=bias)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(
    "off", [{"a": 0, "lambda": 0, "mu": 0}, dict.fromkeys(("cpo", "cpd", "crr"), False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_its_parts_it_is_lml_or_msl_bit_for_bit(
    support: str, off: dict[str, Any], dtype: torch.dtype
) -> None:
    options = options_of(support=support, **off)
    parent = find_method("lml" if support == "vocab" else "msl")
    assert METHOD.needs(options) == Needs()
    assert METHOD.legal_only(options) == parent.legal_only(parent.options())
    batch, _ = problem(options)
    forward = states(batch, dtype=dtype, bias=True)
    ours = METHOD.loss(forward, batch, options, {})
    theirs = parent.loss(forward, batch, parent.options(), {})
    assert (float(ours.total.detach()), ours.count) == (float(theirs.total.detach()), theirs.count)
    for found, wanted in zip(gradients(ours, forward), gradients(theirs, forward), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("support", SUPPORTS)
def test_small_parts_approach_lml_and_msl(support: str) -> None:
    """The other code path, which computes all parts, has the same limit."""
    options = options_of(support=support, a=1e-9, mu=1e-9, **{"lambda": 1e-9})
    parent = find_method("lml" if support == "vocab" else "msl")
    batch, forward = problem(options, bias=True)
    ours = METHOD.loss(forward, batch, options, {})
    theirs = parent.loss(forward, batch, parent.options(), {})
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-7, atol=0)
    for found, wanted in zip(gradients(ours, forward), gradients(theirs, forward), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


def gradients(sums: LossSums, forward: Forward) -> list[Tensor]:
    leaves = leaves_of(forward)
    found = torch.autograd.grad(sums.total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def slow(batch: Batch, forward: Forward, options: IlrecOptions) -> Tensor:
    """The three parts over a dense vocabulary, position by position; rewards item by item."""
    assert forward.layers_LPD is not None
    assert batch.mass is not None
    hidden_XPD = torch.cat([forward.hidden_PD[None], forward.layers_LPD[: options.n]])
    logits_XPV = hidden_XPD @ forward.head.weight_VD.T
    if forward.head.bias_V is not None:
        logits_XPV = logits_XPV + forward.head.bias_V
    total = torch.zeros((), dtype=torch.float64)
    for p, (node, answer) in enumerate(
        zip(batch.node_P.tolist(), batch.answer_P.tolist(), strict=True)
    ):
        legal = legal_tokens(batch.trie, node)
        own = batch.mass.of_nodes(torch.tensor(answer), torch.tensor(node))
        first = int(batch.trie.edge_start_N1[node]) + 1
        children = torch.arange(first, first + len(legal))
        share_E = batch.mass.of_nodes(torch.full_like(children, answer), children)
        if float(own) > 0:
            share_E = share_E / own
        masked_V = torch.full((V,), 0.0 if options.support == "vocab" else -torch.inf)
        masked_V[legal] = 0
        terms = cross_layer_terms(
            logits_XPV[0, [p]] + masked_V,
            logits_XPV[1:, [p]] + masked_V,
            batch.target_P[[p]],
            batch.final_P[[p]],
            Choices(a=options.a if options.cpo else 0, negatives_from=options.negatives_from),
            Rewards(torch.zeros_like(children), torch.tensor(legal), share_E),
        )
        cpd, crr = options.cpd * options.lambda_, options.crr * options.mu
        total = total + (terms.cpo_P + cpd * terms.cpd_P + crr * terms.crr_P).sum()
    return total


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"n": 2, "a": 1.0, "lambda": 0.5, "mu": 0.3},
        {"cpo": False, "mu": 0.3},
        {"cpd": False, "mu": 0.3},
        {"crr": False},
        {"negatives_from": "final", "mu": 0.3},
    ],
    ids=str,
)
def test_loss_and_gradients_equal_the_slow_reference(support: str, values: dict[str, Any]) -> None:
    options = options_of(support=support, **values)
    batch, forward = problem(options, bias=True)
    sums = METHOD.loss(forward, batch, options, {})
    expected = slow(batch, forward, options)
    assert sums.count == batch.positions
    torch.testing.assert_close(sums.total, expected)
    wanted = gradients(LossSums(expected, 1), forward)
    for found, want in zip(gradients(sums, forward), wanted, strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("support", SUPPORTS)
def test_more_layers_than_asked_for_are_left_alone(support: str) -> None:
    options = options_of(support=support, n=2)
    batch, forward = problem(options_of(n=4))
    assert forward.layers_LPD is not None
    near = replace(forward, layers_LPD=forward.layers_LPD[:2])
    torch.testing.assert_close(
        METHOD.loss(forward, batch, options, {}).total, METHOD.loss(near, batch, options, {}).total
    )


@pytest.mark.parametrize("support", SUPPORTS)
def test_only_distillation_trains_through_intermediate_layers(support: str) -> None:
    for values, reaches in (({"cpd": False, "mu": 0.3}, False), ({"mu": 0.3}, True)):
        options = options_of(support=support, **values)
        batch, forward = problem(options)
        assert forward.layers_LPD is not None
        (found,) = torch.autograd.grad(
            METHOD.loss(forward, batch, options, {}).total, forward.layers_LPD, allow_unused=True
        )
        assert (found is not None) == reaches, "a gradient of zeros costs a backward pass too"
        assert found is None or bool(found.abs().sum() > 0)


def test_over_legal_tokens_every_negative_is_a_real_token() -> None:
    """Over the vocabulary a token that no item has may be self-hard; over legal ones it cannot."""
    batch, forward = problem(options_of(n=1))
    assert forward.layers_LPD is not None
    stray = 0  # no item has it
    loud_VD = forward.head.weight_VD.detach().clone()
    loud_VD[stray] = 50 * forward.layers_LPD[0].detach().mean(0)
    forward = replace(forward, head=replace(forward.head, weight_VD=loud_VD))
    loud, deaf = (
        METHOD.loss(forward, batch, options_of(n=1, support=support), {}).stats["self_hard"]
        for support in SUPPORTS
    )
    assert int(loud) > int(deaf)
    active = batch.trie.fan_out(batch.node_P) > 1
    most = int((batch.trie.fan_out(batch.node_P)[active] - 1).sum())
    assert int(deaf) <= most


@pytest.mark.parametrize("support", SUPPORTS)
def test_statistics(support: str) -> None:
    options = options_of(support=support, n=3, mu=0.3)
    batch, forward = problem(options)
    sums = METHOD.loss(forward, batch, options, {})
    stats = {name: float(value) for name, value in sums.stats.items()}
    shown = METHOD.metrics(stats, float(sums.count), options, batch.trie)
    parts = shown["cpo"] + options.lambda_ * shown["cpd"] + options.mu * shown["crr"]
    assert parts * sums.count == pytest.approx(float(sums.total.detach()))
    assert shown["self_hard"] * sums.count == stats["self_hard"]
    assert 0 < shown["self_hard_any"] <= min(1, shown["self_hard"])
    assert {f"self_hard_layer_{i}" for i in (1, 2, 3)} <= set(shown)
    assert not any(value.requires_grad for value in sums.stats.values() if torch.is_tensor(value))


@pytest.mark.parametrize(
    ("values", "layers", "scored"),
    [
        ({}, 4, True),
        ({"n": 2}, 2, True),
        ({"crr": False}, 4, False),
        ({"mu": 0}, 4, False),
        ({"cpd": False, "negatives_from": "final"}, 0, True),
        ({"lambda": 0, "crr": False, "negatives_from": "final"}, 0, False),
        ({"a": 0, "lambda": 0}, 4, True),  # CRR's candidates come from the layers
        ({"a": 0, "crr": False}, 4, False),
        ({"cpo": False, "crr": False, "negatives_from": "final"}, 4, False),
    ],
    ids=str,
)
def test_needs_only_what_is_on(values: dict[str, Any], layers: int, scored: bool) -> None:
    needs = METHOD.needs(options_of(scores="sasrec-2", reward_history="zero", **values))
    assert needs.hidden_states == layers
    assert needs.item_scores == (ItemScores("sasrec-2", "zero") if scored else None)
    assert needs.negatives is None
    assert needs.reference is None
    options = options_of(**values)
    batch, forward = draw(catalogue(), TARGETS, METHOD.needs(options))
    assert METHOD.loss(forward, batch, options, {}).total.isfinite()


def test_what_is_missing_is_named() -> None:
    options = options_of(n=3)
    batch, forward = problem(options)
    with pytest.raises(ValueError, match=r"Batch\.mass"):
        METHOD.loss(forward, replace(batch, mass=None), options, {})
    with pytest.raises(ValueError, match="has 0 layers, expected n = 3"):
        METHOD.loss(replace(forward, layers_LPD=None), batch, options, {})
    assert forward.layers_LPD is not None
    with pytest.raises(ValueError, match="has 2 layers, expected n = 3"):
        METHOD.loss(replace(forward, layers_LPD=forward.layers_LPD[:2]), batch, options, {})


def test_a_reward_that_falls_on_the_history_alone_changes_nothing() -> None:
    """Zeroed history: where a node has no mass left, CRR has no loss and gradients stay finite."""
    options = options_of(mu=0.3, support="legal")
    batch, forward = problem(options)
    assert batch.mass is not None
    none = replace(batch.mass, cumulative_AF1=torch.zeros_like(batch.mass.cumulative_AF1))
    sums = METHOD.loss(forward, replace(batch, mass=none), options, {})
    without = METHOD.loss(forward, batch, options_of(crr=False, support="legal"), {})
    torch.testing.assert_close(sums.total, without.total)
    for found, wanted in zip(gradients(sums, forward), gradients(without, forward), strict=True):
        torch.testing.assert_close(found, wanted)


def test_lambda_is_a_recipe_key() -> None:
    assert options_of(**{"lambda": 0.7}).lambda_ == 0.7
    assert options_of(**{"lambda": 0.7}).model_dump()["lambda"] == 0.7
    assert IlrecOptions(lambda_=0.7) == options_of(**{"lambda": 0.7})


@pytest.mark.parametrize(
    "values",
    [
        {"n": 0},
        {"a": -0.1},
        {"lambda": -1.0},
        {"mu": -1.0},
        {"phi": 0.0},
        {"reward_temperature": 0.0},
        {"ensemble": "max"},
        {"space": "odds"},
        {"negatives_from": "first"},
        {"support": "trie"},
        {"reward_history": "drop"},
        {"cpd": 1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        IlrecOptions.model_validate(values)
