"""Recipes: one TOML file is one experiment, read by every subcommand.

The models are strict: unknown keys, wrong types and values out of range are refused.  Nothing here
imports torch.  ``recipe_file.py`` reads files, applies ``extends`` and overrides; every problem is
reported at once (``recipe_problems.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from llmrec_cli.methods.contract import Options
from llmrec_cli.recipe_baseline import BaselineSection
from llmrec_cli.recipe_data import DataSection, PromptSection, Section, Strings
from llmrec_cli.recipe_eval import EvalSection
from llmrec_cli.recipe_train import TrainSection

TREE_ATTENTION = ("sdpa", "eager")  # implementations that take the mask of packed rows


class ScratchModel(Section):
    """`[model.scratch]`: the embedded backbone, a small Llama trained from scratch."""

    hidden: int = Field(default=128, ge=8, description="width, a multiple of heads")
    layers: int = Field(default=2, ge=1, description="decoder layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    feed_forward: int = Field(default=256, ge=8, description="width of the feed-forward block")
    dropout: float = Field(
        default=0.2, ge=0, lt=1, description="of embeddings and block outputs, [0, 1)"
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
    baseline: dict[str, BaselineSection] = Field(default_factory=dict)
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

    @model_validator(mode="after")
    def _parents_exist(self) -> Recipe:
        for name in self.align:
            self.lineage(name)
        return self

    def lineage(self, name: str) -> list[str]:
        """The alignments that ``[align.name]`` starts from, first to last, itself included."""
        chain = [name]
        while (parent := self.align[chain[0]].parent) not in ("sft", "base"):
            if parent not in self.align or parent in chain:
                known = ", ".join(["sft", "base", *(n for n in self.align if n not in chain)])
                problem = "leads back to itself" if parent in chain else "unknown"
                raise ValueError(
                    f'[align.{chain[0]}] parent = "{parent}": {problem}, expected one of {known}'
                )
            chain.insert(0, parent)
        return chain

    def in_order(self) -> list[str]:
        """Names of the alignments, parents before what starts from them."""
        return list(dict.fromkeys(n for name in self.align for n in self.lineage(name)))

    @property
    def folder(self) -> Path:
        """Where this experiment lives: ``out/name``."""
        return Path(self.out) / self.name

    @property
    def prepared(self) -> Path:
        """The prepared data folder."""
        return self.folder / "prepared"

    @property
    def prepared_for_eval(self) -> Path:
        """The prepared folder that evaluation reads: another one with ``[eval.data]``."""
        return self.folder / "prepared-eval" if self.eval.data is not None else self.prepared

    @property
    def prompt_for_eval(self) -> PromptSection:
        """How evaluation asks."""
        return self.eval.prompt or self.prompt

    def run_folder(self, run: str) -> Path:
        """Folder of one run: ``sft``, ``align-NAME`` or ``baseline-NAME``."""
        return self.folder / run

    def runs(self) -> list[str]:
        """Names of all runs that this recipe describes, in order: what others need comes first."""
        baselines = [f"baseline-{name}" for name in self.baseline]
        return [*baselines, "sft", *(f"align-{name}" for name in self.in_order())]

    def stage(self, run: str) -> StageSection | AlignSection | BaselineSection:
        """The section behind a run name."""
        kind, _, name = run.partition("-")
        sections: dict[str, Any] = {"align": self.align, "baseline": self.baseline}
        found: StageSection | AlignSection | BaselineSection
        found = sections[kind][name] if kind in sections else self.sft
        return found

    def resolved(self) -> dict[str, Any]:
        """Plain values in the shape of a recipe file, for the run's own ``recipe.toml``."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        for section in (*plain["align"].values(), *plain["baseline"].values()):
            section.update(section.pop("options"))
        return plain
