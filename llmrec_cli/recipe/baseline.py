"""`[baseline.NAME]`: conventional models and how they are trained.  No torch.

The defaults were chosen on validation (benchmarks/results/*-baseline-search.md).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from llmrec_cli.methods.contract import Options
from llmrec_cli.recipe.data import Section
from llmrec_cli.recipe.stages import NamedTables, take_options
from llmrec_cli.recipe.train import TrainSection


class PopOptions(Options):
    """Pop has no options."""


class ItemknnOptions(Options):
    """ItemKNN: cosine similarity of entries by the users they share."""

    neighbours: int = Field(default=400, ge=1, description="most similar entries kept of each")
    shrink: float = Field(
        default=100.0,
        ge=0,
        description="added to the denominator; larger trusts rare entries less, in users (a "
        "catalogue of a few hundred entries wants about 5)",
    )
    decay: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="weight of an item of the history per place that it lies further back, (0, 1]",
    )


class SasrecOptions(Options):
    """SASRec: causal self-attention, full softmax cross entropy."""

    hidden: int = Field(default=128, ge=2, description="width, a multiple of heads")
    layers: int = Field(default=2, ge=1, description="attention blocks")
    heads: int = Field(default=2, ge=1, description="attention heads")
    dropout: float = Field(default=0.4, ge=0, lt=1, description="of embeddings and blocks, [0, 1)")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SasrecOptions:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        return self


class Gru4recOptions(Options):
    """GRU4Rec: a gated recurrent network, full softmax cross entropy."""

    hidden: int = Field(default=128, ge=2, description="width")
    layers: int = Field(default=1, ge=1, description="recurrent layers")
    dropout: float = Field(default=0.4, ge=0, lt=1, description="of embeddings and output, [0, 1)")


class CaserOptions(Options):
    """Caser: convolutions over the last items, full softmax cross entropy."""

    hidden: int = Field(default=64, ge=2, description="width")
    window: int = Field(default=5, ge=1, description="items that the filters look at")
    filters: int = Field(default=8, ge=1, description="filters of each height, and vertical ones")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="of embeddings and output, [0, 1)")


BASELINES: dict[str, type[Options]] = {
    "pop": PopOptions,
    "itemknn": ItemknnOptions,
    "sasrec": SasrecOptions,
    "gru4rec": Gru4recOptions,
    "caser": CaserOptions,
}

UNTRAINED = ("pop", "itemknn")  # counted, not trained

OWN_TRAIN: dict[str, Any] = {
    "rows": "sequence",
    "epochs": 14,
    "batch": 128,
    "micro_batch": 32,
    "micro_tokens": None,
    "learning_rate": 1e-3,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "schedule": "linear",
    "warmup": 100,
    "clip": 5.0,
    "validate_every": 2,
    "patience": 5,
}
"""How a conventional model trains where its own table is silent.  Nothing of this comes from
`[train]`: a language model's rate or ``max_steps`` would make a weak rival."""

TRAIN_OF: dict[str, dict[str, Any]] = {
    "gru4rec": {"epochs": 8, "learning_rate": 2e-3},
    "caser": {"learning_rate": 2e-3},
}
"""Where the search found other values for a model than ``OWN_TRAIN``'s."""

SHARED_TRAIN = ("validate_rows", "select", "keep")
"""What `[train]` sets for all: a checkpoint is chosen on the same validation rows by the same
figure, and training stops by the same rule.  ``patience`` counts validations, which come at other
distances here, so its number is the model's own."""


class BaselineSection(Section):
    """`[baseline.NAME]`: one conventional model; its own hyper-parameters stand there, too."""

    model: str = Field(description="pop, itemknn, sasrec, gru4rec or caser; default NAME")
    train: TrainSection = Field(
        default=TrainSection(), description="keys to override; whole once resolved"
    )

    @property
    def options(self) -> Options:
        """The model's own hyper-parameters, apart from the stage's keys."""
        return take_options(baseline_kinds()[self.model], self)


def baseline_kinds() -> dict[str, type[Options]]:
    """Options of every conventional model, by its name."""
    return dict(BASELINES)


CONVENTIONAL = NamedTables(
    "baseline", "model", BaselineSection, baseline_kinds, "baseline.sasrec", alone=("pop",)
)
