"""`[train]` of a recipe: the training loop's settings, for every stage.  No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmrec_cli.recipe.data import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSection(Section):
    """`[train]`: the training loop, for every stage; `[sft.train]` and the like override it."""

    rows: Literal["window", "sequence", "user"] = Field(
        default="window",
        description="a row is one (history, target); or all targets of a user in one causal pass "
        '(needs prompt.template = "sequence"); or all of them with their prompts, whose common '
        "beginnings are computed once (any template; sdpa or eager attention)",
    )
    epochs: float = Field(
        default=3, gt=0, description="passes over the training rows; max_steps may end them earlier"
    )
    max_steps: int | None = Field(default=None, ge=1, description="stop after this many updates")
    batch: int = Field(default=128, ge=1, description="global batch, rows per update")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="rows per forward pass on a device, at most; absent: its share of the batch",
    )
    micro_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens per forward pass on a device, padding included, at most (a longer row "
        "travels alone); absent: no limit",
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="peak of AdamW's rate")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        default=(0.9, 0.999), description="AdamW's betas, [0, 1)"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of matrices; not of norms, biases")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="after warm-up, down to 0 (constant: stays)"
    )
    warmup: float = Field(
        default=20, ge=0, description="updates of linear warm-up; below 1: share of all updates"
    )
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0: no clipping")
    validate_every: float = Field(default=1.0, gt=0, description="epochs between validations")
    validate_rows: int = Field(
        default=1000, ge=1, description="validation rows of each validation (always the same ones)"
    )
    select: Literal["loss", "ndcg", "auc"] = Field(
        default="ndcg",
        description="the best checkpoint: lowest loss, or highest NDCG at the largest of "
        "eval.cutoffs (eval.decode, history kept), on validation; auc: highest paired AUC, of "
        'task "rank-pair"',
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many validations without a better one"
    )
    save_every: int | None = Field(
        default=None, ge=1, description="updates between checkpoints; absent: at each validation"
    )
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept; the best always is")
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="an update with a NaN or infinite loss or gradient: stop before it (exit code "
        "4), or leave it out and go on",
    )
    skip_limit: int = Field(
        default=10, ge=1, description='on_nonfinite = "skip": updates left out before it stops'
    )
