"""ILRec: negatives, distillation and rewards from intermediate layers (arXiv:2602.17410).

The steps 1 to 7 are our numbering of the paper's terms (docs/methods/ilrec.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from llmrec_cli.methods.contract import (
    Batch,
    Forward,
    ItemScores,
    LossSums,
    Method,
    Needs,
    Options,
    State,
)

if TYPE_CHECKING:
    from torch import Tensor

    from llmrec_cli.tensors.cross_layer import Choices, Rewards, Terms
    from llmrec_cli.tensors.trie import Trie


class IlrecOptions(Options):
    """Options of ILRec; ``L = L_CPO + lambda L_CPD + mu L_CRR``."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    n: int = Field(
        default=4, ge=1, description="number of layers before the last one to use, 1 .. layers - 1"
    )
    ensemble: Literal["mean", "sum"] = Field(
        default="mean",
        description='how the logits of the layers are combined: "mean" (the paper) or "sum" (the '
        "released code)",
    )
    phi: float = Field(
        default=1.0,
        gt=0,
        description="a token is a self-hard negative if its value is at least phi times the "
        "target's",
    )
    space: Literal["probability", "logit"] = Field(
        default="probability",
        description='value that phi compares: "probability" (the paper\'s figure) or "logit" (the '
        "released code)",
    )
    a: float = Field(default=0.1, ge=0, description="CPO: weight of the penalty")
    lambda_: float = Field(
        default=0.1, ge=0, alias="lambda", description="CPD: weight of the distillation"
    )
    mu: float = Field(default=0.005, ge=0, description="CRR: weight of the reward term")
    reward_temperature: float = Field(
        default=1.0, gt=0, description="CRR: temperature T_r of the rewards"
    )
    scores: str = Field(
        default="sasrec",
        description="CRR: the [baseline.NAME] whose item probabilities are the rewards",
    )
    reward_history: Literal["keep", "zero"] = Field(
        default="keep",
        description="CRR: whether items of the history keep their reward or get none",
    )
    cpo: bool = Field(default=True, description="whether to use CPO; false: plain cross-entropy")
    cpd: bool = Field(default=True, description="whether to use CPD, the distillation")
    crr: bool = Field(
        default=True, description="whether to use CRR, the rewards; false: no scores are needed"
    )
    negatives_from: Literal["ensemble", "final"] = Field(
        default="ensemble",
        description='source of self-hard negatives: "ensemble" (intermediate layers) or "final" '
        "(the last layer, an ablation)",
    )
    support: Literal["vocab", "legal"] = Field(
        default="vocab",
        description='tokens of every softmax: "vocab" (the paper) or "legal" (each negative is '
        "then a token of some item)",
    )

    def penalises(self) -> bool:
        """Whether CPO differs from plain cross-entropy."""
        return self.cpo and self.a > 0

    def distils(self) -> bool:
        """Whether CPD is part of the loss."""
        return self.cpd and self.lambda_ > 0

    def rewards(self) -> bool:
        """Whether CRR is part of the loss."""
        return self.crr and self.mu > 0


def _idle(options: IlrecOptions) -> dict[str, str]:
    """Options of terms that are switched off."""
    weights = {"a": ("cpo", options.cpo), "lambda_": ("cpd", options.cpd)}
    weights["mu"] = ("crr", options.crr)
    found = {key: f"{switch} = false" for key, (switch, on) in weights.items() if not on}
    if not options.rewards():
        why = "there is no reward term (crr, mu)"
        found |= dict.fromkeys(("reward_temperature", "scores", "reward_history"), why)
    if not options.penalises() and not options.rewards():
        why = "no term looks for negatives (cpo, crr)"
        found |= dict.fromkeys(("phi", "space", "negatives_from"), why)
    if not _needs(options).hidden_states:
        found |= dict.fromkeys(("n", "ensemble"), "no term looks at the layers before the last")
    return found


def _needs(options: IlrecOptions) -> Needs:
    """Hidden states for what looks at layers, item scores for CRR."""
    selects = options.penalises() or options.rewards()
    looks = options.distils() or (selects and options.negatives_from == "ensemble")
    scores = ItemScores(options.scores, options.reward_history) if options.rewards() else None
    return Needs(hidden_states=options.n if looks else 0, item_scores=scores)


def loss(forward: Forward, batch: Batch, options: IlrecOptions, state: State) -> LossSums:
    """``L_CPO + lambda L_CPD + mu L_CRR`` summed over response positions; ILRec step 7.

    With a = lambda = mu = 0 it is LML (``support = "vocab"``) or MSL at tau = 1 (``"legal"``).

    Raises:
        ValueError: hidden states or item masses that ``needs`` asks for are missing.
    """
    from llmrec_cli.methods import lml, msl

    if not (options.penalises() or options.distils() or options.rewards()):
        if options.support == "vocab":
            return lml.loss(forward, batch, lml.LmlOptions(), state)
        return msl.loss(forward, batch, msl.MslOptions(tau=1.0), state)
    _check(forward, batch, options)
    terms = (_vocab_terms if options.support == "vocab" else _legal_terms)(forward, batch, options)
    parts = {name: getattr(terms, f"{name}_P").sum() for name in ("cpo", "cpd", "crr")}
    total = parts["cpo"] + options.lambda_ * parts["cpd"] + options.mu * parts["crr"]
    stats = {name: part.detach() for name, part in parts.items()}
    return LossSums(total, count=batch.positions, stats=stats | _counts(terms))


