"""DPO: the target against one negative (arXiv:2305.18290)."""

from __future__ import annotations

from llmrec_cli.methods import _preference
from llmrec_cli.methods.contract import Batch, Forward, LossSums, State


class DpoOptions(_preference.PreferenceOptions):
    """Options of DPO; there is always one negative."""


def loss(forward: Forward, batch: Batch, options: DpoOptions, state: State) -> LossSums:
    """``-log sigmoid(beta D_w - beta D_l)`` summed over groups; DPO eq. 7, arXiv:2305.18290."""
    from llmrec_cli.tensors.losses import dpo

    return _preference.preference_loss(forward, batch, options, dpo)


METHOD = _preference.preference_method(
    summary="prefer the target to one negative, relative to the parent (arXiv:2305.18290)",
    options=DpoOptions,
    loss=loss,
    needs=lambda options: _preference.declare_needs(options, k=1),
)
