"""S-DPO: the target against several negatives by a softmax over them (arXiv:2406.09215)."""

from __future__ import annotations

from llmrec_cli.methods import _preference as shared
from llmrec_cli.methods.contract import Batch, Forward, LossSums, State


class SdpoOptions(shared.SeveralNegatives):
    """Options of S-DPO."""


def loss(forward: Forward, batch: Batch, options: SdpoOptions, state: State) -> LossSums:
    """``-log sigmoid(-log sum_i exp(beta D_i - beta D_w))`` summed over groups."""
    from llmrec_cli.tensors.preference import sdpo

    return shared.preference_loss(forward, batch, options, sdpo)


METHOD = shared.preference_method(
    summary="prefer the target to several negatives, softmax over them (arXiv:2406.09215)",
    options=SdpoOptions,
    loss=loss,
    needs=lambda options: shared.needs(options, options.k),
)
