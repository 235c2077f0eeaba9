"""GRPO on the policy's own exact answers (ReRe, arXiv:2510.12211; GRPO, arXiv:2402.03300)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from llmrec_cli.methods.contract import (
    Batch,
    Forward,
    LossSums,
    Method,
    Needs,
    Options,
    ReferenceModel,
    Rollouts,
    Spell,
    State,
)

if TYPE_CHECKING:
    from torch import Tensor

    from llmrec_cli.tensors.trie import Trie


UNLIKELY = 1e-6
"""Probability of all rollouts of a row under which they are no answers of the policy."""

FAR = 1.0
"""Nats per token beyond which the policy has left its parent."""


class GrpoOptions(Options):
    """Options of GRPO."""

    k: int = Field(default=16, ge=2, description="G, the rollouts of each prompt")
    rollouts: Literal["top", "sampled"] = Field(
        default="top",
        description='"top": the policy\'s own first k entries of the catalogue, by exact search. '
        '"sampled": k entries drawn without replacement from its probabilities over the catalogue',
    )
    objective: Literal["advantage", "expected"] = Field(
        default="advantage",
        description='"advantage": GRPO, rewards normalised within the group. "expected": the '
        "expected reward itself, by the entries' probabilities",
    )
    rank: bool = Field(
        default=True,
        description="whether a wrong rollout of a group that has the target costs the more, the "
        "earlier it comes",
    )
    seen: Literal["keep", "remove"] = Field(
        default="keep",
        description="whether entries of the row's history may be rollouts; the target always may",
    )
    beta: float = Field(
        default=0.04, ge=0, description="weight of the divergence from the parent, per nat; 0: none"
    )
    epsilon: float = Field(
        default=1e-4, gt=0, description="added to the standard deviation of a group's rewards"
    )
    support: Literal["vocab", "legal"] = Field(
        default="legal",
        description='tokens of the softmax: "legal" (an entry\'s probability is then its '
        'probability within the catalogue) or "vocab" (as in the released code)',
    )

    @model_validator(mode="after")
    def _drawn_from_the_catalogue(self) -> GrpoOptions:
        if self.rollouts == "sampled" and self.support == "vocab":
            raise ValueError(
                'rollouts = "sampled" draws by probabilities within the catalogue: expected '
                'support = "legal"'
            )
        return self


def _needs(options: GrpoOptions) -> Needs:
    """Rollouts, and the parent's log-probabilities of them unless beta is 0."""
    rollouts = Rollouts(options.k, options.rollouts, options.support, options.seen)
    return Needs(reference=ReferenceModel() if options.beta else None, rollouts=rollouts)


def _idle(options: GrpoOptions) -> dict[str, str]:
    """The advantage's epsilon, where there is no advantage."""
    why = 'objective = "expected" normalises no rewards'
    return {"epsilon": why} if options.objective == "expected" else {}


def token_log_probs(forward: Forward, batch: Batch, options: GrpoOptions) -> Tensor:
    """``log pi(y_t | x, y_<t)`` of each position, [P], nats, normalised over the support."""
    from llmrec_cli.tensors.losses import score_tokens

    return score_tokens(
        forward.hidden_PD,
        forward.head,
        batch.trie,
        batch.node_P,
        batch.target_P,
        legal=options.support == "legal",
        dense_head=batch.dense_head,
    )


def loss(forward: Forward, batch: Batch, options: GrpoOptions, state: State) -> LossSums:
    """The sum over groups of the mean over their answers (docs/methods/grpo.md).

    Raises:
        ValueError: the batch lacks rollouts, or the reference's log-probabilities.
    """
    from llmrec_cli.tensors.losses import sum_over_answers
    from llmrec_cli.tensors.policy_gradient import (
        estimate_kl,
        mean_over_tokens,
        measure_deviation,
        reward_answers,
    )

    groups = batch.rollouts
    if groups is None or (options.beta and batch.reference is None):
        raise ValueError("GRPO needs Batch.rollouts, and Batch.reference; Needs asks for both")
    log_prob_P = token_log_probs(forward, batch, options)
    log_prob_A = sum_over_answers(-log_prob_P, batch.answer_P, batch.answers)
    reward_GK = reward_answers(groups.hit_GK, rank=options.rank).to(log_prob_P)
    if options.objective == "advantage":
        gain = _weigh_by_advantage(log_prob_P, reward_GK, groups.answer_GK, batch, options)
    else:
        gain = _expect_reward(log_prob_A[groups.answer_GK], reward_GK, options)
    total = -gain
    stats: dict[str, Tensor | float] = {
        "hits": groups.hit_GK.any(1).sum().to(log_prob_P),
        "reward": reward_GK.mean(1).sum(),
        "reward_std": measure_deviation(reward_GK).sum(),
        "mass": log_prob_A.detach()[groups.answer_GK].exp().sum(),
    }
    if batch.reference is not None and options.beta:
        kl_P = estimate_kl(log_prob_P, batch.reference)  # a forced token's is 0
        kl_A = mean_over_tokens(kl_P, batch.answer_P, batch.length_A)
        kl = kl_A[groups.answer_GK].mean(1).sum()
        total = total + options.beta * kl
        stats["kl"] = kl.detach()
    return LossSums(total, count=len(reward_GK), stats=stats)


