"""`[sft]`, `[align.NAME]` and `[launch]` of a recipe: what is trained, from what, and where."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Annotated, Any, Literal, cast

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from llmrec_cli import methods
from llmrec_cli.methods.contract import Options
from llmrec_cli.recipe.data import Section
from llmrec_cli.recipe.train import TrainSection


class StageSection(Section):
    """`[sft]`: the supervised stage."""

    train: TrainSection = Field(
        default=TrainSection(), description="keys of `[train]` to override; whole once resolved"
    )


class AlignSection(Section):
    """`[align.NAME]`: one alignment; the method's own options stand in the same table."""

    parent: str = Field(
        default="sft",
        description='start from the SFT result ("sft"), the backbone itself ("base"), or the '
        "result of another `[align.NAME]`",
    )
    method: str = Field(description="the method: a file name in llmrec_cli/methods; default NAME")
    train: TrainSection = Field(
        default=TrainSection(), description="keys of `[train]` to override; whole once resolved"
    )

    @property
    def options(self) -> Options:
        """The method's own options, apart from the stage's keys."""
        return take_options(methods.find(self.method).options, self)


@dataclass(frozen=True)
class NamedTables:
    """Tables such as ``[align.NAME]``: a union that one key tells apart, by default with NAME.

    Each kind of table is the stage's own section plus the options of one method or model.  The
    union knows what the registry holds when the model around it is built.

    Attributes:
        table: the tables' common name.
        key: the key that names the method or model.
        section: the stage's own keys.
        registry: options by the name of the method or model.
        example: a table, for an error that wants one.
        alone: names that are tables of their own: no other table may say them.
    """

    table: str
    key: str
    section: type[Section]
    registry: Callable[[], Mapping[str, type[Options]]]
    example: str
    alone: tuple[str, ...] = ()

    def kinds(self) -> dict[str, type[Section]]:
        """One model per method or model that there is."""
        options = self.registry()
        return {name: _join_options(self, name, options[name]) for name in options}

    def misnamed(self, tables: Mapping[str, Any]) -> dict[str, str]:
        """What stands alone and is said by a table of another name: name of the table -> name."""
        return {
            name: only
            for name, section in tables.items()
            for only in self.alone
            if getattr(section, self.key) != name and only in (getattr(section, self.key), name)
        }

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union = reduce(operator.or_, self.kinds().values())
        tables = dict[str, Annotated[union, Field(discriminator=self.key)]]  # type: ignore[valid-type]  # made at run time
        return core_schema.no_info_before_validator_function(
            self._add_names, handler.generate_schema(tables)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A table of any name says what it is; one of a known name does not have to."""
        found = handler(schema)
        by_name = found["additionalProperties"]["discriminator"]["mapping"]
        refs = {name: {"$ref": ref} for name, ref in by_name.items()}
        free = [ref for name, ref in refs.items() if name not in self.alone]
        any_name = {"required": [self.key], "oneOf": free}
        known = {
            name: ref if name in self.alone else {"anyOf": [ref, any_name]}
            for name, ref in refs.items()
        }
        return copy.deepcopy({**found, "properties": known, "additionalProperties": any_name})

    def _add_names(self, tables: Any) -> Any:
        if not isinstance(tables, Mapping):
            return tables
        return {
            name: {self.key: name, **section} if isinstance(section, Mapping) else section
            for name, section in tables.items()
        }


@cache
def _join_options(tables: NamedTables, name: str, options: type[Options]) -> type[Section]:
    """A table's model: the stage's own keys, then the options of the method or model ``name``.

    Raises:
        TypeError: an option has the name of a key of the stage.
    """
    own = tables.section.model_fields
    if doubled := sorted({*own, "options"} & options.model_fields.keys()):
        raise TypeError(f"{options.__name__}: {', '.join(doubled)}: a key of every {tables.table}")
    bases: tuple[type[Any], ...] = (options, tables.section)  # pydantic: the last one's keys first
    key: Any = (Literal[name], Field(description=own[tables.key].description))
    name = f"{tables.table}_{name}"
    return cast(
        type[Section],
        create_model(name, __base__=bases, __doc__=options.__doc__, **{tables.key: key}),
    )


def take_options(options: type[Options], section: Section) -> Options:
    """The fields of ``options`` in a table that has them and more; they are checked already."""
    fields = options.model_fields
    values = {field.alias or name: getattr(section, name) for name, field in fields.items()}
    return options.model_construct(section.model_fields_set & fields.keys(), **values)


def method_options() -> dict[str, type[Options]]:
    """Options of every method, by its name."""
    return {name: methods.find(name).options for name in methods.names()}


ALIGNMENTS = NamedTables("align", "method", AlignSection, method_options, "align.msl")


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
