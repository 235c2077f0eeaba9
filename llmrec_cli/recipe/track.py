"""`[track]` of a recipe: who else gets the figures of a training run.  No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from llmrec_cli.recipe.data import Section, one_or_many

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Names = Annotated[
    tuple[TrackerName, ...],
    BeforeValidator(one_or_many, json_schema_input_type=TrackerName | tuple[TrackerName, ...]),
    Field(strict=False),
]


class TrackSection(Section):
    """`[track]`: trackers that get the rows of `metrics.jsonl` too; a run does not depend on it."""

    trackers: Names = Field(
        default=(),
        description="by name; each needs its package: pip install 'llmrec[NAME]'",
    )
    online: bool = Field(
        default=False,
        description="wandb, mlflow and trackio send to servers; their own variables and logins "
        "say where and as whom",
    )
