"""S-DPO: the target against several negatives by a softmax over them (arXiv:2406.09215)."""

from __future__ import annotations

from llmrec_cli.methods import _preference
from llmrec_cli.methods.contract import Batch, Forward, LossSums, State


class SdpoOptions(_preference.SeveralNegatives):
    """Options of S-DPO."""


def loss(forward: Forward, batch: Batch, options: SdpoOptions, state: State) -> LossSums:
    """``-log sigmoid(-log sum_i exp(beta D_i - beta D_w))`` summed over groups; S-DPO."""
    from llmrec_cli.tensors.losses import sdpo

    return _preference.preference_loss(forward, batch, options, sdpo)


METHOD = _preference.preference_method(
    summary="prefer the target to several negatives, softmax over them (arXiv:2406.09215)",
    options=SdpoOptions,
    loss=loss,
    needs=lambda options: _preference.declare_needs(options, options.k),
)