def _metrics(
    stats: Mapping[str, float], count: float, options: IlrecOptions, trie: Trie
) -> dict[str, float]:
    """Means over response positions.

    ``cpo``, ``cpd``, ``crr``: the loss parts, before their weights, nats.  ``self_hard``: self-hard
    negatives; ``self_hard_any``: share of positions that have one; ``self_hard_layer_i``: how many
    the i-th layer before the last would give alone.
    """
    return {name: value / count for name, value in stats.items()}


def _check(forward: Forward, batch: Batch, options: IlrecOptions) -> None:
    wanted, layers_LPD = _needs(options), forward.layers_LPD
    found = 0 if layers_LPD is None else len(layers_LPD)
    if found < wanted.hidden_states:
        raise ValueError(
            f"Forward.layers_LPD has {found} layers, expected n = {wanted.hidden_states}; "
            "Needs.hidden_states asks for them"
        )
    if wanted.item_scores and batch.mass is None:
        raise ValueError("CRR needs Batch.mass; Needs.item_scores asks for it")


def _choices(options: IlrecOptions) -> Choices:
    from llmrec_cli.tensors.cross_layer import Choices

    return Choices(
        a=options.a if options.cpo else 0.0,
        phi=options.phi,
        ensemble=options.ensemble,
        space=options.space,
        negatives_from=options.negatives_from,
        distil=options.distils(),
        reward_temperature=options.reward_temperature,
    )


def _hidden(forward: Forward, options: IlrecOptions) -> Tensor:
    """Last hidden states, then the layers': [1 + L, P, D]; only CPD trains through the layers."""
    import torch

    layers = _needs(options).hidden_states
    if forward.layers_LPD is None or not layers:
        return forward.hidden_PD[None]
    layers_LPD = forward.layers_LPD[:layers]
    kept_LPD = layers_LPD if options.distils() else layers_LPD.detach()
    return torch.cat([forward.hidden_PD[None], kept_LPD])


def _legal_terms(forward: Forward, batch: Batch, options: IlrecOptions) -> Terms:
    """Terms of the branching positions, on the union of their legal columns."""
    import torch

    from llmrec_cli.tensors.cross_layer import cross_layer_terms, token_rewards
    from llmrec_cli.tensors.legal_softmax import legal_logits

    legal = legal_logits(
        _hidden(forward, options),
        forward.head,
        batch.trie,
        batch.node_P,
        batch.target_P,
        dense_head=batch.dense_head,
    )
    rewards = None
    if options.rewards() and batch.mass is not None:
        answer_A = batch.answer_P[legal.active_A]
        rewards = token_rewards(batch.trie, batch.mass, legal.node_A, answer_A, legal.columns_U)
    logits_XAU = legal.logits_AU.masked_fill(~legal.legal_AU(), -torch.inf)
    return cross_layer_terms(
        logits_XAU[0],
        logits_XAU[1:],
        legal.target_A,
        batch.final_P[legal.active_A],
        _choices(options),
        rewards,
    )


def _vocab_terms(forward: Forward, batch: Batch, options: IlrecOptions) -> Terms:
    """Terms of all positions, over the whole vocabulary."""
    from llmrec_cli.tensors.cross_layer import token_rewards, vocab_terms

    head, mass = forward.head, batch.mass

    def rewards(part: slice) -> Rewards | None:
        if mass is None or not options.rewards():
            return None
        return token_rewards(batch.trie, mass, batch.node_P[part], batch.answer_P[part])

    return vocab_terms(
        _hidden(forward, options),
        head.weight_VD,
        head.bias_V,
        batch.target_P,
        batch.final_P,
        _choices(options),
        rewards,
    )


def _counts(terms: Terms) -> dict[str, Tensor | float]:
    """Self-hard negatives, summed over positions."""
    by_layer = enumerate(terms.negatives_LP.sum(1), start=1)
    return {
        "self_hard": terms.negatives_P.sum(),
        "self_hard_any": (terms.negatives_P > 0).sum(),
        **{f"self_hard_layer_{i}": count for i, count in by_layer},
    }


METHOD = Method(
    summary="self-hard negatives, distillation and rewards across layers (arXiv:2602.17410)",
    options=IlrecOptions,
    loss=loss,
    needs=_needs,
    idle=_idle,
    legal_only=lambda options: options.support == "legal",
    metrics=_metrics,
)
