"""What is wrong with a recipe, as lines ``[table] key = value: what was expected``.  No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmrec_cli import methods
from llmrec_cli.recipe.baseline import BASELINES, BaselineSection
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.stages import AlignSection
from llmrec_cli.recipe.toml import show

Table = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Tables that hold a stage's own keys and, beside them, the options of a method or model."""

    table: str
    key: str  # names the method or model; by default it is the table's own name
    section: type[BaseModel]
    example: str
    known: Callable[[], list[str]]
    options: Callable[[str], type[BaseModel]]
    alone: tuple[str, ...] = ()  # what is known by its name: no other table, no other meaning

    def own_keys(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.section.model_fields) - {"options"}))

    def apart(self, name: str, section: Table) -> tuple[Table, Table]:
        """The stage's own keys, and the options."""
        own = {key: value for key, value in section.items() if key in self.own_keys()}
        options = {key: value for key, value in section.items() if key not in self.own_keys()}
        return {self.key: name, **own}, options


KINDS = (
    Kind(
        "align",
        "method",
        AlignSection,
        "align.msl",
        methods.names,
        lambda name: methods.find(name).options,
    ),
    Kind(
        "baseline",
        "model",
        BaselineSection,
        "baseline.sasrec",
        lambda: list(BASELINES),
        lambda name: BASELINES[name],
        alone=("pop",),
    ),
)


def problems_of(table: Table) -> Iterator[str]:
    """Every problem of a merged recipe, as lines ``[section] key = value: what was expected``."""
    names = [kind.table for kind in KINDS]
    yield from model_problems(Recipe, {k: v for k, v in table.items() if k not in names})
    for kind in KINDS:
        sections = table.get(kind.table, {})
        if not isinstance(sections, dict):
            yield f"{kind.table} = {show(sections)}: expected tables such as [{kind.example}]"
            continue
        for name, section in sections.items():
            yield from _stage_problems(kind, name, section)


def _stage_problems(kind: Kind, name: str, section: object) -> Iterator[str]:
    table = f"{kind.table}.{name}"
    if not isinstance(section, dict):
        yield f"[{kind.table}] {name} = {show(section)}: expected a table [{table}]"
        return
    own, rest = kind.apart(name, section)
    chosen = own[kind.key]
    if chosen not in kind.known():
        hint = did_you_mean(str(chosen), kind.known())
        known = ", ".join(kind.known())
        shown = f"[{table}] {kind.key} = {show(chosen)}"
        yield f"{shown}: unknown {kind.key}, expected one of {known}.{hint}"
        return
    for only in kind.alone:
        if chosen != name and only in (chosen, name):
            yield f"[{table}] {kind.key} = {show(chosen)}: {only} is [{kind.table}.{only}] alone"
    options = kind.options(chosen)
    placeholder = own | {"options": options.model_construct()}
    yield from model_problems(kind.section, placeholder, (kind.table, name))
    yield from model_problems(options, rest, (kind.table, name), also=kind.own_keys())


def model_problems(
    model: type[BaseModel], values: Table, prefix: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> Iterator[str]:
    """What ``model`` refuses in ``values``.

    Args:
        prefix: names of the tables around these values, for the message.
        also: keys that belong to the same table but not to ``model``, for suggestions.
    """
    try:
        model.model_validate(values)
    except ValidationError as error:
        by_place: dict[tuple[str, str], list[str]] = {}  # a union has one problem per branch: join
        hints: dict[tuple[str, str], str] = {}
        for problem in error.errors(include_url=False, include_context=False):
            loc = _real_location(values, problem["loc"])
            place, expected, meaning = _describe(model, prefix, loc, problem, also)
            by_place.setdefault((place, meaning), []).append(expected)
            hints[place, meaning] = hints.get((place, meaning), "") or _nearest_word(problem)
        for (place, meaning), expected_ones in by_place.items():
            first, *others = dict.fromkeys(expected_ones)
            either = [other.removeprefix("expected ") for other in others]
            yield place + " or ".join([first, *either]) + meaning + hints[place, meaning]


def _real_location(values: Any, loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """``loc`` without the parts that name a branch of a union rather than a key."""
    keys: list[str] = []
    for part in loc:
        known = isinstance(values, dict) and part in values
        if known or ((not keys or isinstance(values, dict)) and isinstance(part, str)):
            keys.append(str(part))
            values = values.get(part) if isinstance(values, dict) else None
    return tuple(keys)


def _describe(
    model: type[BaseModel],
    prefix: tuple[str, ...],
    loc: tuple[str, ...],
    problem: Mapping[str, Any],
    also: tuple[str, ...],
) -> tuple[str, str, str]:
    """Where a problem is (``[table] key = value: ``), what was expected, and what the key means."""
    table_itself = problem["type"] == "value_error" and _section(model, (*loc, "")) is not None
    if not loc or table_itself:  # a check over a whole table
        table = ".".join([*prefix, *loc])
        return f"[{table}] " if table else "", _expected(problem), ""
    section, key = _section(model, loc), loc[-1]
    table = ".".join([*prefix, *loc[:-1]])
    where = f"[{table}] " if table else ""
    if problem["type"] == "missing":
        return f"{where}{key}: ", "missing", ""
    shown = f"{where}{key} = {show(problem['input'])}: "
    if problem["type"] == "extra_forbidden":
        known = [*_keys(section), *also] if section else []
        known = known if table else [*known, "extends"]
        return shown, f"unknown key.{did_you_mean(key, known)}", ""
    field = _keys(section).get(key) if section else None
    meaning = f" ({field.description})" if field and field.description else ""
    return shown, _expected(problem), meaning


def _keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields of a table under the keys of a recipe (``lambda`` is no name for Python)."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _section(model: type[BaseModel], loc: tuple[str, ...]) -> type[BaseModel] | None:
    """The model in which the last key of ``loc`` stands; None if that is not a table."""
    found: type[BaseModel] = model
    for key in loc[:-1]:
        field = found.model_fields.get(key)
        annotation = field.annotation if field else None
        models = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type)]
        inner = next((t for t in models if issubclass(t, BaseModel)), None)
        if inner is None:
            return None
        found = inner
    return found


_EXPECTED = {  # where pydantic speaks of Python
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "model_attributes_type": "expected a table",
    "too_short": "expected at least one entry",
    "string_too_short": "expected some text",
    "string_pattern_mismatch": "expected letters, digits, dots, hyphens and underscores, "
    "a letter or digit first",
}


def _expected(problem: Mapping[str, Any]) -> str:
    message: str = problem["msg"]
    message = message.removeprefix("Value error, ").replace("Input should be", "expected")
    return _EXPECTED.get(problem["type"], message[0].lower() + message[1:])


def _nearest_word(problem: Mapping[str, Any]) -> str:
    """The nearest of the words that a key knows, for a misspelt one."""
    if problem["type"] != "literal_error":
        return ""
    hint = did_you_mean(str(problem["input"]), re.findall(r"'([^']+)'", problem["msg"]))
    return f".{hint}" if hint else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a sentence to append; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
