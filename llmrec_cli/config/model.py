"""`[model]` of a recipe: the backbone, and which of its weights are trained."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import Field, model_validator

from llmrec_cli.config.data import Section, Strings

TREE_ATTENTION = ("sdpa", "eager")  # implementations that support the mask of packed rows
TokenStart: TypeAlias = Literal["text", "mean"]
FROM_TEXT: Final = "text"
FROM_MEAN: Final = "mean"
NEW_TOKENS: Final = "new_tokens"  # the key that says so


class ScratchModel(Section):
    """`[model.scratch]`: the embedded backbone, a small Llama trained from scratch."""

    hidden: int = Field(default=128, ge=8, description="width; a multiple of heads")
    layers: int = Field(default=2, ge=1, description="decoder layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    feed_forward: int = Field(default=256, ge=8, description="width of the feed-forward block")
    dropout: float = Field(
        default=0.2, ge=0, lt=1, description="dropout of embeddings and block outputs, in [0, 1)"
    )
    vocabulary: int = Field(
        default=4096,
        ge=300,
        description="vocabulary size of the byte-level BPE tokenizer, trained on the catalogue",
    )
    tied: bool = Field(
        default=False, description="whether the output head shares the input embeddings"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ScratchModel:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden = {self.hidden} must be an even multiple of heads = {self.heads}"
            )
        return self


class Lora(Section):
    """`[model.lora]`: low-rank adapters."""

    r: int = Field(default=8, ge=1, description="rank")
    alpha: float = Field(default=16, gt=0, description="numerator of the scale (scale = alpha / r)")
    dropout: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="dropout of the adapters' input; an adapter of the output head has none",
    )
    targets: Strings = Field(
        default=("q_proj", "v_proj"), description='names of the adapted modules, or "all-linear"'
    )


class ModelSection(Section):
    """`[model]`: the backbone."""

    backbone: str = Field(
        default="scratch",
        min_length=1,
        description='"scratch", a hub id, or a local Hugging Face folder',
    )
    revision: str | None = Field(
        default=None, description="revision on the hub, preferably a commit hash"
    )
    weights: Literal["pretrained", "random"] = Field(
        default="pretrained",
        description="the backbone's own weights, or its architecture and tokenizer with weights "
        "drawn by seed: the control that shows what pretraining brings",
    )
    new_tokens: TokenStart | None = Field(
        default=None,
        description="what the rows of semantic-ID tokens start from in a pretrained backbone. "
        '"text": the mean over the titles of the items that have the token, of the rows of the '
        'title\'s own tokens. "mean": the mean of all rows, nearly the same for all tokens. '
        'Absent: "text", and a run that was begun goes on as it is',
    )
    scratch: ScratchModel = Field(default=ScratchModel(), description='with backbone = "scratch"')
    tuning: Literal["full", "lora"] = Field(
        default="full", description="all weights, or LoRA adapters"
    )
    lora: Lora = Field(default=Lora(), description='with tuning = "lora"')
    quantize: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="quantize the frozen weights under LoRA (needs llmrec[quantized])",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="number format of the backbone's weights and arithmetic"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
        default="sdpa", description="attention implementation"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass: less memory, more time",
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelSection:
        if self.quantize != "none" and self.tuning != "lora":
            scratch = " and a pretrained backbone" if self.backbone == "scratch" else ""
            raise ValueError(f'quantize = "{self.quantize}" needs tuning = "lora"{scratch}')
        if self.backbone == "scratch" and self.tuning != "full":
            raise ValueError(
                'backbone = "scratch" has nothing to adapt: use tuning = "full", quantize = "none"'
            )
        if self.weights == "random" and self.backbone != "scratch" and self.tuning != "full":
            raise ValueError(
                'weights = "random" leaves nothing to adapt: use tuning = "full", quantize = "none"'
            )
        return self

    @property
    def is_pretrained(self) -> bool:
        """Whether the weights have seen anything before this recipe."""
        return self.backbone != "scratch" and self.weights == "pretrained"
