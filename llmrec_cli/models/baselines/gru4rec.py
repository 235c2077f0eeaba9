"""GRU4Rec: a gated recurrent network over the sequence (Hidasi et al., ICLR 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines.contract import Baseline

if TYPE_CHECKING:
    from llmrec_cli.models.sequential import Sequential


class Gru4recOptions(Options):
    """GRU4Rec: a gated recurrent network, full softmax cross entropy."""

    hidden: int = Field(default=128, ge=2, description="width")
    layers: int = Field(default=1, ge=1, description="recurrent layers")
    dropout: float = Field(
        default=0.4, ge=0, lt=1, description="dropout of embeddings and output, in [0, 1)"
    )


def _build(options: Gru4recOptions, n_leaves: int, longest: int) -> Sequential:
    from llmrec_cli.models.sequential import Recurrent, Sequential

    return Sequential(Recurrent(options), n_leaves, options.hidden, options.dropout)


BASELINE = Baseline(
    summary="a gated recurrent network (Hidasi et al. 2016)",
    options=Gru4recOptions,
    build=_build,
    train={"epochs": 8, "learning_rate": 2e-3},
)
