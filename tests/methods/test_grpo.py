"""GRPO: the equations in plain loops, rewards by hand, and what is equal in expectation."""

from __future__ import annotations

import itertools
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
    Head,
    ReferenceModel,
    RolloutGroups,
    Rollouts,
)
from llmrec_cli.tensors.policy_gradient import reward_answers, weigh_draws
from tests.methods.random_batches import V, catalogue, draw, legal_tokens, positions, states

GRPO = find_method("grpo")
TARGETS = [0, 3, 8, 5]


def options_of(**values: Any) -> Any:
    return GRPO.options.model_validate({"k": 4, **values})


def slow_rewards(hits: list[bool], rank: bool) -> list[float]:
    total = sum(1 / math.log2(place + 2) for place in range(len(hits)))
    rewards = []
    for place, hit in enumerate(hits):
        penalty = -1 / math.log2(place + 2) / total if rank and any(hits) else 0.0
        rewards.append(1.0 if hit else penalty)
    return rewards


Token = tuple[Tensor, float]  # its log-probability, and the reference's


def slow_tokens(batch: Batch, forward: Forward, support: str) -> list[list[Token]]:
    """The tokens of each answer, over a dense vocabulary."""
    known_P = [0.0] * len(batch.answer_P) if batch.reference is None else batch.reference.tolist()
    tokens: list[list[Token]] = [[] for _ in range(batch.answers)]
    for p, answer in enumerate(batch.answer_P.tolist()):
        logits_V = forward.head.weight_VD.double() @ forward.hidden_PD[p].double()
        if support == "legal":
            mask_V = torch.full_like(logits_V, -math.inf)
            mask_V[legal_tokens(batch.trie, int(batch.node_P[p]))] = 0
            logits_V = logits_V + mask_V
        tokens[answer].append((logits_V.log_softmax(0)[batch.target_P[p]], known_P[p]))
    for answer, own in enumerate(tokens):
        assert len(own) == int(batch.length_A[answer])
    return tokens


def slow_advantage(answers: list[list[Token]], rewards: list[float], epsilon: float) -> Tensor:
    k, mean = len(rewards), sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (k - 1))
    loss = torch.zeros((), dtype=torch.float64)
    for own, reward in zip(answers, rewards, strict=True):
        for lp, _ in own:
            ratio = (lp - lp.detach()).exp()
            loss = loss - ratio * (reward - mean) / (std + epsilon) / len(own) / k
    return loss


def slow_expected(answers: list[list[Token]], rewards: list[float], drawn: bool) -> Tensor:
    log_pi_K = torch.stack([torch.stack([lp for lp, _ in own]).sum() for own in answers])
    if drawn:
        p_K = log_pi_K.detach().exp()
        p_K[-1] = 1 - sum(p_K[:-1].tolist())
        p_K = p_K * (log_pi_K - log_pi_K.detach()).exp()
    else:
        p_K = log_pi_K.exp() / log_pi_K.exp().sum()
    return -(p_K * torch.tensor(rewards, dtype=torch.float64)).sum()


def slow_kl(answers: list[list[Token]]) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for own in answers:
        for lp, ref in own:
            loss = loss + ((ref - lp).exp() - (ref - lp) - 1) / len(own) / len(answers)
    return loss


def slow_loss(batch: Batch, forward: Forward, options: Any) -> Tensor:
    """docs/methods/grpo.md, group by group, answer by answer, token by token, in float64.

    The batch holds all tokens of the answers.
    """
    assert batch.rollouts is not None
    tokens = slow_tokens(batch, forward, options.support)
    loss = torch.zeros((), dtype=torch.float64)
    for numbers, hits in zip(
        batch.rollouts.answer_GK.tolist(), batch.rollouts.hit_GK.tolist(), strict=True
    ):
        answers, rewards = [tokens[n] for n in numbers], slow_rewards(hits, options.rank)
        if options.objective == "advantage":
            loss = loss + slow_advantage(answers, rewards, options.epsilon)
        else:
            loss = loss + slow_expected(answers, rewards, options.rollouts == "sampled")
        if options.beta:
            loss = loss + options.beta * slow_kl(answers)
    return loss


