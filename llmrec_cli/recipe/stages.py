"""`[sft]`, `[align.NAME]` and `[launch]` of a recipe: what is trained, from what, and where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from llmrec_cli.methods.contract import Options
from llmrec_cli.recipe.data import Section
from llmrec_cli.recipe.train import TrainSection


class StageSection(Section):
    """`[sft]`: the supervised stage."""

    train: TrainSection = Field(
        default=TrainSection(), description="keys of `[train]` to override; whole once resolved"
    )


class AlignSection(Section):
    """`[align.NAME]`: one alignment; the method's own options stand in the same table.

    (In the file there is no table `options`: the loader gathers them there.)
    """

    parent: str = Field(
        default="sft",
        description='start from the SFT result ("sft"), the backbone itself ("base"), or the '
        "result of another `[align.NAME]`",
    )
    method: str = Field(description="the method: a file name in llmrec_cli/methods; default NAME")
    train: TrainSection = Field(
        default=TrainSection(), description="keys of `[train]` to override; whole once resolved"
    )
    options: SerializeAsAny[Options] = Field(description="the method's own options")


class LaunchSection(Section):
    """`[launch]`: processes and devices."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to train")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description='on this machine; "auto": one per visible GPU, else one',
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of a process; absent: its share of the cores"
    )
    timeout: int = Field(
        default=1800,
        ge=10,
        description="seconds that a process waits for another one before the run ends; and what a "
        "signal leaves it to write its checkpoint",
    )
