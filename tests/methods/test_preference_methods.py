"""DPO, S-DPO and DMPO as methods: supports, reference, groups, statistics, options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import (
    Batch,
    Forward,
    Method,
    Negatives,
    Preferences,
    ReferenceModel,
)
from tests.methods.random_batches import catalogue, draw, legal_tokens, positions, states

LOG2 = math.log(2)


def options_of(method: Method, **values: Any) -> Any:
    return method.options.model_validate(values)


def slow_log_probs(batch: Batch, forward: Forward, support: str) -> list[Tensor]:
    """``log pi`` of each answer, token by token over a dense vocabulary."""
    summed = [torch.zeros((), dtype=torch.float64) for _ in range(batch.answers)]
    for p, answer in enumerate(batch.answer_P.tolist()):
        logits_V = forward.head.weight_VD.double() @ forward.hidden_PD[p].double()
        if support == "legal":
            mask_V = torch.full_like(logits_V, -math.inf)
            mask_V[legal_tokens(batch.trie, int(batch.node_P[p]))] = 0
            logits_V = logits_V + mask_V
        summed[answer] = summed[answer] + logits_V.log_softmax(0)[batch.target_P[p]]
    return summed


def slow_loss(name: str, batch: Batch, forward: Forward, options: Any) -> Tensor:
    """The equations of docs/methods/preference.md, group by group."""
    preferences = batch.preferences
    assert preferences is not None
    log_pi = slow_log_probs(batch, forward, options.support)
    released = name == "dmpo" and options.variant == "released"
    known = batch.reference
    ref = [0.0] * batch.answers if released or known is None else known.tolist()
    total = torch.zeros((), dtype=torch.float64)
    for chosen_C, rejected_K in zip(
        preferences.chosen_GC.tolist(), preferences.rejected_GK.tolist(), strict=True
    ):
        own_K = chosen_C if len(chosen_C) > 1 else chosen_C * len(rejected_K)
        ahead_K = torch.stack(
            [
                options.beta * ((log_pi[w] - ref[w]) - (log_pi[i] - ref[i]))
                for w, i in zip(own_K, rejected_K, strict=True)
            ]
        )
        if name in ("sdpo", "sprec"):
            total = total - (1 / (1 + (-ahead_K).exp().sum())).log()
        elif released or name == "dpo":
            total = total - ahead_K.sigmoid().log().mean()
        else:
            total = total - ahead_K.mean().sigmoid().log()
        nll = torch.stack([-log_pi[w] / batch.length_A[w] for w in chosen_C]).mean()
        total = total + options.sft * nll
    return total


CASES = [
    ("dpo", {}),
    ("sdpo", {"k": 1}),
    ("sdpo", {"k": 3, "sft": 0.5}),
    ("sprec", {}),
    ("sprec", {"k": 3, "pool": 5, "sft": 0.5}),
    ("dmpo", {"k": 4}),
    ("dmpo", {"k": 2, "sft": 1.0, "beta": 0.7}),
    ("dmpo", {"k": 3, "variant": "released"}),
]


@pytest.mark.parametrize("support", ["vocab", "legal"])
@pytest.mark.parametrize(("name", "values"), CASES)
def test_loss_and_gradients_equal_the_equations(
    name: str, values: dict[str, Any], support: str
) -> None:
    method = find_method(name)
    options = options_of(method, support=support, **values)
    batch, forward = draw(
        catalogue(), [0, 3, 8, 5], method.needs(options), cut=method.legal_only(options)
    )
    leaves = [forward.hidden_PD, forward.head.weight_VD]
    sums = method.loss(forward, batch, options, {})
    expected = slow_loss(name, batch, forward, options)
    assert sums.count == 4
    torch.testing.assert_close(sums.total, expected)
    found = torch.autograd.grad(sums.total, leaves)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("support", ["vocab", "legal"])
@pytest.mark.parametrize(("name", "values"), CASES)
def test_pairs_with_prompts_of_their_own(name: str, values: dict[str, Any], support: str) -> None:
    """The rank-pair task: chosen and rejected answers alternate, each pair after its own prompt."""
    method = find_method(name)
    options = options_of(method, support=support, **values)
    batch = positions(catalogue(), [0, 3, 1, 7, 8, 2, 4, 9])
    pairs_GK = torch.arange(8).view(-1, 2 if name != "dpo" else 1, 2)
    reference_A = -torch.rand(8, dtype=torch.float64)
    preferences = Preferences(pairs_GK[..., 0], pairs_GK[..., 1])
    batch = replace(batch, preferences=preferences, reference=reference_A)
    forward = states(batch)
    sums = method.loss(forward, batch, options, {})
    assert sums.count == len(pairs_GK)
    torch.testing.assert_close(sums.total, slow_loss(name, batch, forward, options))


@pytest.mark.parametrize("support", ["vocab", "legal"])
@pytest.mark.parametrize(
    ("name", "values", "at_start"),
    [
        ("dpo", {}, LOG2),
        ("dmpo", {"k": 3}, LOG2),
        ("sdpo", {"k": 3}, math.log(4)),
        ("sdpo", {"k": 1}, LOG2),
    ],
)
def test_a_policy_that_is_its_reference(
    name: str, values: dict[str, Any], support: str, at_start: float
) -> None:
    """At step 0 every D is 0: log 2, and log(1 + k) for S-DPO, whatever the states are."""
    method = find_method(name)
    options = options_of(method, support=support, **values)
    batch, forward = draw(catalogue(), [1, 4, 6], method.needs(options))
    assert method.log_probs is not None
    assert batch.preferences is not None
    with torch.no_grad():
        reference_A = method.log_probs(forward, batch, options)
    batch = replace(batch, reference=reference_A)
    sums = method.loss(forward, batch, options, {})
    assert float(sums.total.detach()) / sums.count == pytest.approx(at_start, rel=1e-12)
    assert set(sums.stats) == {"d_chosen", "d_rejected", "margin", "accuracy"}
    assert all(float(value) == 0 for value in sums.stats.values())


def test_over_legal_tokens_log_pi_is_the_catalogues() -> None:
    """The probabilities of all entries after one prompt sum to 1; over the vocabulary they miss."""
    method, trie = find_method("dmpo"), catalogue()
    batch = positions(trie, list(range(trie.n_leaves)))
    torch.manual_seed(0)
    by_node = torch.randn(trie.n_nodes, 6, dtype=torch.float64)  # one prompt: state by prefix
    forward = replace(states(batch), hidden_PD=by_node[batch.node_P])
    assert method.log_probs is not None
    mass = {
        support: float(
            method.log_probs(forward, batch, options_of(method, support=support))
            .detach()
            .exp()
            .sum()
        )
        for support in ("legal", "vocab")
    }
    assert mass["legal"] == pytest.approx(1, abs=1e-12)
    assert mass["vocab"] < 0.9


def test_the_reference_is_not_trained() -> None:
    method = find_method("dpo")
    batch, forward = draw(catalogue(), [1, 4], method.needs(method.options()))
    assert batch.preferences is not None
    assert batch.reference is not None
    reference_A = batch.reference.float()  # a store may keep another precision
    batch = replace(batch, reference=reference_A)
    sums = method.loss(forward, batch, method.options(), {})
    assert sums.total.dtype == torch.float64
    sums.total.backward()
    assert reference_A.grad is None


def test_statistics_of_a_hand_made_group() -> None:
    """D = log pi - log pi_ref is set to chosen 1, rejected (0, 3, -2) through the reference."""
    method = find_method("dmpo")
    options = options_of(method, k=3, sft=0.5)
    batch, forward = draw(catalogue(), [2], method.needs(options))
    assert method.log_probs is not None
    assert batch.preferences is not None
    with torch.no_grad():
        log_pi_A = method.log_probs(forward, batch, options)
    wanted_A = torch.tensor([1.0, 0.0, 3.0, -2.0], dtype=torch.float64)
    known = replace(batch, reference=log_pi_A - wanted_A)
    sums = method.loss(forward, known, options, {})
    stats = {name: float(value) for name, value in sums.stats.items()}
    nll = -float(log_pi_A[0]) / int(batch.length_A[0])
    # margin 1 - (0 + 3 - 2) / 3 = 2/3 nats; the chosen answer beats two of three
    assert method.metrics(stats, 1.0, options, batch.trie) == pytest.approx(
        {
            "d_chosen": 1.0,
            "d_rejected": 1 / 3,
            "margin": 2 / 3,
            "accuracy": 2 / 3,
            "nll_chosen": nll,
        }
    )
    # log(1 + exp(-beta * 2/3)) + 0.5 nll with beta = 0.1: log(1 + 0.935507) = 0.660369
    assert float(sums.total.detach()) == pytest.approx(0.660369 + 0.5 * nll, abs=1e-6)
    larger = method.metrics(stats | {"d_chosen": 8.0}, 4.0, options, batch.trie)
    assert larger["d_chosen"] == 2.0


def test_released_variant_of_a_hand_made_group() -> None:
    """No reference: x = beta (log pi_i - log pi_w), the mean outside, plus the NLL."""
    method = find_method("dmpo")
    options = options_of(method, k=2, variant="released")
    assert options.sft == 1.0
    assert options_of(method, k=2, variant="released", sft=0.0).sft == 0.0
    assert method.needs(options).reference is None
    batch, forward = draw(catalogue(), [0], method.needs(options))
    assert method.log_probs is not None
    with torch.no_grad():
        w, i, j = method.log_probs(forward, batch, options).tolist()
    pairs = [math.log1p(math.exp(0.1 * (lost - w))) for lost in (i, j)]
    sums = method.loss(forward, batch, options, {})
    expected = sum(pairs) / 2 - w / int(batch.length_A[0])
    assert float(sums.total.detach()) == pytest.approx(expected, rel=1e-12)
    assert set(sums.stats) == {"logp_chosen", "logp_rejected", "margin", "accuracy", "nll_chosen"}
    low = {name: float(value) - 50 for name, value in sums.stats.items()}
    logged = method.metrics(low, 1.0, options, batch.trie)
    assert method.warning(logged, options) is None  # log pi is no D


@pytest.mark.parametrize("name", ["dpo", "sdpo", "dmpo"])
def test_a_falling_chosen_answer_is_worth_a_warning(name: str) -> None:
    method = find_method(name)
    logged = {"d_chosen": -2.5, "margin": 9.0, "accuracy": 1.0}
    warning = method.warning(logged, method.options())
    assert warning is not None
    assert "D(chosen) = -2.50 nats" in warning
    assert "train.learning_rate" in warning
    assert method.warning({"d_chosen": -1.9}, method.options()) is None
    assert method.warning({}, method.options()) is None


@pytest.mark.parametrize("name", ["dpo", "sdpo", "dmpo"])
def test_what_is_missing_is_named(name: str) -> None:
    method = find_method(name)
    options = method.options()
    batch, forward = draw(catalogue(), [1, 4], method.needs(options))
    assert batch.preferences is not None
    unknown = replace(batch, reference=None)
    with pytest.raises(ValueError, match=r"Batch\.reference"):
        method.loss(forward, unknown, options, {})
    with pytest.raises(ValueError, match=r"Batch\.preferences"):
        method.loss(forward, replace(batch, preferences=None), options, {})


def test_needs_are_the_options() -> None:
    method = find_method("sdpo")
    options = options_of(
        method,
        k=5,
        negatives="disliked",
        pool=9,
        refresh=4,
        below=3.0,
        short="drop",
        reference="online",
    )
    needs = method.needs(options)
    assert needs.negatives == Negatives(5, "disliked", pool=9, refresh=4, below=3.0, short="drop")
    assert needs.reference == ReferenceModel("online")
    stored = method.needs(options_of(method, reference="precompute"))
    assert stored.reference == ReferenceModel("precompute")
    sprec = find_method("sprec")
    needs = sprec.needs(options_of(sprec, k=2, pool=3, refresh=7, short="drop"))
    assert needs.negatives == Negatives(2, "model", pool=3, refresh=7, short="drop")
    assert needs.reference == ReferenceModel(moves=7)
    dpo = find_method("dpo")
    assert dpo.needs(dpo.options()).negatives == Negatives(1, "model")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dpo", {"beta": 0.0}, "beta"),
        ("dpo", {"k": 2}, "k"),
        ("sdpo", {"k": 0}, "k"),
        ("dmpo", {"refresh": 5, "reference": "precompute"}, 'reference = "online"'),
        ("dpo", {"refresh": 5, "reference": "precompute"}, 'reference = "online"'),
        ("dmpo", {"k": 30}, "pool = 20 must be >= k = 30"),
        ("sprec", {"k": 2}, "pool = 1 must be >= k = 2"),
        ("sprec", {"refresh": 0}, "refresh"),
        ("sprec", {"negatives": "uniform"}, "negatives"),
        ("dmpo", {"variant": "theirs"}, "variant"),
        ("dmpo", {"negatives": "hard"}, "negatives"),
        ("dmpo", {"sft": -1.0}, "sft"),
        ("dmpo", {"support": "trie"}, "support"),
    ],
)
def test_options_out_of_range_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        find_method(name).options.model_validate(values)
