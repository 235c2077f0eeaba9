"""BEAR: MSL whose loss knows which targets a beam would drop (arXiv:2601.22925).

A beam of K can only keep a target whose every token is among the K most probable legal ones.  BEAR
looks at how far ahead of that threshold each token of the target is (docs/methods/bear.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from llmrec_cli.methods.contract import Batch, Forward, LossSums, Method, Options, Spell, State

if TYPE_CHECKING:
    from torch import Tensor

    from llmrec_cli.tensors.legal_softmax import LegalLogits
    from llmrec_cli.tensors.trie import Trie


class BearOptions(Options):
    """Options of BEAR; the defaults are the released script's."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    variant: Literal["released", "regularizer"] = Field(
        default="released",
        description='"released": the code of the authors, a mean of MSL losses with weights that '
        'grow with the lead over the threshold. "regularizer": MSL plus a penalty that grows with '
        "the distance behind the threshold (ours)",
    )
    beams: int = Field(
        default=10,
        ge=1,
        description="width K of the beam that the targets shall survive; see eval.decode.beams",
    )
    tau: float = Field(default=1.0, gt=0, description="softmax temperature > 0, as MSL's")
    lambda_: float = Field(
        default=0.25,
        ge=0,
        alias="lambda",
        description="largest extra weight of a position (released), or weight of the penalty "
        "(regularizer); 0: MSL",
    )
    xi: float = Field(
        default=2.75,
        gt=0,
        description="nats of lead or distance over which the sigmoid rises: smaller is sharper",
    )


def _idle(options: BearOptions) -> dict[str, str]:
    """What only shapes a term of weight 0."""
    return {} if options.lambda_ else {"xi": "lambda = 0"}


def loss(forward: Forward, batch: Batch, options: BearOptions, state: State) -> LossSums:
    """BEAR over the branching positions t, with p_t MSL's softmax over legal tokens at tau.

    ``q_t`` is the K-th largest legal probability, the smallest where fewer than K are legal.
    ``released``: ``sum_t w_t nll_t / sum_t w_t`` with ``w_t = 1 + lambda sigmoid(log(p_t(y) / q_t)
    / xi)``, without gradient.  The count is the sum of the weights; with lambda = 0 these are the
    branching positions, where MSL at a fixed tau counts all of them.
    ``regularizer``: ``sum_t [nll_t + lambda softplus(log(q_t / p_t(y)) / xi)] / P``, without a
    gradient through ``q_t``.  P counts all response positions, as MSL does: lambda = 0 is MSL.
    """
    import torch.nn.functional as F

    from llmrec_cli.tensors.legal_softmax import legal_logits

    legal = legal_logits(
        forward.hidden_PD,
        forward.head,
        batch.trie,
        batch.node_P,
        batch.target_P,
        dense_head=batch.dense_head,
    )
    nll_A = legal.nll(tau=options.tau)
    lead_A = _lead(legal, options)
    stats = _count_kept(legal, batch, lead_A)
    if options.variant == "released":
        weight_A = 1 + options.lambda_ * (lead_A / options.xi).sigmoid()  # BEAR, released code
        weights = weight_A.double().sum()
        stats["weight"] = weights
        return LossSums((weight_A * nll_A).sum(), count=weights, stats=stats)
    log_q_A = (-nll_A - lead_A).detach()
    penalty_A = F.softplus((log_q_A + nll_A) / options.xi)  # BEAR as a penalty: -log p is nll
    stats["penalty"] = penalty_A.detach().sum()
    total = nll_A.sum() + options.lambda_ * penalty_A.sum()
    return LossSums(total, count=batch.positions, stats=stats)


def _lead(legal: LegalLogits, options: BearOptions) -> Tensor:
    """``log p_t(y) - log q_t``, [A], nats, detached: a difference of two logits over tau."""
    ahead_A = legal.target_logits() - legal.kth_logits(options.beams)
    return ahead_A.detach() / options.tau


def _count_kept(legal: LegalLogits, batch: Batch, lead_A: Tensor) -> dict[str, Tensor | float]:
    """How many branching positions have their target among the K best, and how many answers do so
    at all of theirs."""
    dropped_A = lead_A < 0
    answer_A = batch.answer_P[legal.active_A]
    dropped_of_answer = lead_A.new_zeros(batch.answers).index_add(0, answer_A, dropped_A.to(lead_A))
    return {
        "branching": float(len(dropped_A)),
        "in_beam": (~dropped_A).sum(),
        "answers": float(batch.answers),
        "answers_in_beam": (dropped_of_answer == 0).sum(),
    }


def _metrics(
    stats: Mapping[str, float], count: float, options: BearOptions, trie: Trie
) -> dict[str, float]:
    """``in_beam``: share of branching positions whose target is among its K best legal tokens.

    ``answers_in_beam``: share of answers with all of their tokens there, without which no beam of K
    finds them.  ``weight``: mean weight of a branching position; ``penalty``: mean penalty of a
    response position, before lambda.
    """
    found = dict[str, float]()
    if stats["branching"]:
        found["in_beam"] = stats["in_beam"] / stats["branching"]
        if "weight" in stats:
            found["weight"] = stats["weight"] / stats["branching"]
    if stats["answers"]:
        found["answers_in_beam"] = stats["answers_in_beam"] / stats["answers"]
    if "penalty" in stats and count:
        found["penalty"] = stats["penalty"] / count
    return found


def describe(options: BearOptions, trie: Trie, spell: Spell) -> str:
    """At how many choices of the catalogue a target can fall behind the threshold at all."""
    fan_out_N = trie.edge_start_N1.diff()
    wide, choices = int((fan_out_N > options.beams).sum()), int((fan_out_N > 1).sum())
    widest, k = int(fan_out_N.max()), options.beams
    if not wide:
        return (
            f"beams = {k}: no choice of the catalogue has more than {k} legal tokens (the widest "
            f"has {widest:,}), so every target is among the {k} best; lower beams"
        )
    return (
        f"beams = {k}: {wide:,} of {choices:,} choices of the catalogue have more than {k} legal "
        f"tokens (the widest has {widest:,}); at the others every target is among the {k} best"
    )


METHOD = Method(
    summary="MSL whose loss knows which targets a beam would drop (arXiv:2601.22925)",
    options=BearOptions,
    loss=loss,
    legal_only=lambda options: True,
    idle=_idle,
    metrics=_metrics,
    describe=describe,
)
