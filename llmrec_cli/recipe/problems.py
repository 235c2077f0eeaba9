"""What is wrong with a recipe, as lines ``[table] key = value: what was expected``.  No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmrec_cli.recipe.baseline import CONVENTIONAL
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.stages import ALIGNMENTS, NamedTables
from llmrec_cli.recipe.toml import show

Table: TypeAlias = dict[str, Any]
Problem: TypeAlias = Mapping[str, Any]  # one of ``ValidationError.errors()``

STAGE_TABLES = {tables.table: tables for tables in (ALIGNMENTS, CONVENTIONAL)}


def list_problems(error: ValidationError, table: Table) -> Iterator[str]:
    """What ``Recipe`` refused, a line for each key: stages' own tables after all others.

    Args:
        table: what was validated.
    """
    order = {name: number for number, name in enumerate(STAGE_TABLES, start=1)}
    problems = error.errors(include_url=False, include_context=False)
    by_place: dict[tuple[str, str], list[str]] = {}  # a union has one problem per branch: join
    hints: dict[tuple[str, str], str] = {}
    for problem in sorted(problems, key=lambda each: order.get(str(each["loc"][0]), 0)):
        place, expected, meaning = _locate(problem, table)
        by_place.setdefault((place, meaning), []).append(expected)
        hints[place, meaning] = hints.get((place, meaning), "") or _suggest_word(problem)
    for (place, meaning), expected_ones in by_place.items():
        first, *others = dict.fromkeys(expected_ones)
        either = [other.removeprefix("expected ") for other in others]
        yield place + " or ".join([first, *either]) + meaning + hints[place, meaning]


def _locate(problem: Problem, table: Table) -> tuple[str, str, str]:
    """Where a problem is (``[table] key = value: ``), what was expected, and what the key means."""
    kind, *rest = problem["loc"]
    tables = STAGE_TABLES.get(kind)
    if tables is None:
        return _describe(Recipe, (), _drop_branches(table, problem["loc"]), problem)
    if len(rest) < 2:
        return _describe_table(tables, rest, problem)
    name, chosen, *loc = rest
    return _describe(
        tables.kinds()[chosen], (kind, name), _drop_branches(table[kind][name], loc), problem
    )


def _describe_table(tables: NamedTables, loc: list[str], problem: Problem) -> tuple[str, str, str]:
    """Of what is no table of a method or model at all."""
    value = problem["input"]
    if not loc:
        expected = f"expected tables such as [{tables.example}]"
        return f"{tables.table} = {show(value)}: ", expected, ""
    place = f"{tables.table}.{loc[0]}"
    if problem["type"] != "union_tag_invalid":
        return f"[{tables.table}] {loc[0]} = {show(value)}: ", f"expected a table [{place}]", ""
    chosen, known = value[tables.key], list(tables.registry())
    expected = f"unknown {tables.key}, expected one of {', '.join(known)}."
    hint = did_you_mean(str(chosen), known)
    return f"[{place}] {tables.key} = {show(chosen)}: ", expected + hint, ""


def _drop_branches(values: Any, loc: Iterable[int | str]) -> tuple[str, ...]:
    """``loc`` without the parts that name a branch of a union rather than a key."""
    keys: list[str] = []
    for part in loc:
        known = isinstance(values, dict) and part in values
        if known or ((not keys or isinstance(values, dict)) and isinstance(part, str)):
            keys.append(str(part))
            values = values.get(part) if isinstance(values, dict) else None
    return tuple(keys)


def _describe(
    model: type[BaseModel], prefix: tuple[str, ...], loc: tuple[str, ...], problem: Problem
) -> tuple[str, str, str]:
    """The three of ``_locate``, for a key or table inside of ``model``.

    Args:
        prefix: names of the tables around it.
    """
    table_itself = problem["type"] == "value_error" and _find_section(model, (*loc, "")) is not None
    if not loc or table_itself:  # a check over a whole table
        table = ".".join([*prefix, *loc])
        return f"[{table}] " if table else "", _explain(problem), ""
    section, key = _find_section(model, loc), loc[-1]
    table = ".".join([*prefix, *loc[:-1]])
    where = f"[{table}] " if table else ""
    if problem["type"] == "missing":
        return f"{where}{key}: ", "missing", ""
    shown = f"{where}{key} = {show(problem['input'])}: "
    if problem["type"] == "extra_forbidden":
        known = _list_keys(section) if section else []
        known = known if table else [*known, "extends"]
        return shown, f"unknown key.{did_you_mean(key, known)}", ""
    field = _list_keys(section).get(key) if section else None
    meaning = f" ({field.description})" if field and field.description else ""
    return shown, _explain(problem), meaning


def _list_keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields of a table under the keys of a recipe (``lambda`` is no name for Python)."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _find_section(model: type[BaseModel], loc: tuple[str, ...]) -> type[BaseModel] | None:
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


def _explain(problem: Problem) -> str:
    message: str = problem["msg"]
    message = message.removeprefix("Value error, ").replace("Input should be", "expected")
    return _EXPECTED.get(problem["type"], message[0].lower() + message[1:])


def _suggest_word(problem: Problem) -> str:
    """The nearest of the words that a key knows, for a misspelt one."""
    if problem["type"] != "literal_error":
        return ""
    hint = did_you_mean(str(problem["input"]), re.findall(r"'([^']+)'", problem["msg"]))
    return f".{hint}" if hint else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a sentence to append; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