CASES: list[dict[str, Any]] = [
    {},
    {"support": "vocab"},
    {"rank": False},
    {"beta": 0.0},
    {"beta": 0.7, "epsilon": 0.5, "k": 2},
    {"objective": "expected"},
    {"objective": "expected", "support": "vocab", "rank": False, "beta": 0.0},
    {"objective": "expected", "rollouts": "sampled"},
]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("values", CASES)
def test_loss_and_gradients_equal_the_equations(values: dict[str, Any], cut: bool) -> None:
    """Forced tokens count in an answer's mean, whether the engine leaves them out or not."""
    options = options_of(**values)
    needs, cut = GRPO.needs(options), cut and GRPO.legal_only(options)
    whole, _ = draw(catalogue(), TARGETS, needs)
    batch, forward = draw(catalogue(), TARGETS, needs, cut=cut)
    if cut:  # states of the whole answers, of which the cut batch has a part
        assert len(batch.target_P) < len(whole.target_P)
        places = list(zip(whole.answer_P.tolist(), whole.node_P.tolist(), strict=True))
        own = zip(batch.answer_P.tolist(), batch.node_P.tolist(), strict=True)
        kept_P = torch.tensor([places.index(place) for place in own])
        full = states(whole)
        forward = replace(full, hidden_PD=full.hidden_PD[kept_P])
    else:
        full = forward
    leaves = [full.hidden_PD, full.head.weight_VD]
    sums = GRPO.loss(forward, batch, options, {})
    expected = slow_loss(whole, full, options)
    assert sums.count == len(TARGETS)
    torch.testing.assert_close(sums.total, expected)
    found = torch.autograd.grad(sums.total, leaves)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves))


