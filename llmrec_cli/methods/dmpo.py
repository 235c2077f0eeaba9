"""DMPO: the target against the mean of several negatives (arXiv:2405.16127)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llmrec_cli.methods import _preference
from llmrec_cli.methods.contract import Batch, Forward, LossSums, Needs, State


class DmpoOptions(_preference.SeveralNegatives):
    """Options of DMPO."""

    variant: Literal["paper", "released"] = Field(
        default="paper",
        description='"paper": the paper\'s equation, with the mean over negatives inside the '
        'sigmoid. "released": the authors\' code, with one sigmoid per negative, no '
        "reference model, and sft = 1.0",
    )

    @model_validator(mode="before")
    @classmethod
    def _released_adds_sft(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("variant") == "released":
            return {"sft": 1.0, **values}
        return values


def _needs(options: DmpoOptions) -> Needs:
    """Negatives; the released variant needs no reference."""
    return _preference.declare_needs(options, options.k, reference=options.variant == "paper")


def _idle(options: DmpoOptions) -> dict[str, str]:
    """As of the family; and the released variant's reference cancels."""
    cancels = {"reference": 'variant = "released" has no reference model'}
    return _preference.find_idle_options(options) | (
        cancels if options.variant == "released" else {}
    )


def loss(forward: Forward, batch: Batch, options: DmpoOptions, state: State) -> LossSums:
    """``-log sigmoid(beta D_w - 1/k sum_i beta D_i)`` summed over groups; DMPO, arXiv:2405.16127.

    ``variant = "released"``: the released trainer passes the chosen reference log-probability
    twice, so that it cancels, and takes the mean over k pairs outside of the sigmoid.
    """
    from llmrec_cli.tensors.losses import dmpo, dpo

    if options.variant == "released":
        return _preference.preference_loss(forward, batch, options, dpo, reference=False)
    return _preference.preference_loss(forward, batch, options, dmpo)


METHOD = _preference.preference_method(
    summary="prefer the target to the mean of several negatives (arXiv:2405.16127)",
    options=DmpoOptions,
    loss=loss,
    needs=_needs,
    idle=_idle,
)
