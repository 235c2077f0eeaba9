"""Rewards, advantages and losses of groups of answers that a policy gave itself (GRPO, ReRe).

Shape suffixes: P response positions, A answers, G groups, K answers of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reward_answers(hit_GK: Tensor, *, rank: bool) -> Tensor:
    """1 for the target's entry; with ``rank`` less than 0 for the others of a group that has it.

    The answer at place j (from 0) gets ``-(1 / log2(j + 2)) / sum_j (1 / log2(j + 2))``: the
    earlier a wrong answer, the worse (ReRe, arXiv:2510.12211).  A group without the target has
    rewards of 0.

    Args:
        hit_GK: bool, in the order of the answers.

    Returns:
        reward_GK in the default float type.
    """
    reward_GK = hit_GK.to(torch.get_default_dtype())
    if not rank:
        return reward_GK
    place_K = torch.arange(hit_GK.shape[1], device=hit_GK.device)
    gain_K = 1 / torch.log2(place_K + 2.0)
    penalty_K = -gain_K / gain_K.sum()
    missed_GK = ~hit_GK & hit_GK.any(1, keepdim=True)
    return torch.where(missed_GK, penalty_K, reward_GK)


def normalize_rewards(reward_GK: Tensor, epsilon: float) -> Tensor:
    """``A = (r - mean) / (std + epsilon)`` within each group, the std unbiased; K >= 2.

    GRPO, arXiv:2402.03300.  A group of equal rewards has advantages of 0.
    """
    centred_GK = reward_GK - reward_GK.mean(1, keepdim=True)
    return centred_GK / (measure_deviation(reward_GK)[:, None] + epsilon)


def measure_deviation(reward_GK: Tensor) -> Tensor:
    """The unbiased standard deviation of each group, [G]; K >= 2."""
    centred_GK = reward_GK - reward_GK.mean(1, keepdim=True)
    return (centred_GK.square().sum(1) / (reward_GK.shape[1] - 1)).sqrt()


def estimate_kl(log_prob_P: Tensor, reference_P: Tensor) -> Tensor:
    """``exp(ref - lp) - (ref - lp) - 1`` of each token, nats, >= 0.

    Its mean over tokens drawn from the policy is the divergence from the reference.  Its gradient
    goes to ``log_prob_P``.
    """
    behind_P = reference_P.to(log_prob_P) - log_prob_P
    return behind_P.exp() - behind_P - 1


def weigh_draws(log_prob_GK: Tensor) -> Tensor:
    """Weights that make a sum over answers drawn without replacement an unbiased mean.

    ``w_j = P(j)`` of all but the last one drawn, which stands for all that were not: it gets
    ``1 - sum_j P(j)``.  For any f, the expectation of ``sum_j w_j f(j)`` over draws is that of f
    under P, since the last one is drawn from P over what the others left ("sum and sample",
    arXiv:2002.06043).

    Args:
        log_prob_GK: nats, normalised over all entries, in the order drawn.
    """
    weight_GK = log_prob_GK.detach().exp()
    weight_GK[:, -1] = (1 - weight_GK[:, :-1].sum(1)).clamp_min(0)
    return weight_GK


def mean_over_tokens(value_P: Tensor, answer_P: Tensor, length_A: Tensor) -> Tensor:
    """Of each answer the sum over its positions by its whole length, [A].

    Positions that were left out count as 0.
    """
    summed_A = value_P.new_zeros(len(length_A)).index_add(0, answer_P, value_P)
    return summed_A / length_A
