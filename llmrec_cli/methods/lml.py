"""LML: plain language-model fine-tuning on the response (BIGRec, arXiv:2308.08434).

``sft`` runs it; ``align --method lml`` continues SFT, the control that other methods must beat.
"""

from __future__ import annotations

from llmrec_cli.methods.contract import Batch, Forward, LossSums, Method, Options, State


class LmlOptions(Options):
    """LML has no options."""


def loss(forward: Forward, batch: Batch, options: LmlOptions, state: State) -> LossSums:
    """``-sum_t log softmax_V(z_t)(y_t)`` over response positions, EOS included."""
    from llmrec_cli.tensors.losses import vocab_nll

    head = forward.head
    nll_P = vocab_nll(forward.hidden_PD, head.weight_VD, batch.target_P, head.bias_V)
    return LossSums(nll_P.sum(), count=batch.positions)


METHOD = Method(
    summary="continue plain SFT: cross-entropy over the whole vocabulary (arXiv:2308.08434)",
    options=LmlOptions,
    loss=loss,
)
