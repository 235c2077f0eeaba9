"""`[sweep]` of a recipe: which keys a search varies, and how.  No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmrec_cli.recipe.data import Section

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Range(Section):
    """Numbers from `low` to `high`; whole ones where both are whole."""

    low: int | float = Field(description="the lowest value, included")
    high: int | float = Field(description="the highest value, included")
    log: bool = Field(default=False, description="search evenly over orders of magnitude")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low}, high = {self.high}: expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true, low = {self.low}: expected low > 0")
        return self


class SweepSection(Section):
    """`[sweep]`: a search over settings, judged on validation (`llmrec sweep`)."""

    space: dict[str, list[Any] | Range] = Field(
        default_factory=dict,
        description="keys in quotes, each with a list of values or `{ low, high, log }`: "
        '`"align.dmpo.beta" = [0.1, 0.5]`',
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe",
        description="how points are chosen: by what was seen so far, at random, or all of them",
    )
    trials: int = Field(default=20, ge=1, description="points to try (a grid tries all of its own)")
    seeds: list[Seed] = Field(
        default_factory=list,
        description="each point is trained with each of these, and judged by the mean; absent: "
        "the recipe's seed",
    )
    stage: str | None = Field(
        default=None,
        description="the run that is judged: sft, align-NAME or baseline-NAME; absent: the one "
        "that the keys belong to",
    )
    prune: bool = Field(
        default=False,
        description="stop a point whose validations are worse than the median of those before it "
        "(looks at the first seed)",
    )