def test_rewards_by_hand() -> None:
    """ReRe: 1 for the target; the others -(1 / log2(j + 2)) / sum, 0 in a group without it."""
    hit_GK = torch.tensor([[False, True, False], [False, False, False]])
    # 1, 1 / log2(3) = 0.63093, 0.5; the sum is 2.13093
    wanted = torch.tensor([[-0.469279, 1.0, -0.234639], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(reward_answers(hit_GK, rank=True), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        reward_answers(hit_GK, rank=False), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    )


@pytest.mark.parametrize("objective", ["advantage", "expected"])
def test_a_group_without_the_target_teaches_nothing(objective: str) -> None:
    options = options_of(objective=objective, beta=0.0)
    batch, forward = draw(catalogue(), TARGETS, GRPO.needs(options))
    assert batch.rollouts is not None
    missed = replace(batch.rollouts, hit_GK=torch.zeros_like(batch.rollouts.hit_GK))
    sums = GRPO.loss(forward, replace(batch, rollouts=missed), options, {})
    assert float(sums.total.detach()) == 0
    sums.total.backward()
    assert forward.hidden_PD.grad is not None
    assert float(forward.hidden_PD.grad.abs().sum()) == 0


def test_at_the_start_there_is_no_divergence_but_a_gradient() -> None:
    options = options_of()
    batch, forward = draw(catalogue(), TARGETS, GRPO.needs(options))
    assert GRPO.log_probs is not None
    with torch.no_grad():
        reference_P = GRPO.log_probs(forward, batch, options)
    sums = GRPO.loss(forward, replace(batch, reference=reference_P), options, {})
    assert float(sums.total.detach()) == pytest.approx(0, abs=1e-12)  # advantages sum to 0
    assert float(sums.stats["kl"]) == 0
    sums.total.backward()
    assert forward.hidden_PD.grad is not None
    assert float(forward.hidden_PD.grad.abs().sum()) > 0


# One prompt on the small catalogue: a state for every trie node, so that the policy is one
# distribution over its eleven entries, and the expected reward has a gradient without sampling.


class OnePrompt:
    """All entries after one prompt, and the loss of any rollouts of it."""

    def __init__(self) -> None:
        self.trie = catalogue()
        torch.manual_seed(5)
        self.by_node_ND = torch.randn(self.trie.n_nodes, 6, dtype=torch.float64)
        self.weight_VD = torch.randn(V, 6, dtype=torch.float64)
        self.target = 3

    def gradient(self, leaves: tuple[int, ...], options: Any) -> Tensor:
        """Of the loss, with regard to the states of all nodes."""
        batch = positions(self.trie, leaves)
        hit_GK = torch.tensor([[leaf == self.target for leaf in leaves]])
        answer_GK = torch.arange(len(leaves))[None]
        batch = replace(batch, rollouts=RolloutGroups(answer_GK, hit_GK))
        state_ND = self.by_node_ND.clone().requires_grad_()
        forward = Forward(state_ND[batch.node_P], Head(self.weight_VD))
        (found,) = torch.autograd.grad(GRPO.loss(forward, batch, options, {}).total, state_ND)
        return found

    def probabilities(self) -> list[float]:
        everything = positions(self.trie, range(self.trie.n_leaves))
        forward = Forward(self.by_node_ND[everything.node_P], Head(self.weight_VD))
        assert GRPO.log_probs is not None
        log_prob_P = GRPO.log_probs(forward, everything, options_of())
        log_prob_A = torch.zeros(everything.answers, dtype=torch.float64)
        return log_prob_A.index_add(0, everything.answer_P, log_prob_P).exp().tolist()

    def draws(self, k: int) -> list[tuple[tuple[int, ...], float]]:
        """All ordered draws of k entries without replacement, and their probabilities."""
        p, found = self.probabilities(), []
        for leaves in itertools.permutations(range(len(p)), k):
            left, probability = 1.0, 1.0
            for leaf in leaves:
                probability *= p[leaf] / left
                left -= p[leaf]
            found.append((leaves, probability))
        return found


def moments(world: OnePrompt, options: Any, k: int) -> tuple[Tensor, float]:
    """Expectation of the gradient over all draws, and its total variance."""
    draws = [(world.gradient(leaves, options), p) for leaves, p in world.draws(k)]
    assert sum(p for _, p in draws) == pytest.approx(1)
    mean = sum((p * gradient for gradient, p in draws), torch.zeros_like(draws[0][0]))
    variance = sum(p * float((gradient - mean).square().sum()) for gradient, p in draws)
    return mean, variance


def plain(**values: Any) -> Any:
    """Rewards of the target alone: the part that does not depend on the rest of the group."""
    return options_of(rank=False, beta=0.0, **values)


def test_the_expected_objective_of_draws_is_unbiased() -> None:
    """Over all ordered draws of 2 and 3 entries: the gradient of the expected reward of all."""
    world = OnePrompt()
    everything = tuple(range(world.trie.n_leaves))
    exact = world.gradient(everything, plain(k=len(everything), objective="expected"))
    assert float(exact.norm()) > 1e-2
    variances = []
    for k in (2, 3):
        sampled = plain(k=k, rollouts="sampled", objective="expected")
        mean, variance = moments(world, sampled, k)
        torch.testing.assert_close(mean, exact, rtol=0, atol=1e-12)
        variances.append(variance)
    assert 0 < variances[1] < variances[0]
    whole = plain(k=len(everything), rollouts="sampled", objective="expected")
    torch.testing.assert_close(world.gradient(everything, whole), exact)


def test_the_normalised_advantage_of_draws_is_not_the_expected_reward() -> None:
    """What does not hold: GRPO's own form points elsewhere, and has another size."""
    world = OnePrompt()
    everything = tuple(range(world.trie.n_leaves))
    exact = world.gradient(everything, plain(k=len(everything), objective="expected"))
    mean, _ = moments(world, plain(k=2, rollouts="sampled"), 2)
    cosine = torch.nn.functional.cosine_similarity(mean.flatten(), exact.flatten(), dim=0)
    assert float(cosine) < 0.999
    top = tuple(torch.tensor(world.probabilities()).argsort(descending=True)[:6].tolist())
    assert world.target in top
    cut = world.gradient(top, plain(k=6, objective="expected"))
    assert float((cut - exact).norm() / exact.norm()) > 1e-3


def test_weights_of_draws_sum_to_one() -> None:
    log_prob_GK = torch.tensor([[0.5, 0.2, 0.1]]).log().requires_grad_()
    weight_GK = weigh_draws(log_prob_GK)
    torch.testing.assert_close(weight_GK, torch.tensor([[0.5, 0.2, 0.3]]))
    assert not weight_GK.requires_grad


def test_metrics_of_hand_made_groups() -> None:
    options = options_of(k=2, rank=False)
    batch = positions(catalogue(), [0, 3, 1, 4])
    groups = RolloutGroups(
        torch.arange(4).view(2, 2), torch.tensor([[False, True], [False, False]])
    )
    forward = states(batch)
    assert GRPO.log_probs is not None
    with torch.no_grad():
        log_prob_P = GRPO.log_probs(forward, batch, options)
    batch = replace(batch, rollouts=groups, reference=log_prob_P + 0.5)
    sums = GRPO.loss(forward, batch, options, {})
    stats = {name: float(value) for name, value in sums.stats.items()}
    shown = GRPO.metrics(stats, 2.0, options, batch.trie)
    mass = torch.zeros(4).double().index_add(0, batch.answer_P, log_prob_P).exp().sum()
    assert shown == pytest.approx(
        {
            "without_target": 0.5,
            "reward": 0.25,  # means 1/2 and 0
            "reward_std": math.sqrt(0.5) / 2,  # of 0 and 1, unbiased; and 0
            "mass": float(mass) / 2,
            "kl": math.exp(0.5) - 1.5,
        }
    )


def test_warnings() -> None:
    fine = {"without_target": 0.9, "reward_std": 0.1, "reward": 0.0, "mass": 0.5}
    assert GRPO.warning(fine, options_of()) is None
    none = GRPO.warning({**fine, "reward_std": 0.0}, options_of())
    assert none is not None
    assert none.startswith("none of the 4 rollouts of any row of this update is its target")
    unlikely = GRPO.warning({**fine, "mass": 3e-30}, options_of(support="vocab"))
    assert unlikely is not None
    assert 'set support = "legal"' in unlikely
    assert GRPO.warning({**fine, "kl": 0.9}, options_of()) is None
    far = GRPO.warning({**fine, "kl": 1.26}, options_of())
    assert far is not None
    assert far.startswith("kl = 1.26 nats per token: the policy has left its parent")


def test_needs_follow_the_options() -> None:
    needs = GRPO.needs(options_of(seen="remove"))
    assert needs.rollouts == Rollouts(4, "top", "legal", "remove")
    assert (needs.reference, needs.answers, needs.packs) == (ReferenceModel(), 4, True)
    assert GRPO.needs(options_of(beta=0.0)).reference is None
    vocab = GRPO.needs(options_of(support="vocab")).rollouts
    assert vocab == Rollouts(4, "top", "vocab", "keep")
    assert not GRPO.legal_only(options_of(support="vocab"))
    assert not GRPO.measures(options_of())
    assert GRPO.measures(options_of(objective="expected"))
    assert GRPO.idle(options_of()) == {}
    assert set(GRPO.idle(options_of(objective="expected"))) == {"epsilon"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"k": 1}, "greater than or equal to 2"),
        ({"beta": -0.1}, "greater than or equal to 0"),
        ({"rollouts": "sampled", "support": "vocab"}, 'expected support = "legal"'),
        ({"rollouts": "beam"}, "'top' or 'sampled'"),
    ],
)
def test_options_that_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        options_of(**values)


def test_a_batch_without_what_is_needed_is_refused() -> None:
    options = options_of()
    batch, forward = draw(catalogue(), TARGETS, GRPO.needs(options))
    for lacking in (replace(batch, rollouts=None), replace(batch, reference=None)):
        with pytest.raises(ValueError, match=r"Batch\.rollouts, and Batch\.reference"):
            GRPO.loss(forward, lacking, options, {})
