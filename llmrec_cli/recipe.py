"""Recipes: one TOML file is one experiment, read by every subcommand.

The models are strict: unknown keys, wrong types and values out of range are refused.  Nothing here
imports torch.  ``recipe_file.py`` reads files, applies ``extends`` and overrides, and reports every
problem at once.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_validator,
)

from llmrec_cli.methods.contract import Options


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(strict=False)]


def _iso_date(value: str) -> str:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError("expected an ISO date such as 2018-06-30") from None
    return value


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("expected different numbers")
    return values


Date = Annotated[str, AfterValidator(_iso_date)]
Cutoffs = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    Field(strict=False, min_length=1),
    AfterValidator(_distinct),
]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Splits(Section):
    """Files of a source that comes already split."""

    train: Strings = Field(default=(), description="paths of the training part")
    valid: Strings = Field(default=(), description="paths of the validation part")
    test: Strings = Field(default=(), description="paths of the test part")


class Columns(Section):
    """Column names of `interactions` sources (CSV, parquet or JSON lines)."""

    user: str = Field(default="user_id", description="user column; read as a string")
    item: str = Field(default="item_id", description="item column; read as a string")
    timestamp: str | None = Field(
        default="timestamp", description="time column; without one, file order is time order"
    )
    rating: str | None = Field(default=None, description="rating column, numbers")
    title: str | None = Field(default=None, description="title column, in metadata files")
    brand: str | None = Field(default=None, description="brand column, in metadata files")


class Sample(Section):
    """How many rows of a split to keep, drawn with the recipe's seed; absent keeps all."""

    train: int | None = Field(default=None, ge=1, description="training rows")
    valid: int | None = Field(default=None, ge=1, description="validation rows")
    test: int | None = Field(default=None, ge=1, description="test rows")


DataFormat = Literal[
    "amazon2014",
    "amazon2018",
    "amazon2023",
    "ratings2014",
    "ratings2018",
    "ratings2023",
    "split2023",
    "interactions",
    "msl-windows",
    "semantic-ids",
]


class DataSection(Section):
    """`[data]`: sources, cleaning, identity and split.

    In a recipe file, a path that begins with ``./`` or ``../`` is relative to that file, any other
    one to the folder in which the command runs; once loaded, all are relative to the latter.
    """

    format: DataFormat = Field(description="what the sources are; see docs/data.md")
    reviews: Strings = Field(
        default=(), description="review, rating or interaction files, in order"
    )
    metadata: Strings = Field(default=(), description="item metadata files (titles)")
    index: str | None = Field(
        default=None, description="semantic-ID index, JSON: item id -> list of tokens"
    )
    splits: Splits = Field(default=Splits(), description="files of split2023 and msl-windows")
    columns: Columns = Field(default=Columns(), description="column names of `interactions`")
    duplicates: Literal["first", "last", "keep"] = Field(
        default="first", description="which of a user's repeated interactions with an item stays"
    )
    min_rating: float | None = Field(
        default=None, ge=1, le=5, description="drop ratings below this, 1..5"
    )
    k_core: int = Field(
        default=5,
        ge=0,
        description="drop users and items with fewer interactions, until stable; 0: off; "
        "cleaning is not applied to sources that come split",
    )
    start: Date | None = Field(default=None, description="drop what is earlier, ISO date (UTC)")
    end: Date | None = Field(default=None, description="drop what is at or after, ISO date (UTC)")
    untitled: Literal["drop", "brand", "id"] = Field(
        default="drop",
        description="items without a usable title: drop, or use brand or id as title",
    )
    identity: Literal["merge", "disambiguate"] = Field(
        default="merge",
        description="items with equal titles: one catalogue entry, or append brand, then a counter",
    )
    split: Literal["leave-one-out", "global-time", "few-shot", "given"] = Field(
        default="leave-one-out", description="protocol of the split; `given` for split sources"
    )
    history: int = Field(
        default=20, ge=1, description="longest history, items; oldest dropped, when prepared"
    )
    min_history: int = Field(
        default=1,
        ge=0,
        description="shortest history, items; 0 keeps each user's first training row",
    )
    few_shot_users: int = Field(default=100, ge=1, description="training users of split few-shot")
    sample: Sample = Field(default=Sample(), description="rows to keep of each split")

    @model_validator(mode="after")
    def _has_its_sources(self) -> DataSection:
        given = self.format in ("split2023", "msl-windows")
        needed = ["splits.train", "splits.test"] if given else ["reviews"]
        needed += ["index"] if self.format == "semantic-ids" else []
        needed += ["metadata"] if self.format == "msl-windows" else []
        missing = [key for key in needed if not _dig(self, key)]
        if missing:
            raise ValueError(
                f'format = "{self.format}" needs the file names in {", ".join(missing)}'
            )
        if given != (self.split == "given"):
            expected = '"given"' if given else '"leave-one-out", "global-time" or "few-shot"'
            raise ValueError(f'split = "{self.split}": format "{self.format}" needs {expected}')
        if self.min_history > self.history:
            raise ValueError(
                f"min_history = {self.min_history} must be <= history = {self.history}"
            )
        return self

    def files(self) -> list[str]:
        """Every source file that the section names, in order."""
        parts = (
            self.reviews,
            self.metadata,
            self.splits.train,
            self.splits.valid,
            self.splits.test,
        )
        return [path for part in parts for path in part] + ([self.index] if self.index else [])


