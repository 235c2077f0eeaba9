"""`[data]` and `[prompt]` of a recipe, and the base class of all tables.  No torch."""

from __future__ import annotations

import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from llmrec_cli.config.formats import FORMATS, Format, join_words, list_splits


def one_or_many(value: object) -> object:
    """A single text becomes a list of one."""
    return (value,) if isinstance(value, str) else value


Strings = Annotated[
    tuple[str, ...],
    BeforeValidator(one_or_many, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]


def _iso_date(value: str) -> str:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError("expected an ISO date such as 2018-06-30") from None
    return value


def _as_text(value: object) -> object:
    """TOML also has dates without quotes."""
    return value.isoformat() if type(value) is datetime.date else value


Date = Annotated[
    str, BeforeValidator(_as_text, json_schema_input_type=str), AfterValidator(_iso_date)
]


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Splits(Section):
    """`[data.splits]`: files of a source that comes split."""

    train: Strings = Field(default=(), description="files of the training split")
    preference: Strings = Field(
        default=(),
        description="files of the pairs to align on (rank-pairs only); absent: the training split",
    )
    valid: Strings = Field(default=(), description="files of the validation split")
    test: Strings = Field(default=(), description="files of the test split")


Column = Annotated[str, Field(min_length=1)]


def _column_or_false(value: object) -> object:
    """A recipe writes ``false`` if there is no such column; Python may pass None."""
    if value is None:
        return False
    if value is True or not isinstance(value, str | bool):
        raise ValueError("expected a column's name, or false: no time column")
    return value


TimeColumn = Annotated[
    Column | Literal[False],
    BeforeValidator(_column_or_false, json_schema_input_type=Column | Literal[False]),
]


ItemField: TypeAlias = Literal["brand", "category", "price", "description"]
"""What an item may have besides its title."""
InteractionField: TypeAlias = Literal["rating", "gap"]
"""What a user's interaction with an item may have: a rating, and the time since the one before."""
ShownField: TypeAlias = Literal[ItemField, InteractionField]
"""What a prompt may show of an item of a history besides its title."""

ItemTask: TypeAlias = Literal["title_to_id", "id_to_title", "description_to_id"]
"""What a model is asked about an item by itself, without a history."""
ITEM_TASKS: Final[tuple[ItemTask, ...]] = get_args(ItemTask)


def _each_once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("expected each field once")
    return value


ShownFields = Annotated[
    tuple[ShownField, ...],
    BeforeValidator(one_or_many, json_schema_input_type=ShownField | tuple[ShownField, ...]),
    Field(strict=False),
    AfterValidator(_each_once),
]


class Columns(Section):
    """`[data.columns]`: column names of `interactions` sources (CSV, parquet or JSON lines)."""

    user: Column = Field(default="user_id", description="user column; ids are read as text")
    item: Column = Field(default="item_id", description="item column; ids are read as text")
    timestamp: TimeColumn = Field(
        default="timestamp",
        description="time column. false: there is none, and the order of the lines is the order "
        "in time, over all files of reviews as listed",
    )
    rating: Column | None = Field(
        default=None, description="rating column; numbers on any scale, and cells may be empty"
    )
    title: Column | None = Field(default=None, description="title column, in metadata files")
    brand: Column | None = Field(default=None, description="brand column, in metadata files")
    category: Column | None = Field(
        default=None, description="category column, in metadata files; for data.fields"
    )
    price: Column | None = Field(
        default=None, description="price column, in metadata files; for data.fields"
    )
    description: Column | None = Field(
        default=None, description="description column, in metadata files; for data.fields"
    )

    def of_field(self, name: ItemField) -> str | None:
        """The column of a field; None: it is not named."""
        column: str | None = getattr(self, name)
        return column

    @model_serializer(mode="wrap")
    def _as_earlier(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without keys that earlier versions do not know, where they say nothing."""
        plain: dict[str, Any] = dump(self)
        return {k: v for k, v in plain.items() if v is not None or k not in _LATER_COLUMNS}

    @model_validator(mode="after")
    def _apart(self) -> Columns:
        if self.user == self.item:
            raise ValueError(f'user and item are both "{self.user}": expected two columns')
        return self


_LATER_COLUMNS: Final = ("category", "price", "description")


class Sample(Section):
    """`[data.sample]`: rows to keep of each split, drawn with the recipe's seed; absent: all."""

    train: int | None = Field(default=None, ge=1, description="training rows")
    valid: int | None = Field(default=None, ge=1, description="validation rows")
    test: int | None = Field(default=None, ge=1, description="test rows")


class SparkSection(Section):
    """`[data.spark]`: where Spark runs; absent: Spark's own configuration decides."""

    master: str | None = Field(
        default=None, description='Spark master: "local[8]", "yarn", "spark://host:7077", ...'
    )
    options: dict[str, str] = Field(
        default={},
        description='Spark settings, e.g. { "spark.driver.memory" = "4g" }; all values are strings',
    )


CIRCUMSTANCES = ("engine", "memory", "spark")  # these keys change no prepared byte

if TYPE_CHECKING:
    DataFormat: TypeAlias = str
else:
    DataFormat = Literal[tuple(FORMATS)]


class DataSection(Section):
    """`[data]`: sources, cleaning and split.

    In a recipe file, a path that begins with ``./`` or ``../`` is relative to the file.  Any other
    path is relative to the working directory.
    """

    format: DataFormat = Field(description="format of the source files; see docs/data.md")
    reviews: Strings = Field(
        default=(), description="files of reviews, ratings or interactions, read in this order"
    )
    metadata: Strings = Field(default=(), description="files of item metadata, such as titles")
    index: str | None = Field(
        default=None, description="JSON file of semantic IDs: item id -> list of tokens"
    )
    splits: Splits = Field(default=Splits(), description="files of sources that come split")
    columns: Columns = Field(default=Columns(), description="column names of `interactions`")
    on_bad_line: Literal["stop", "skip"] = Field(
        default="stop",
        description='what a bad line does. "stop": prepare stops and names the line. "skip": '
        "prepare leaves the line out, and the manifest counts it. A damaged file, or "
        "a file of another format, always stops",
    )
    bad_line_limit: int = Field(
        default=100,
        ge=1,
        description='with on_bad_line = "skip": the most bad lines, over all files, before '
        "prepare stops",
    )
    duplicates: Literal["first", "last", "keep"] = Field(
        default="first", description="which interactions stay if a user has several with one item"
    )
    min_rating: float | None = Field(
        default=None, description="drop interactions with a lower rating or without one"
    )
    k_core: int = Field(
        default=5,
        ge=0,
        description="drop users and items with fewer interactions, and repeat until all have as "
        "many; 0: off. Sources that come split are not cleaned",
    )
    start: Date | None = Field(
        default=None, description="drop interactions before this ISO date (UTC)"
    )
    end: Date | None = Field(
        default=None, description="drop interactions on or after this ISO date (UTC)"
    )
    untitled: Literal["drop", "brand", "id"] = Field(
        default="drop",
        description="items without a usable title: drop them, or use the brand or the id as title",
    )
    identity: Literal["merge", "disambiguate"] = Field(
        default="merge",
        description="items with equal titles: merge them into one catalogue entry, or make the "
        "titles differ (brand, then a number)",
    )
    fields: ShownFields = Field(
        default=(),
        description="what prepare keeps of an item besides its title, and of a user's interaction "
        "with it (rating, gap), for templates that show it",
    )
    split: Literal["leave-one-out", "global-time", "few-shot", "given"] = Field(
        default="leave-one-out",
        description="rule of the split; `given` for sources that come split",
    )
    history: int = Field(
        default=20, ge=1, description="most items of a history; prepare drops the oldest ones"
    )
    min_history: int = Field(
        default=1,
        ge=0,
        description="fewest items of a history; 0 keeps each user's first training row",
    )
    few_shot_users: int = Field(
        default=100, ge=1, description='with split = "few-shot": number of training users'
    )
    sample: Sample = Field(default=Sample(), description="number of rows to keep of each split")
    engine: Literal["polars", "spark"] = Field(
        default="polars",
        description="program that cleans and sorts interactions: polars in this process, or "
        "Apache Spark for data too large for one machine. The prepared folder is the "
        "same, byte for byte",
    )
    memory: int = Field(
        default=1024,
        ge=64,
        description="MiB of memory that polars may fill before it writes to disk",
    )
    spark: SparkSection = Field(default=SparkSection(), description="where Spark runs")

    @model_validator(mode="after")
    def _has_its_sources(self) -> DataSection:
        form = self.form
        missing = [key for key in form.needs if not get_dotted(self, key)]
        if missing:
            raise ValueError(
                f'format = "{self.format}" needs the file names in {", ".join(missing)}'
            )
        if form.pre_split != (self.split == "given"):
            expected = join_words(list_splits(form, clock=has_clock(self)))
            default = "" if "split" in self.model_fields_set else ", the default"
            raise ValueError(
                f'split = "{self.split}"{default}: format "{self.format}" needs split = {expected}'
            )
        if self.spark != type(self).model_fields["spark"].default and self.engine != "spark":
            raise ValueError(f'spark is set, and engine = "{self.engine}": expected "spark"')
        if self.start and self.end and self.start >= self.end:
            raise ValueError(f"start = {self.start}, end = {self.end}: expected start before end")
        if self.on_bad_line == "skip" and not form.uses_key("on_bad_line"):
            raise ValueError(
                f'on_bad_line = "skip": format "{self.format}" is published whole, expected "stop"'
            )
        for name in self.fields:
            if problem := _explain_absent_field(self, name):
                raise ValueError(f'fields has "{name}": {problem}')
        if self.min_history > self.history:
            raise ValueError(
                f"min_history = {self.min_history} must be <= history = {self.history}"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_earlier(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a key that earlier versions do not know, where it says nothing."""
        plain: dict[str, Any] = dump(self)
        if not self.fields:
            plain.pop("fields", None)
        return plain

    @property
    def form(self) -> Format:
        """The format's properties."""
        return FORMATS[self.format]

    @property
    def item_fields(self) -> tuple[ItemField, ...]:
        """Those of ``fields`` that an item has, in their order."""
        return self._choose_fields(get_args(ItemField))

    @property
    def interaction_fields(self) -> tuple[InteractionField, ...]:
        """Those of ``fields`` that a user's interaction with an item has, in their order."""
        return self._choose_fields(get_args(InteractionField))

    def _choose_fields(self, among: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(name for name in self.fields if name in among)

    def files(self) -> list[str]:
        """Every source file that the section names, in order."""
        parts = (
            self.reviews,
            self.metadata,
            self.splits.train,
            self.splits.preference,
            self.splits.valid,
            self.splits.test,
        )
        return [path for part in parts for path in part] + ([self.index] if self.index else [])


def find_format(name: str) -> Format:
    """The format of a ``[data]`` section that is read from a manifest."""
    return FORMATS[name]


def has_clock(section: DataSection) -> bool:
    """Whether the source has times that compare across users, not only an order."""
    return section.form.compares_times(section.columns.timestamp)


def _explain_absent_field(section: DataSection, name: ShownField) -> str | None:
    """Why a source, as the recipe reads it, has no such field; None: it may have it."""
    form, columns = section.form, section.columns
    if name == "gap":
        if form.pre_split:
            return f'format "{form.name}" has no times of the items of a history; remove it'
        lacks = _name_without_clock(section)
        return lacks and f"{lacks} has no times, only an order; remove it"
    if name == "rating":
        if not form.has_ratings:
            return f'format "{form.name}" has no ratings of the items of a history; remove it'
        column, is_read = columns.rating, True
    else:
        column, is_read = columns.of_field(name), bool(section.metadata)
    if form.names_columns and is_read and column is None:
        return f"expected the name of its column in columns.{name}"
    return None


def _name_without_clock(section: DataSection) -> str | None:
    """What a source is called that has no times; None: it has."""
    if has_clock(section):
        return None
    untimed = "a source with columns.timestamp = false"
    return untimed if section.form.has_clock else f'format "{section.form.name}"'


def find_clock_problem(section: DataSection) -> str | None:
    """A key that needs times, set for a source without times, as ``key = value: problem``."""
    lacks, form = _name_without_clock(section), section.form
    if lacks is None:
        return None
    if section.split == "global-time":
        others = join_words(list_splits(form, clock=False))
        return (
            f'split = "global-time": {lacks} has no times that compare across users; use {others}'
        )
    for key, value in (("start", section.start), ("end", section.end)):
        if value is not None and form.uses_key(key):
            return f"{key} = {value}: {lacks} has no times, only an order; remove {key}"
    return None


def get_dotted(section: Section, dotted: str) -> Any:
    """The value of a dotted key."""
    value: Any = section
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


class PromptSection(Section):
    """`[prompt]`: how a history becomes text."""

    task: Literal["generate", "rank-pair"] = Field(
        default="generate",
        description="task of all stages: name the next item, or rank two candidates (DMPO)",
    )
    template: str = Field(
        default="sequence",
        description='"sequence" (only the items, one after the other), a shipped wording (books, '
        "games, toys, ...), or the path of a template file",
    )
    max_tokens: int = Field(
        default=512,
        ge=8,
        description="most tokens of a prompt; the oldest items are dropped, each one whole",
    )
    chat: bool = Field(
        default=False,
        description="write prompts in the chat template of the backbone's tokenizer: a system and "
        "a user turn, and the answer where the assistant's turn begins",
    )

    @model_validator(mode="after")
    def _has_turns(self) -> PromptSection:
        if self.chat and self.template == "sequence":
            raise ValueError(
                'chat = true, and template = "sequence", which has no words: expected a wording, '
                'such as template = "items"'
            )
        return self

    def describe(self) -> str:
        """The template's name, for reports and cards."""
        return PurePath(self.template).name + (" as a chat" if self.chat else "")
