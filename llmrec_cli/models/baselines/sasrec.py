"""SASRec: causal self-attention (Kang and McAuley, ICDM 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines.contract import Baseline

if TYPE_CHECKING:
    from llmrec_cli.models.sequential import Sequential


class SasrecOptions(Options):
    """SASRec: causal self-attention, full softmax cross entropy."""

    hidden: int = Field(default=128, ge=2, description="width; a multiple of heads")
    layers: int = Field(default=2, ge=1, description="attention blocks")
    heads: int = Field(default=2, ge=1, description="attention heads")
    dropout: float = Field(
        default=0.4, ge=0, lt=1, description="dropout of embeddings and blocks, in [0, 1)"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SasrecOptions:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        return self


def _build(options: SasrecOptions, n_leaves: int, longest: int) -> Sequential:
    from llmrec_cli.models.sequential import SelfAttention, Sequential

    encoder = SelfAttention(options, longest)
    return Sequential(encoder, n_leaves, options.hidden, options.dropout)


BASELINE = Baseline(
    summary="causal self-attention (Kang and McAuley 2018)", options=SasrecOptions, build=_build
)
