"""SPRec: self-play against the model's own answers and its own past (arXiv:2412.09243)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from llmrec_cli.methods import _preference
from llmrec_cli.methods.contract import (
    Batch,
    Forward,
    LossSums,
    Method,
    Needs,
    Negatives,
    ReferenceModel,
    Spell,
    State,
)

if TYPE_CHECKING:
    from llmrec_cli.tensors.trie import Trie


class SprecOptions(_preference.LossOptions):
    """Options of SPRec."""

    refresh: int = Field(
        default=128,
        ge=1,
        description="updates of an iteration: before each iteration the policy names the wrong "
        "items anew, and a copy of it becomes the reference",
    )
    k: int = Field(default=1, ge=1, description="number of rejected answers per target")
    pool: int = Field(
        default=1,
        ge=1,
        description="number of the policy's first wrong items to draw from, at least k",
    )
    sft: float = Field(
        default=1.0,
        ge=0,
        description="weight of the target's mean token cross-entropy in the loss",
    )

    @model_validator(mode="after")
    def _wide_enough(self) -> SprecOptions:
        if self.pool < self.k:
            raise ValueError(f"pool = {self.pool} must be >= k = {self.k}")
        return self


def _needs(options: SprecOptions) -> Needs:
    """The policy's own wrong answers, and a reference that moves when they are named anew."""
    return Needs(
        reference=ReferenceModel(moves=options.refresh),
        negatives=Negatives(
            k=options.k,
            draw="model",
            pool=options.pool,
            refresh=options.refresh,
            short=options.short,
        ),
    )


def loss(forward: Forward, batch: Batch, options: SprecOptions, state: State) -> LossSums:
    """``-log sigmoid(-log sum_i exp(beta D_i - beta D_w)) + sft nll_w``; k = 1: SPRec's DPO."""
    from llmrec_cli.tensors.losses import sdpo

    return _preference.preference_loss(forward, batch, options, sdpo)


def find_warning(logged: Mapping[str, float], options: SprecOptions) -> str | None:
    """An iteration that forgets what it should prefer."""
    chosen = logged.get("d_chosen", 0.0)
    if chosen >= _preference.FORGETS:
        return None
    return (
        f"D(chosen) = {chosen:.2f} nats: since the last iteration the policy forgets the chosen "
        "answers; lower train.learning_rate or raise sft"
    )


def describe(options: SprecOptions, trie: Trie, spell: Spell) -> str:
    """How long an iteration is."""
    return (
        f"self-play: every {options.refresh:,} updates the policy names its first {options.pool} "
        "wrong entries, and a copy of it becomes the reference"
    )


METHOD = Method(
    summary="prefer the target to the model's own wrong answers, again and again "
    "(arXiv:2412.09243)",
    options=SprecOptions,
    loss=loss,
    needs=_needs,
    legal_only=_preference.legal_only,
    log_probs=_preference.answer_log_probs,
    metrics=_preference.report_metrics,
    warning=find_warning,
    describe=describe,
)
