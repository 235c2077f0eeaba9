"""Recipes: one TOML file is one experiment, and every command reads it.

The models are strict: they refuse unknown keys, wrong types and values out of range.  Nothing here
imports torch.  ``loader.py`` reads files, applies ``extends`` and overrides, and reports all
problems at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core import PydanticUndefined, to_jsonable_python

from llmrec_cli.config.data import DataSection, ItemTask, PromptSection, Section
from llmrec_cli.config.evaluation import GUIDE_KEYS, EvalSection
from llmrec_cli.config.model import FROM_TEXT, ModelSection, TokenStart
from llmrec_cli.config.tokens import QUANTIZERS, TokensSection
from llmrec_cli.config.training import (
    ALIGNMENTS,
    CONVENTIONAL,
    AlignSection,
    BaselineSection,
    LaunchSection,
    StageSection,
    SweepSection,
    TrackSection,
    TrainSection,
)
from llmrec_cli.config.unused import drop_refused
from llmrec_cli.tasks import TASKS
from llmrec_cli.tasks.base import Task


def _add_file_keys(schema: dict[str, Any]) -> None:
    """Keys of a file that the loader removes."""
    extends = "a recipe file to take all other keys from; one level"
    first = {"extends": {"type": "string", "description": extends}}
    schema["properties"] = first | schema["properties"]


PREPARED_FOLDERS: Final = ("prepared", "prepared-eval")  # the second one with ``[eval.data]``
TOKENS_FOLDER: Final = "tokens"  # beside them: the semantic IDs that ``tokenize`` makes


class Recipe(Section):
    """A whole experiment, resolved: `extends`, overrides and `[train]` inheritance applied."""

    model_config = ConfigDict(title="llmrec recipe", json_schema_extra=_add_file_keys)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the experiment's name, and the name of its folder",
    )
    description: str = Field(default="", description="what the experiment shows, in one line")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of all random choices")
    out: str = Field(
        default="runs",
        min_length=1,
        description="folder of all experiments, relative to the working directory",
    )
    data: DataSection
    tokens: Annotated[TokensSection, QUANTIZERS] | None = None
    prompt: PromptSection = PromptSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    sft: StageSection = StageSection()
    baseline: Annotated[dict[str, BaselineSection], CONVENTIONAL] = Field(
        default_factory=dict,
        description="tables [baseline.NAME]; NAME is the model unless the key `model` names it",
    )
    align: Annotated[dict[str, AlignSection], ALIGNMENTS] = Field(
        default_factory=dict,
        description="tables [align.NAME]; NAME is the method unless the key `method` names it",
    )
    eval: EvalSection = EvalSection()
    launch: LaunchSection = LaunchSection()
    sweep: SweepSection | None = None
    track: TrackSection = TrackSection()

    def lineage(self, name: str) -> list[str]:
        """The alignments that ``[align.name]`` starts from, first to last, itself included.

        Raises:
            ValueError: a parent is unknown, or leads back.
        """
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
    def task(self) -> Task:
        """What the model is asked."""
        return TASKS[self.prompt.task]

    @property
    def folder(self) -> Path:
        """Where this experiment lives: ``out/name``."""
        return Path(self.out) / self.name

    @property
    def prepared_folder(self) -> Path:
        """The prepared data folder."""
        return self.folder / PREPARED_FOLDERS[0]

    @property
    def id_tokens(self) -> TokensSection | None:
        """How semantic IDs are made; None: the recipe makes none."""
        makes = self.tokens is not None and self.tokens.kind == "semantic-id"
        return self.tokens if makes else None

    @property
    def tokens_folder(self) -> Path:
        """Where the semantic IDs lie that the recipe makes."""
        return self.folder / TOKENS_FOLDER

    @property
    def names_by_ids(self) -> bool:
        """Whether items are known by semantic IDs, the source's or the recipe's own."""
        return self.data.form.items_are_tokens or self.id_tokens is not None

    @property
    def has_titled_ids(self) -> bool:
        """Whether items are known by semantic IDs, and have titles as well."""
        titled = self.id_tokens is not None or bool(self.data.metadata)
        return self.names_by_ids and titled

    @property
    def item_tasks(self) -> frozenset[ItemTask]:
        """The item tasks of any stage."""
        tables = self.sft.item_tasks, *(stage.item_tasks for stage in self.align.values())
        return frozenset(task for table in tables if table is not None for task in table.shares)

    @property
    def token_start(self) -> TokenStart | None:
        """What rows of new tokens start from; None: there are none, no titles, or no pretraining.

        A run that was begun may have another one (``runs.record.find_token_start``).
        """
        chooses = self.has_titled_ids and self.model.is_pretrained
        return self.model.new_tokens or FROM_TEXT if chooses else None

    @property
    def prepared_for_eval(self) -> Path:
        """The prepared folder that evaluation reads: another one with ``[eval.data]``."""
        return self.folder / PREPARED_FOLDERS[self.eval.data is not None]

    @property
    def prompt_for_eval(self) -> PromptSection:
        """How evaluation asks."""
        return self.eval.prompt or self.prompt

    def to_table(self) -> dict[str, Any]:
        """Plain values in the shape of a recipe file, for the run's own ``recipe.toml``.

        Without the keys that no recipe of this kind may set: it loads as it stands.
        """
        return drop_refused(self.every_value(), self)

    def every_value(self) -> dict[str, Any]:
        """Plain values of all keys, those that play no part too: to compare with a run's record."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if self.id_tokens is None:
            plain.pop("tokens", None)  # titles: as in recipes of earlier versions
        if self.eval.decode.guide is None:
            for key in GUIDE_KEYS:
                plain["eval"]["decode"].pop(key, None)
        return plain

    def find_default(self, key: str) -> Any:
        """The plain default of a dotted key, such as ``prompt.chat``; None: it has none."""
        *tables, name = key.split(".")
        owner: Any = self
        for table in tables:
            owner = owner.get(table) if isinstance(owner, dict) else getattr(owner, table, None)
        fields = type(owner).model_fields if isinstance(owner, BaseModel) else {}
        found = [field for known, field in fields.items() if name in (known, field.alias)]
        default = found[0].get_default(call_default_factory=True) if found else PydanticUndefined
        return None if default is PydanticUndefined else to_jsonable_python(default)


class FileSchema(GenerateJsonSchema):
    """pydantic's schema, of a file: `extends` and defaults fill in what it leaves out.

    TOML has no null.  A table's default is that of its keys.
    """

    def field_is_required(self, field: Any, total: bool) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def get_default_value(self, schema: Any) -> Any:
        default = super().get_default_value(schema)
        return NoDefault if default is None or isinstance(default, Section) else default

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors: every key with its type, range and meaning.

    What only the whole can show (``validate`` says it) is not in it.
    """
    schema = Recipe.model_json_schema(schema_generator=FileSchema)
    return {"$schema": FileSchema.schema_dialect, **schema}
