"""BEAR against its equation in float64, one position after the other; what a beam would drop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from llmrec_cli.methods import msl
from llmrec_cli.methods.bear import METHOD, BearOptions
from llmrec_cli.methods.contract import Batch, Forward, LossSums
from llmrec_cli.tensors.legal_softmax import legal_logits
from llmrec_cli.tensors.trie import Trie, build_trie
from tests.methods.random_batches import (
    EOS,
    catalogue,
    leaves_of,
    legal_tokens,
    one_item,
    part,
    positions,
    states,
)

TARGETS = [*range(11), 7, 10, 3, 9, 5]
VARIANTS = ("released", "regularizer")
SETTINGS: list[dict[str, Any]] = [
    {},  # the released script's; every choice of this catalogue has fewer than 10 legal tokens
    {"beams": 2},
    {"beams": 1, "tau": 1.7, "lambda": 3.0, "xi": 0.4},
    {"beams": 3, "tau": 0.6, "xi": 1.0},
    {"beams": 5, "lambda": 0.0},
]


def options_of(**values: Any) -> BearOptions:
    return BearOptions.model_validate(values)


def problem(targets: list[int] = TARGETS) -> tuple[Batch, Forward]:
    batch = positions(catalogue(), targets)
    forward = states(batch, bias=True)
    with torch.no_grad():
        forward.hidden_PD.mul_(2)  # leads on both sides of the threshold
    return batch, forward


@dataclass(frozen=True)
class Choice:
    """A branching position, in plain numbers."""

    answer: int
    log_p: float  # of the target
    log_q: float  # of the K-th best legal token


def choices(batch: Batch, forward: Forward, options: BearOptions) -> list[Choice]:
    """The equation's p and q, one position after the other, by sorting."""
    found = []
    assert forward.head.bias_V is not None
    weight_VD, bias_V = forward.head.weight_VD.tolist(), forward.head.bias_V.tolist()

    def score(hidden_D: list[float], token: int) -> float:
        logit = sum(h * w for h, w in zip(hidden_D, weight_VD[token], strict=True))
        return math.exp((logit + bias_V[token]) / options.tau)

    for hidden_D, node, target, answer in zip(
        forward.hidden_PD.tolist(),
        batch.node_P.tolist(),
        batch.target_P.tolist(),
        batch.answer_P.tolist(),
        strict=True,
    ):
        legal = legal_tokens(batch.trie, node)
        if len(legal) == 1:
            continue
        scores = {token: score(hidden_D, token) for token in legal}
        mass = sum(scores.values())
        ranked = sorted((score / mass for score in scores.values()), reverse=True)
        threshold = ranked[min(options.beams, len(ranked)) - 1]
        found.append(Choice(answer, math.log(scores[target] / mass), math.log(threshold)))
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(batch: Batch, forward: Forward, options: BearOptions) -> tuple[float, float]:
    """The loss of the whole batch: its numerator and its denominator."""
    at = choices(batch, forward, options)
    if options.variant == "released":
        weights = [1 + options.lambda_ * sigmoid((c.log_p - c.log_q) / options.xi) for c in at]
        return sum(-w * c.log_p for w, c in zip(weights, at, strict=True)), sum(weights)
    penalties = [math.log1p(math.exp((c.log_q - c.log_p) / options.xi)) for c in at]
    return (
        sum(-c.log_p + options.lambda_ * penalty for c, penalty in zip(at, penalties, strict=True)),
        float(batch.positions),
    )


def gradients(sums: LossSums, forward: Forward) -> list[torch.Tensor]:
    return list(torch.autograd.grad(sums.total, leaves_of(forward), retain_graph=True))


def numbers(sums: LossSums) -> dict[str, float]:
    return {name: float(value) for name, value in sums.stats.items()}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_equation(variant: str, setting: Mapping[str, Any]) -> None:
    options = options_of(variant=variant, **setting)
    batch, forward = problem()
    sums = METHOD.loss(forward, batch, options, {})
    numerator, denominator = reference(batch, forward, options)
    assert float(sums.total.detach()) == pytest.approx(numerator, rel=1e-12)
    assert float(sums.count) == pytest.approx(denominator, rel=1e-12)


