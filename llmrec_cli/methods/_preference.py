"""Shared code of DPO, S-DPO, DMPO and SPRec: options, log-probabilities, statistics, a warning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from llmrec_cli.methods.contract import (
    Batch,
    Forward,
    LossSums,
    Method,
    Needs,
    Negatives,
    Options,
    ReferenceModel,
    State,
)

if TYPE_CHECKING:
    from torch import Tensor

    from llmrec_cli.tensors.trie import Trie

GroupLoss = Callable[["Tensor", "Tensor", float], "Tensor"]
"""(chosen_GC, rejected_GK, beta) -> loss_G, as in ``tensors.losses``."""

FORGETS = -2.0
"""Mean D(chosen), in nats, under which training forgets what it should prefer."""


class LossOptions(Options):
    """What the loss of every preference method has to choose, and what a row needs."""

    beta: float = Field(
        default=0.1, gt=0, description="weight of the log-probability differences, in 1/nat"
    )
    support: Literal["vocab", "legal"] = Field(
        default="vocab",
        description='tokens of the softmax: "vocab" (as in the papers) or "legal" (an answer\'s '
        "probability is then its probability within the catalogue)",
    )
    sft: float = Field(
        default=0.0,
        ge=0,
        description="weight of the chosen answer's mean token cross-entropy in the loss",
    )
    short: Literal["error", "drop"] = Field(
        default="error",
        description="a row with too few possible negatives: stop with an error, or drop the row",
    )


class PreferenceOptions(LossOptions):
    """Options of the methods whose reference stays the parent."""

    reference: Literal["precompute", "online"] = Field(
        default="online",
        description='when the reference model\'s log-probabilities are computed: "online" (at '
        'every update) or "precompute" (once, before training)',
    )
    negatives: Literal["uniform", "popularity", "in-batch", "disliked", "model"] = Field(
        default="model",
        description='source of the rejected answers; "model": the wrong items that the parent '
        "ranks highest",
    )
    pool: int = Field(
        default=20,
        ge=1,
        description='with negatives = "model": number of highest-ranked wrong items to draw from, '
        "at least k",
    )
    refresh: int = Field(
        default=0,
        ge=0,
        description='with negatives = "model": updates after which the policy ranks again; 0: '
        "only the parent ranks, once",
    )
    below: float = Field(
        default=4.0,
        description='with negatives = "disliked" and data without min_rating: training targets '
        "rated lower than this are disliked",
    )

    @model_validator(mode="after")
    def _stored_once(self) -> PreferenceOptions:
        if self.refresh and self.reference == "precompute":
            raise ValueError(
                f"refresh = {self.refresh} draws new negatives while training, so their reference "
                'cannot be precomputed; set reference = "online"'
            )
        return self


class SeveralNegatives(PreferenceOptions):
    """Options of the methods that set one answer against several."""

    k: int = Field(default=3, ge=1, description="number of rejected answers per target")

    @model_validator(mode="after")
    def _wide_enough(self) -> SeveralNegatives:
        if self.negatives == "model" and self.pool < self.k:
            raise ValueError(f"pool = {self.pool} must be >= k = {self.k}")
        return self


def declare_needs(options: PreferenceOptions, k: int, *, reference: bool = True) -> Needs:
    """Negatives, and the reference's log-probabilities unless the method has no reference."""
    negatives = Negatives(
        k=k,
        draw=options.negatives,
        pool=options.pool,
        refresh=options.refresh,
        below=options.below,
        short=options.short,
    )
    model = ReferenceModel(options.reference) if reference else None
    return Needs(reference=model, negatives=negatives)


def find_idle_options(options: PreferenceOptions) -> dict[str, str]:
    """Options of a draw that is not made."""
    why = f'negatives = "{options.negatives}" has no use for it'
    drawn = {"pool": "model", "refresh": "model", "below": "disliked"}
    return {key: why for key, draw in drawn.items() if options.negatives != draw}


def legal_only(options: LossOptions) -> bool:
    """Forced positions have log-probability 0 over legal tokens."""
    return options.support == "legal"


