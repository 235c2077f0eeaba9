"""`[baseline.NAME]`: conventional models and how they are trained.  No torch.

The defaults were chosen on validation (benchmarks/results/*-baseline-search.md).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines import baseline_names, find_baseline
from llmrec_cli.recipe.data import Section
from llmrec_cli.recipe.formats import one_of
from llmrec_cli.recipe.stages import NamedTables, take_options
from llmrec_cli.recipe.train import TrainSection

BASELINES: dict[str, type[Options]] = {
    name: find_baseline(name).options for name in baseline_names()
}

UNTRAINED = tuple(name for name in BASELINES if not find_baseline(name).is_trained)

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
    name: dict(own) for name in BASELINES if (own := find_baseline(name).train)
}
"""Where the search found other values for a model than ``OWN_TRAIN``'s."""

SHARED_TRAIN = ("validate_rows", "select", "keep")
"""What `[train]` sets for all: a checkpoint is chosen on the same validation rows by the same
figure, and training stops by the same rule.  ``patience`` counts validations, which come at other
distances here, so its number is the model's own."""


_KNOWN = one_of(list(BASELINES)).replace('"', "")


class BaselineSection(Section):
    """`[baseline.NAME]`: one conventional model; its own hyper-parameters stand there, too."""

    model: str = Field(description=f"{_KNOWN}; default NAME")
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