def test_the_problem_has_targets_on_both_sides_of_the_threshold() -> None:
    """Without this the test above could not tell a sign or a threshold from another."""
    batch, forward = problem()
    leads = [c.log_p - c.log_q for c in choices(batch, forward, options_of(beams=2))]
    assert sum(lead < -0.5 for lead in leads) > 3
    assert sum(lead > 0.5 for lead in leads) > 3
    assert sum(lead == 0 for lead in leads) > 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_threshold_nor_weight_has_a_gradient(variant: str) -> None:
    """The gradient is that of the target's log-probability alone, times a number."""
    options = options_of(variant=variant, beams=2, **{"lambda": 2.0}, xi=0.5)
    batch, forward = problem()
    at = choices(batch, forward, options)
    leads = [(c.log_p - c.log_q) / options.xi for c in at]
    if variant == "released":
        factors = [1 + 2 * sigmoid(lead) for lead in leads]
    else:
        factors = [1 + 2 / options.xi * sigmoid(-lead) for lead in leads]
    legal = legal_logits(forward.hidden_PD, forward.head, batch.trie, batch.node_P, batch.target_P)
    wanted = (torch.tensor(factors, dtype=torch.float64) * legal.nll()).sum()
    sums = METHOD.loss(forward, batch, options, {})
    for found, expected in zip(
        gradients(sums, forward), gradients(LossSums(wanted, 1), forward), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_the_released_weights_are_the_gradient_of_a_saturating_term() -> None:
    """``nll + lambda xi log sigmoid(log(q / p) / xi)``: flat where the target is far behind."""
    options = options_of(beams=2, **{"lambda": 0.8}, xi=0.7)
    batch, forward = problem()
    legal = legal_logits(forward.hidden_PD, forward.head, batch.trie, batch.node_P, batch.target_P)
    log_q_A = torch.tensor([c.log_q for c in choices(batch, forward, options)], dtype=torch.float64)
    nll_A = legal.nll()
    term = 0.8 * 0.7 * torch.nn.functional.logsigmoid((log_q_A + nll_A) / 0.7)
    written_out = LossSums((nll_A + term).sum(), 1)
    released = METHOD.loss(forward, batch, options, {})
    for found, expected in zip(
        gradients(released, forward), gradients(written_out, forward), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_regularizer_of_weight_0_is_msl_bit_for_bit(tau: float, dtype: torch.dtype) -> None:
    batch, _ = problem()
    forward = states(batch, bias=True, dtype=dtype)
    ours = METHOD.loss(
        forward, batch, options_of(variant="regularizer", tau=tau, **{"lambda": 0.0}), {}
    )
    theirs = msl.loss(forward, batch, msl.MslOptions(tau=tau), {})
    assert float(ours.total.detach()) == float(theirs.total.detach())
    assert ours.count == theirs.count == batch.positions
    for found, wanted in zip(gradients(ours, forward), gradients(theirs, forward), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_released_with_weight_0_is_msls_sum_over_branching_positions(tau: float) -> None:
    """The sum is MSL's bit for bit; forced positions are left out of the mean."""
    batch, _ = problem()
    forward = states(batch, bias=True, dtype=torch.float32)
    ours = METHOD.loss(forward, batch, options_of(tau=tau, **{"lambda": 0.0}), {})
    theirs = msl.loss(forward, batch, msl.MslOptions(tau=tau), {})
    assert float(ours.total.detach()) == float(theirs.total.detach())
    branching = int((batch.trie.fan_out(batch.node_P) > 1).sum())
    assert float(ours.count) == branching < batch.positions
    for found, wanted in zip(gradients(ours, forward), gradients(theirs, forward), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_in_parts_is_the_whole(variant: str) -> None:
    """A weighted mean over a global batch, with targets behind the threshold among them."""
    options = options_of(variant=variant, beams=2)
    batch, forward = problem()
    numerator, denominator = reference(batch, forward, options)
    total = count = 0.0
    means = []
    for answers in ([2], [0, 4, 5, 7, 9, 11, 12], [1, 3, 6, 8, 10, 13, 14, 15]):
        one, at = part(batch, forward, answers)
        sums = METHOD.loss(at, one, options, {})
        total, count = total + float(sums.total.detach()), count + float(sums.count)
        means.append(float(sums.total.detach()) / float(sums.count))
    assert total / count == pytest.approx(numerator / denominator, rel=1e-12)
    assert abs(sum(means) / 3 - numerator / denominator) > 1e-3, "a mean of means is told apart"


def test_what_a_beam_keeps_is_counted() -> None:
    options = options_of(beams=2)
    batch, forward = problem()
    sums = METHOD.loss(forward, batch, options, {})
    at = choices(batch, forward, options)
    dropped = [c.log_p < c.log_q for c in at]
    lost = {c.answer for c, is_dropped in zip(at, dropped, strict=True) if is_dropped}
    shown = METHOD.metrics(numbers(sums), float(sums.count), options, batch.trie)
    assert 0 < len(lost) < len(TARGETS)
    assert shown["in_beam"] == pytest.approx(1 - sum(dropped) / len(at))
    assert shown["answers_in_beam"] == pytest.approx(1 - len(lost) / len(TARGETS))
    assert shown["weight"] == pytest.approx(float(sums.count) / len(at))
    assert "penalty" not in shown

    options = options_of(variant="regularizer", beams=2, **{"lambda": 0.3})
    sums = METHOD.loss(forward, batch, options, {})
    shown = METHOD.metrics(numbers(sums), float(sums.count), options, batch.trie)
    nll = -sum(c.log_p for c in at) / batch.positions
    loss = float(sums.total.detach()) / float(sums.count)
    assert nll + 0.3 * shown["penalty"] == pytest.approx(loss)
    assert shown["in_beam"] == pytest.approx(1 - sum(dropped) / len(at))
    assert "weight" not in shown


def test_a_target_that_ties_with_the_threshold_is_kept() -> None:
    """Two legal tokens of one logit: a beam of 1 may keep either."""
    trie = build_trie([[3, EOS], [4, EOS]])
    batch = positions(trie, [0, 1])
    forward = states(batch)
    with torch.no_grad():
        forward.head.weight_VD[4] = forward.head.weight_VD[3]
    sums = METHOD.loss(forward, batch, options_of(beams=1), {})
    assert numbers(sums)["in_beam"] == 2


def test_a_beam_of_1_keeps_the_most_probable_items_of_a_brute_force() -> None:
    """``answers_in_beam`` is about real prefixes: greedy decoding finds exactly these targets."""
    trie, options = catalogue(), options_of(beams=1)
    leaves = list(range(trie.n_leaves))
    batch = positions(trie, leaves)
    torch.manual_seed(4)
    state_ND = torch.randn(trie.n_nodes, 6, dtype=torch.float64)
    forward = replace(states(batch), hidden_PD=state_ND[batch.node_P])
    weight_VD, node = forward.head.weight_VD.detach(), 0
    while trie.fan_out(torch.tensor(node)) > 0:
        at = state_ND[node]
        node = max(
            range(int(trie.edge_start_N1[node]), int(trie.edge_start_N1[node + 1])),
            key=lambda edge: float(at @ weight_VD[int(trie.edge_token_E[edge])]),
        )
        node += 1  # the edge e leads to the node e + 1
    greedy = trie.node_of_leaf_L.tolist().index(node)
    for leaf in leaves:
        one, part_of = part(batch, forward, [leaf])
        found = numbers(METHOD.loss(part_of, one, options, {}))["answers_in_beam"]
        assert found == (leaf == greedy), leaf


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
def test_the_kth_logit_is_a_legal_one(k: int) -> None:
    batch, forward = problem()
    legal = legal_logits(forward.hidden_PD, forward.head, batch.trie, batch.node_P, batch.target_P)
    found = legal.kth_logits(k)
    for row, logit in enumerate(found.tolist()):
        ranked = sorted(legal.logits_AU[row][legal.legal_AU()[row]].tolist(), reverse=True)
        assert logit == ranked[min(k, len(ranked)) - 1]


def test_the_kth_logit_of_nothing_is_nothing() -> None:
    batch = positions(one_item(), [0])
    forward = states(batch)
    legal = legal_logits(forward.hidden_PD, forward.head, batch.trie, batch.node_P, batch.target_P)
    assert legal.kth_logits(3).shape == (0,)


def test_without_a_choice_nothing_is_logged_that_is_unknown() -> None:
    batch = positions(one_item(), [0, 0])
    sums = METHOD.loss(states(batch), batch, options_of(), {})
    assert float(sums.count) == 0
    shown = METHOD.metrics(numbers(sums), 1.0, options_of(), batch.trie)
    assert shown == {"answers_in_beam": 1.0}


def describe(options: BearOptions, trie: Trie) -> str:
    line = METHOD.describe(options, trie, lambda ids: " ".join(map(str, ids)))
    assert line is not None
    return line


def test_where_a_beam_can_drop_a_target_is_described() -> None:
    """Five first tokens, three tokens behind 7, and two behind 3, 3 8, 3 11 and 5."""
    assert describe(options_of(beams=2), catalogue()) == (
        "beams = 2: 2 of 6 choices of the catalogue have more than 2 legal tokens (the widest has "
        "5); at the others every target is among the 2 best"
    )
    assert describe(options_of(beams=5), catalogue()) == (
        "beams = 5: no choice of the catalogue has more than 5 legal tokens (the widest has 5), "
        "so every target is among the 5 best; lower beams"
    )
    assert "1 of 6 choices" in describe(options_of(beams=4), catalogue())


def test_options() -> None:
    assert options_of() == options_of(
        variant="released", beams=10, tau=1.0, xi=2.75, **{"lambda": 0.25}
    )
    assert METHOD.idle(options_of(**{"lambda": 0.0})) == {"xi": "lambda = 0"}
    assert METHOD.idle(options_of()) == {}
    for wrong in ({"beams": 0}, {"tau": 0.0}, {"tau": "ats"}, {"xi": 0.0}, {"lambda": -0.1}):
        with pytest.raises(ValidationError):
            options_of(**wrong)
