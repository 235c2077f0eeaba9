"""Recipes: one TOML file is one experiment, read by every subcommand.

The models are strict: unknown keys, wrong types and values out of range are refused.  Nothing here
imports torch.  ``file.py`` reads files, applies ``extends`` and overrides; every problem is
reported at once (``problems.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import Field, model_validator

from llmrec_cli.recipe.baseline import BaselineSection
from llmrec_cli.recipe.data import DataSection, PromptSection, Section
from llmrec_cli.recipe.eval import EvalSection
from llmrec_cli.recipe.model import ModelSection
from llmrec_cli.recipe.stages import AlignSection, LaunchSection, StageSection
from llmrec_cli.recipe.sweep import SweepSection
from llmrec_cli.recipe.track import TrackSection
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.recipe.unused import without_refused

PREPARED_FOLDERS: Final = ("prepared", "prepared-eval")  # the second one with ``[eval.data]``


class Recipe(Section):
    """A whole experiment, resolved: `extends`, overrides and `[train]` inheritance applied."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the folder of its runs"
    )
    description: str = Field(default="", description="what it shows, one line")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of everything that is drawn")
    out: str = Field(
        default="runs", min_length=1, description="folder of all runs, relative to where you are"
    )
    data: DataSection
    prompt: PromptSection = PromptSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    sft: StageSection = StageSection()
    baseline: dict[str, BaselineSection] = Field(default_factory=dict)
    align: dict[str, AlignSection] = Field(default_factory=dict)
    eval: EvalSection = EvalSection()
    launch: LaunchSection = LaunchSection()
    sweep: SweepSection | None = None
    track: TrackSection = TrackSection()

    @model_validator(mode="after")
    def _sequences_need_their_template(self) -> Recipe:
        if self.prompt.task == "rank-pair":
            return self  # which has no sequences, whatever the template (task.py)
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
        return self.folder / PREPARED_FOLDERS[0]

    @property
    def prepared_for_eval(self) -> Path:
        """The prepared folder that evaluation reads: another one with ``[eval.data]``."""
        return self.folder / PREPARED_FOLDERS[self.eval.data is not None]

    @property
    def prompt_for_eval(self) -> PromptSection:
        """How evaluation asks."""
        return self.eval.prompt or self.prompt

    def resolved(self) -> dict[str, Any]:
        """Plain values in the shape of a recipe file, for the run's own ``recipe.toml``.

        Without the keys that no recipe of this kind may set: it loads as it stands.
        """
        return without_refused(self.every_value(), self)

    def every_value(self) -> dict[str, Any]:
        """Plain values of all keys, those that play no part too: to compare with a run's record."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        for section in (*plain["align"].values(), *plain["baseline"].values()):
            section.update(section.pop("options"))
        return plain