def answer_log_probs(forward: Forward, batch: Batch, options: LossOptions) -> Tensor:
    """``log pi(y | x)`` of each answer, [A], nats, normalised over ``options.support``."""
    from llmrec_cli.tensors.losses import score_answers

    return score_answers(
        forward.hidden_PD,
        forward.head,
        batch.trie,
        batch.node_P,
        batch.target_P,
        batch.answer_P,
        batch.answers,
        legal=options.support == "legal",
        dense_head=batch.dense_head,
    )


def preference_loss(
    forward: Forward,
    batch: Batch,
    options: LossOptions,
    group_loss: GroupLoss,
    *,
    reference: bool = True,
) -> LossSums:
    """The sum of a loss over preference groups, plus ``sft`` times their chosen answers' NLL.

    Args:
        group_loss: applied to D, or to ``log pi`` itself without ``reference``.

    Raises:
        ValueError: the batch lacks preferences, or the reference's log-probabilities.
    """
    preferences = batch.preferences
    if preferences is None:
        raise ValueError("a preference method needs Batch.preferences; Needs.negatives asks for it")
    log_prob_A = answer_log_probs(forward, batch, options)
    value_A = log_prob_A - _reference(batch).to(log_prob_A) if reference else log_prob_A
    chosen_GC = value_A[preferences.chosen_GC]
    rejected_GK = value_A[preferences.rejected_GK]
    total = group_loss(chosen_GC, rejected_GK, options.beta).sum()
    stats = _statistics("d" if reference else "logp", chosen_GC.detach(), rejected_GK.detach())
    if options.sft:
        nll_A = -log_prob_A / batch.length_A  # mean over the answer's tokens
        nll = nll_A[preferences.chosen_GC].mean(1).sum()
        total = total + options.sft * nll
        stats["nll_chosen"] = nll.detach()
    return LossSums(total, count=len(chosen_GC), stats=stats)


def report_metrics(
    stats: Mapping[str, float], count: float, options: LossOptions, trie: Trie
) -> dict[str, float]:
    """Means over groups.

    ``d_chosen``, ``d_rejected`` and ``margin`` (their difference) are in nats, not scaled by beta;
    ``accuracy`` is the share of pairs whose chosen D exceeds the rejected one; ``nll_chosen`` is
    the chosen answer's mean token cross-entropy.  Without a reference ``logp_chosen`` and
    ``logp_rejected`` take the place of D.
    """
    return {name: value / count for name, value in stats.items()}


def warn_of_forgetting(logged: Mapping[str, float], options: PreferenceOptions) -> str | None:
    """Collapse that the loss and the accuracy do not show (docs/methods/preference.md)."""
    chosen = logged.get("d_chosen", 0.0)
    if chosen >= FORGETS:
        return None
    return (
        f"D(chosen) = {chosen:.2f} nats: the policy forgets the chosen answers; lower "
        'train.learning_rate (10-30 times below SFT\'s), use negatives = "model", or add sft = 1.0'
    )


def preference_method(
    summary: str,
    options: type[PreferenceOptions],
    loss: Callable[[Forward, Batch, Any, State], LossSums],
    needs: Callable[[Any], Needs],
    idle: Callable[[Any], Mapping[str, str]] = find_idle_options,
) -> Method:
    """A method of this family: all but its loss and its needs is shared."""
    return Method(
        summary=summary,
        options=options,
        loss=loss,
        needs=needs,
        idle=idle,
        legal_only=legal_only,
        log_probs=answer_log_probs,
        metrics=report_metrics,
        warning=warn_of_forgetting,
    )


def _reference(batch: Batch) -> Tensor:
    if batch.reference is None:
        raise ValueError(
            "the loss needs log pi_ref of each answer (Batch.reference); Needs.reference asks for "
            "it"
        )
    return batch.reference


def _statistics(name: str, chosen_GC: Tensor, rejected_GK: Tensor) -> dict[str, Tensor | float]:
    """Sums over groups; a group counts the mean over its answers or pairs."""
    ahead_GK = chosen_GC - rejected_GK
    means = {
        f"{name}_chosen": chosen_GC,
        f"{name}_rejected": rejected_GK,
        "margin": ahead_GK,
        "accuracy": (ahead_GK > 0).to(ahead_GK.dtype),
    }
    return {key: value.mean(1).sum() for key, value in means.items()}