def _weigh_by_advantage(
    log_prob_P: Tensor, reward_GK: Tensor, answer_GK: Tensor, batch: Batch, options: GrpoOptions
) -> Tensor:
    """``sum_G mean_K mean_t exp(lp - lp.detach()) A``; GRPO, arXiv:2402.03300.

    A forced token, also one that was left out, has a ratio of 1 and counts in the mean.
    """
    from llmrec_cli.tensors.policy_gradient import mean_over_tokens, normalize_rewards

    beyond_P = (log_prob_P - log_prob_P.detach()).exp() - 1  # 0, with the ratio's gradient
    ratio_A = 1 + mean_over_tokens(beyond_P, batch.answer_P, batch.length_A)
    advantage_GK = normalize_rewards(reward_GK, options.epsilon)
    return (advantage_GK * ratio_A[answer_GK]).mean(1).sum()


def _expect_reward(log_prob_GK: Tensor, reward_GK: Tensor, options: GrpoOptions) -> Tensor:
    """``sum_G sum_K P(i) r(i)``, P renormalised over the first k; unbiased for drawn ones."""
    from llmrec_cli.tensors.policy_gradient import weigh_draws

    if options.rollouts == "top":
        return (log_prob_GK.softmax(1) * reward_GK).sum()
    ratio_GK = (log_prob_GK - log_prob_GK.detach()).exp()
    return (weigh_draws(log_prob_GK) * reward_GK * ratio_GK).sum()


def report_metrics(
    stats: Mapping[str, float], count: float, options: GrpoOptions, trie: Trie
) -> dict[str, float]:
    """Means over groups.

    ``without_target`` is the share of groups that lack the target; ``reward`` and ``reward_std``
    the mean and the unbiased standard deviation within a group; ``mass`` the probability of the
    rollouts together; ``kl`` the divergence from the parent, nats per token.
    """
    means = {name: value / count for name, value in stats.items()}
    return {"without_target": 1 - means.pop("hits"), **means}


def find_warning(logged: Mapping[str, float], options: GrpoOptions) -> str | None:
    """Unlikely rollouts, a policy that left its parent, or rewards that teach nothing."""
    if logged["mass"] < UNLIKELY:
        return (
            f"the rollouts of a row have a probability of {logged['mass']:.1e} together: over the "
            'whole vocabulary the policy names no items; set support = "legal" where the parent '
            "was trained over legal tokens"
        )
    if logged.get("kl", 0.0) > FAR:
        return (
            f"kl = {logged['kl']:.2f} nats per token: the policy has left its parent, whose "
            "probabilities no longer hold it; lower train.learning_rate or raise beta"
        )
    if logged["reward_std"] > 0:
        return None
    return (
        f"none of the {options.k} rollouts of any row of this update is its target: the rewards of "
        "each group are equal (standard deviation 0) and teach nothing; raise k or train.batch, "
        "start from a better parent, or look at without_target in metrics.jsonl"
    )


def describe(options: GrpoOptions, trie: Trie, spell: Spell) -> str:
    """Where the rollouts come from."""
    source = "the policy's first" if options.rollouts == "top" else "draws without replacement:"
    without = ", without the history's" if options.seen == "remove" else ""
    return (
        f"rollouts: {source} {options.k} of {trie.n_leaves:,} entries for every target, anew at "
        f"every update{without}"
    )


METHOD = Method(
    summary="reward the model's own first answers where one is the target (arXiv:2510.12211)",
    options=GrpoOptions,
    loss=loss,
    needs=_needs,
    legal_only=lambda options: options.support == "legal",
    idle=_idle,
    log_probs=token_log_probs,
    measures=lambda options: options.objective == "expected",
    metrics=report_metrics,
    warning=find_warning,
    describe=describe,
)
