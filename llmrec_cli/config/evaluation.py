"""`[eval]` of a recipe: the protocol of evaluation, and the search of the catalogue."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from llmrec_cli.config.data import DataSection, PromptSection, Section


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("expected different numbers")
    return values


Cutoffs = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    Field(strict=False, min_length=1),
    AfterValidator(_distinct),
]


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
GUIDE_KEYS: Final = ("guide", "weight", "weights")  # of `[eval.decode]`, for guided runs alone


class DecodeSection(Section):
    """`[eval.decode]`: how the catalogue is ranked."""

    search: Literal["exact", "beam", "all"] = Field(
        default="exact",
        description="search of the top K: best-first with a proof, beam search, or the score of "
        "every item",
    )
    mask: Literal["before", "after"] = Field(
        default="before",
        description="whether illegal tokens are removed before or after the softmax",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="softmax temperature of decoding; use MSL's tau for a model trained with it "
        '(needs mask = "before")',
    )
    length_penalty: float = Field(
        default=0.0,
        ge=0,
        description="the score is divided by length^penalty; 0: plain sum (exact search needs 0)",
    )
    beams: int = Field(default=20, ge=1, description="beam width, at least the largest cut-off")
    beam_error: bool = Field(
        default=False, description="also count the rows whose beam list differs from the exact list"
    )

    guide: str | None = Field(
        default=None,
        description="another run of the recipe whose scores join those of each language model, "
        'such as "baseline-itemknn": log P + weight * log P of the guide; with search = "beam" '
        "token by token, as D3 does. "
        "`eval` ranks each language model without it, and once more with it as a run RUN+GUIDE; "
        "absent: none",
    )
    weight: Literal["validation"] | Weight = Field(
        default="validation",
        description='factor of the guide, at least 0; "validation": the one of `weights` with the '
        "highest NDCG at the largest cut-off on validation rows (`validate_rows` of them)",
    )
    weights: Annotated[tuple[Weight, ...], Field(strict=False, min_length=1)] = Field(
        default=(0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0),
        description="weights to choose from, with 0 among them: the language model alone",
    )

    def without_guide(self) -> dict[str, Any]:
        """Plain values of what a run without a guide depends on."""
        return self.model_dump(exclude=set(GUIDE_KEYS))

    @model_validator(mode="after")
    def _guidable(self) -> DecodeSection:
        if 0 not in self.weights:
            raise ValueError("weights: expected 0 among them, the language model alone")
        if self.guide is not None and self.length_penalty != 0:
            raise ValueError(
                f'guide = "{self.guide}" joins log-probabilities: length_penalty must be 0'
            )
        return self

    @model_validator(mode="after")
    def _provable(self) -> DecodeSection:
        if self.search == "exact" and self.length_penalty != 0:
            raise ValueError(
                f"length_penalty = {self.length_penalty:g} cannot be "
                'searched exactly: use 0, or search = "beam"'
            )
        if self.mask == "after" and self.temperature != 1:
            raise ValueError(f'temperature = {self.temperature:g} needs mask = "before"')
        return self


class EvalSection(Section):
    """`[eval]`: the protocol of evaluation."""

    cutoffs: Cutoffs = Field(default=(5, 10), description="values of K for HR@K and NDCG@K")
    seen: Literal["keep", "remove"] = Field(
        default="keep",
        description="policy of the headline figures: the row's history stays among the "
        "candidates, or not",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="number of rows to rank, the same rows for every run and seed; absent: all",
    )
    batch: int = Field(default=64, ge=1, description="rows decoded together")
    resamples: int = Field(
        default=2000, ge=100, description="bootstrap resamples of users for the 95 % intervals"
    )
    auc: bool = Field(
        default=False,
        description="also report AUC: each target is compared with one item that its user does "
        "not have (a disliked item if there is one, else a uniform draw). Writes "
        "pairs.parquet",
    )
    decode: DecodeSection = Field(
        default=DecodeSection(), description="how the catalogue is ranked"
    )
    data: DataSection | None = Field(
        default=None,
        description="another domain to evaluate on, with the keys of `[data]`; absent: the same "
        "data",
    )
    prompt: PromptSection | None = Field(
        default=None,
        description="prompts of that domain, with the keys of `[prompt]`; absent: the same prompts",
    )

    @model_validator(mode="after")
    def _wide_enough(self) -> EvalSection:
        if self.decode.search == "beam" and self.decode.beams < max(self.cutoffs):
            raise ValueError(
                f"decode.beams = {self.decode.beams} must be >= the largest cut-off "
                f"{max(self.cutoffs)}"
            )
        return self