def _dig(section: Section, dotted: str) -> Any:
    value: Any = section
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


class PromptSection(Section):
    """`[prompt]`: how a history becomes text."""

    template: str = Field(
        default="sequence",
        description='"sequence" (items only, one after the other), a shipped domain wording '
        "(books, games, toys, ...), or the path of a template TOML",
    )
    max_tokens: int = Field(
        default=512,
        ge=8,
        description="longest prompt, tokens; oldest items dropped whole, when encoded",
    )


class ScratchModel(Section):
    """`[model.scratch]`: the embedded backbone, a small Llama trained from scratch."""

    hidden: int = Field(default=128, ge=8, description="width, a multiple of heads")
    layers: int = Field(default=2, ge=1, description="decoder layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    feed_forward: int = Field(default=256, ge=8, description="width of the feed-forward block")
    dropout: float = Field(
        default=0.2, ge=0, lt=1, description="of embeddings, attention and block outputs, [0, 1)"
    )
    vocabulary: int = Field(
        default=4096, ge=300, description="size of the byte-level BPE trained on the catalogue"
    )
    tied: bool = Field(default=False, description="share input embeddings with the head")

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
    alpha: float = Field(default=16, gt=0, description="scale numerator (scale = alpha / r)")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="dropout of the adapter's input")
    targets: Strings = Field(
        default=("q_proj", "v_proj"), description='module names, or "all-linear" alone'
    )


class ModelSection(Section):
    """`[model]`: the backbone."""

    backbone: str = Field(
        default="scratch", description='"scratch", a hub id, or a local Hugging Face folder'
    )
    revision: str | None = Field(default=None, description="hub revision, best a commit hash")
    scratch: ScratchModel = Field(default=ScratchModel(), description="used by backbone scratch")
    tuning: Literal["full", "lora"] = Field(default="full", description="what is trained")
    lora: Lora = Field(default=Lora(), description="used by tuning lora")
    quantize: Literal["none", "8bit", "4bit"] = Field(
        default="none", description="quantized base weights under LoRA (needs llmrec[quantized])"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the backbone's weights and arithmetic"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
        default="sdpa", description="attention implementation"
    )
    gradient_checkpointing: bool = Field(default=False, description="trade time for memory")

    @model_validator(mode="after")
    def _fits(self) -> ModelSection:
        if self.quantize != "none" and self.tuning != "lora":
            raise ValueError(f'quantize = "{self.quantize}" needs tuning = "lora"')
        if self.backbone == "scratch" and self.tuning != "full":
            raise ValueError('backbone = "scratch" has nothing to adapt: use tuning = "full"')
        return self


class TrainSection(Section):
    """`[train]`: the training loop, for every stage; `[sft.train]` and the like override it."""

    rows: Literal["window", "sequence"] = Field(
        default="window",
        description="a row is one (history, target), or all targets of a user in one causal pass; "
        'the latter needs prompt.template = "sequence"',
    )
    epochs: float = Field(
        default=3, gt=0, description="passes over the training rows; max_steps may end them earlier"
    )
    max_steps: int | None = Field(default=None, ge=1, description="stop after this many updates")
    batch: int = Field(default=128, ge=1, description="global batch, rows per update")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="rows per forward pass on a device; absent: its whole share of the batch",
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
    select: Literal["loss", "ndcg"] = Field(
        default="ndcg",
        description="the best checkpoint: lowest loss, or highest NDCG at the largest of "
        "eval.cutoffs (eval.decode, history kept), on validation",
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many validations without a better one"
    )
    save_every: int | None = Field(
        default=None, ge=1, description="updates between checkpoints; absent: at each validation"
    )
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept; the best always is")


class StageSection(Section):
    """`[sft]`: the supervised stage."""

    train: TrainSection = Field(
        default=TrainSection(), description="keys of `[train]` to override; whole once resolved"
    )


