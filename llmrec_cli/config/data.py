"""`[data]` and `[prompt]` of a recipe, and what every table has in common.  No torch."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from llmrec_cli.config.formats import FORMATS, Format, join_words, list_splits


def one_or_many(value: object) -> object:
    """A text alone, as a list of one."""
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
    """TOML has dates of its own, without quotes."""
    return value.isoformat() if type(value) is datetime.date else value


Date = Annotated[
    str, BeforeValidator(_as_text, json_schema_input_type=str), AfterValidator(_iso_date)
]


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Splits(Section):
    """Files of a source that comes already split."""

    train: Strings = Field(default=(), description="paths of the training part")
    preference: Strings = Field(
        default=(),
        description="paths of the pairs to align on (rank-pairs); absent: the training part",
    )
    valid: Strings = Field(default=(), description="paths of the validation part")
    test: Strings = Field(default=(), description="paths of the test part")


Column = Annotated[str, Field(min_length=1)]


def _column_or_false(value: object) -> object:
    """A recipe says ``false`` where there is no such column; Python may say None."""
    if value is None:
        return False
    if value is True or not isinstance(value, str | bool):
        raise ValueError("expected a column's name, or false: no time column")
    return value


TimeColumn = Annotated[
    Column | Literal[False],
    BeforeValidator(_column_or_false, json_schema_input_type=Column | Literal[False]),
]


class Columns(Section):
    """Column names of `interactions` sources (CSV, parquet or JSON lines)."""

    user: Column = Field(default="user_id", description="user column; read as a string")
    item: Column = Field(default="item_id", description="item column; read as a string")
    timestamp: TimeColumn = Field(
        default="timestamp",
        description="time column; false: there is none, and file order is time order, over all "
        "files of reviews as listed",
    )
    rating: Column | None = Field(
        default=None, description="rating column, numbers on any scale; a cell may be empty"
    )
    title: Column | None = Field(default=None, description="title column, in metadata files")
    brand: Column | None = Field(default=None, description="brand column, in metadata files")

    @model_validator(mode="after")
    def _apart(self) -> Columns:
        if self.user == self.item:
            raise ValueError(f'user and item are both "{self.user}": expected two columns')
        return self


class Sample(Section):
    """How many rows of a split to keep, drawn with the recipe's seed; absent keeps all."""

    train: int | None = Field(default=None, ge=1, description="training rows")
    valid: int | None = Field(default=None, ge=1, description="validation rows")
    test: int | None = Field(default=None, ge=1, description="test rows")


class SparkSection(Section):
    """`[data.spark]`: where Spark runs; absent: as ``spark-submit`` or Spark's own files say."""

    master: str | None = Field(
        default=None, description='Spark master: "local[8]", "yarn", "spark://host:7077", ...'
    )
    options: dict[str, str] = Field(
        default={},
        description='Spark settings, e.g. { "spark.driver.memory" = "4g" }; all values are strings',
    )


CIRCUMSTANCES = ("engine", "memory", "spark")  # keys of [data] that no prepared byte depends on

if TYPE_CHECKING:
    DataFormat: TypeAlias = str
else:
    DataFormat = Literal[tuple(FORMATS)]


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
    splits: Splits = Field(default=Splits(), description="files of split sources")
    columns: Columns = Field(default=Columns(), description="column names of `interactions`")
    on_bad_line: Literal["stop", "skip"] = Field(
        default="stop",
        description="a line that is wrong: stop and name it, or leave it out, count it in the "
        "manifest and go on; a file that is damaged or of another kind always stops",
    )
    bad_line_limit: int = Field(
        default=100,
        ge=1,
        description='on_bad_line = "skip": lines left out before it stops, over all files',
    )
    duplicates: Literal["first", "last", "keep"] = Field(
        default="first", description="which of a user's repeated interactions with an item stays"
    )
    min_rating: float | None = Field(
        default=None, description="drop ratings below this, and interactions without a rating"
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
    engine: Literal["polars", "spark"] = Field(
        default="polars",
        description="who cleans and orders interactions: this process, or Apache Spark for what "
        "outgrows a machine; the prepared folder is the same, byte for byte",
    )
    memory: int = Field(
        default=1024, ge=64, description="MiB that polars fills before it spills to disk"
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
        if self.min_history > self.history:
            raise ValueError(
                f"min_history = {self.min_history} must be <= history = {self.history}"
            )
        return self

    @property
    def form(self) -> Format:
        """What there is to know of the format."""
        return FORMATS[self.format]

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
    """The format of a ``[data]`` section that is plain values, as in a manifest."""
    return FORMATS[name]


def has_clock(section: DataSection) -> bool:
    """Whether the source has times that compare across users, rather than an order alone."""
    return section.form.compares_times(section.columns.timestamp)


def find_clock_problem(section: DataSection) -> str | None:
    """What is asked of a source without times, as ``key = value: problem``; None: nothing."""
    if has_clock(section):
        return None
    form, untimed = section.form, "a source with columns.timestamp = false"
    lacks = untimed if form.has_clock else f'format "{form.name}"'
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
    """The value behind a dotted key."""
    value: Any = section
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


class PromptSection(Section):
    """`[prompt]`: how a history becomes text."""

    task: Literal["generate", "rank-pair"] = Field(
        default="generate",
        description="what is asked: the next item's title, or which of two candidates the user "
        "likes more (DMPO); of every stage",
    )
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
