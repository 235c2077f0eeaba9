"""Caser: convolutions over the last items (Tang and Wang, WSDM 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines.contract import Baseline

if TYPE_CHECKING:
    from llmrec_cli.models.sequential import Sequential


class CaserOptions(Options):
    """Caser: convolutions over the last items, full softmax cross entropy."""

    hidden: int = Field(default=64, ge=2, description="width")
    window: int = Field(default=5, ge=1, description="number of newest items that the filters see")
    filters: int = Field(
        default=8,
        ge=1,
        description="number of horizontal filters of each height, and number of vertical filters",
    )
    dropout: float = Field(
        default=0.3, ge=0, lt=1, description="dropout of embeddings and output, in [0, 1)"
    )


def _build(options: CaserOptions, n_leaves: int, longest: int) -> Sequential:
    from llmrec_cli.models.sequential import Convolutional, Sequential

    return Sequential(Convolutional(options), n_leaves, options.hidden, options.dropout)


BASELINE = Baseline(
    summary="convolutions over the last items (Tang and Wang 2018)",
    options=CaserOptions,
    build=_build,
    train={"learning_rate": 2e-3},
)