class AlignSection(Section):
    """`[align.NAME]`: one alignment; the method's own options stand in the same table.

    (In the file there is no table `options`: the loader gathers them there.)
    """

    parent: Literal["sft", "base"] = Field(
        default="sft", description="start from the SFT result, or from the backbone itself"
    )
    method: str = Field(description="the method: a file name in llmrec_cli/methods; default NAME")
    train: TrainSection = Field(
        default=TrainSection(), description="keys of `[train]` to override; whole once resolved"
    )
    options: SerializeAsAny[Options] = Field(description="the method's own options")


class DecodeSection(Section):
    """`[eval.decode]`: how the catalogue is ranked."""

    search: Literal["exact", "beam", "all"] = Field(
        default="exact",
        description="best-first with proof, token-synchronous beam, or every item's score",
    )
    mask: Literal["before", "after"] = Field(
        default="before", description="illegal tokens leave before or after the softmax"
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="divides the logits, only with mask before; decode as you trained: MSL's tau",
    )
    length_penalty: float = Field(
        default=0.0, ge=0, description="score / length^penalty; 0: plain sum (exact needs 0)"
    )
    beams: int = Field(default=20, ge=1, description="beam width; at least the largest cut-off")
    beam_error: bool = Field(
        default=False, description="also count the rows whose beam list differs from the exact one"
    )

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
    """`[eval]`: the protocol of the final ranking."""

    cutoffs: Cutoffs = Field(default=(5, 10), description="K of HR@K and NDCG@K")
    seen: Literal["keep", "remove"] = Field(
        default="keep", description="headline: the row's history stays among the candidates or not"
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="rows to rank, the same ones for every run and seed; absent: all",
    )
    batch: int = Field(default=64, ge=1, description="rows decoded together")
    resamples: int = Field(
        default=2000, ge=100, description="bootstrap resamples of users for the 95 % intervals"
    )
    decode: DecodeSection = Field(
        default=DecodeSection(), description="how the catalogue is ranked"
    )

    @model_validator(mode="after")
    def _wide_enough(self) -> EvalSection:
        if self.decode.search == "beam" and self.decode.beams < max(self.cutoffs):
            raise ValueError(
                f"decode.beams = {self.decode.beams} must be >= the largest cut-off "
                f"{max(self.cutoffs)}"
            )
        return self


class LaunchSection(Section):
    """`[launch]`: processes and devices."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to train")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; absent: all cores")


class Recipe(Section):
    """A whole experiment, resolved: `extends`, overrides and `[train]` inheritance applied."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the folder of its runs"
    )
    description: str = Field(default="", description="what it shows, one line")
    seed: int = Field(default=0, ge=0, description="of everything that is drawn")
    out: str = Field(default="runs", description="folder of all runs, relative to where you are")
    data: DataSection
    prompt: PromptSection = PromptSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    sft: StageSection = StageSection()
    align: dict[str, AlignSection] = Field(default_factory=dict)
    eval: EvalSection = EvalSection()
    launch: LaunchSection = LaunchSection()

    @model_validator(mode="after")
    def _sequences_need_their_template(self) -> Recipe:
        stages: dict[str, StageSection | AlignSection] = {"sft": self.sft}
        stages |= {f"align.{name}": section for name, section in self.align.items()}
        for name, stage in stages.items():
            if stage.train.rows == "sequence" and self.prompt.template != "sequence":
                raise ValueError(
                    f'[{name}.train] rows = "sequence" needs prompt.template = "sequence", not '
                    f'"{self.prompt.template}": a text prompt is not a prefix of the next one'
                )
        return self

    @property
    def folder(self) -> Path:
        """Where this experiment lives: ``out/name``."""
        return Path(self.out) / self.name

    @property
    def prepared(self) -> Path:
        """The prepared data folder."""
        return self.folder / "prepared"

    def run_folder(self, run: str) -> Path:
        """Folder of one run: ``sft`` or ``align-NAME``."""
        return self.folder / run

    def runs(self) -> list[str]:
        """Names of all runs that this recipe describes, in order."""
        return ["sft", *(f"align-{name}" for name in self.align)]

    def stage(self, run: str) -> StageSection | AlignSection:
        """The section behind a run name."""
        return self.sft if run == "sft" else self.align[run.removeprefix("align-")]

    def resolved(self) -> dict[str, Any]:
        """Plain values in the shape of a recipe file, for the run's own ``recipe.toml``."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        for section in plain["align"].values():
            section.update(section.pop("options"))
        return plain
