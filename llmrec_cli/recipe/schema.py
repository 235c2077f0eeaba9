"""The JSON schema of a recipe file, for editors: every key with its type, range and meaning.

A file may leave out anything (``extends`` and defaults fill it in), so nothing but a method's name
is required; what only the whole can show (``validate`` says it) is not in a schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel

from llmrec_cli.recipe.problems import KINDS, Kind
from llmrec_cli.recipe.recipe import Recipe

Schema: TypeAlias = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> Schema:
    """The schema, JSON-able; tables stand under ``$defs``."""
    definitions: Schema = {}
    schema = _plain(Recipe, definitions)
    extends = "a recipe file whose keys hold where this one is silent; one level"
    properties = {"extends": {"type": "string", "description": extends}, **schema["properties"]}
    for kind in KINDS:
        properties[kind.table] = _stages(kind, definitions)
    schema |= {
        "$schema": DIALECT,
        "title": "llmrec recipe",
        "description": "one experiment of llmrec",
        "properties": properties,
    }
    return {**schema, "$defs": _used(schema, definitions)}


def _used(schema: Schema, definitions: Schema) -> Schema:
    """The definitions that are referred to, in order of their names."""
    found: set[str] = set()
    waiting = list(_referred(schema))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _referred(definitions[name])
    return {name: definitions[name] for name in sorted(found)}


def _referred(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].removeprefix("#/$defs/")
        node = list(node.values())
    if isinstance(node, list):
        for entry in node:
            yield from _referred(entry)


def _stages(kind: Kind, definitions: Schema) -> Schema:
    """``[align]`` or ``[baseline]``: tables, each with the options of its method or model."""
    own = _plain(kind.section, definitions)["properties"]
    own.pop("options")
    for name in kind.known():
        definitions[f"{kind.table}.{name}"] = _table(kind, name, own, definitions)
    ours = {name: {"$ref": f"#/$defs/{kind.table}.{name}"} for name in kind.known()}
    # A table of any name says what it is; one of a known name does not have to.
    free = {n: {**ours[n], "required": [kind.key]} for n in ours if n not in kind.alone}

    def tables(name: str) -> Schema:
        others = [table for other, table in free.items() if other != name]
        return ours[name] if name in kind.alone else {"anyOf": [ours[name], *others]}

    return {
        "type": "object",
        "description": f"tables [{kind.table}.NAME]; NAME is the {kind.key}, or {kind.key} says it",
        "properties": {name: tables(name) for name in ours},
        "additionalProperties": {"anyOf": list(free.values())},
    }


def _table(kind: Kind, name: str, own: Schema, definitions: Schema) -> Schema:
    options = _plain(kind.options(name), definitions)
    chosen = {**own[kind.key], "const": name}
    table: Schema = {
        "type": "object",
        "properties": {**own, kind.key: chosen, **options.get("properties", {})},
        "additionalProperties": False,
    }
    return {"description": options["description"], **table} if "description" in options else table


def _plain(model: type[BaseModel], definitions: Schema) -> Schema:
    """The schema of one table; the tables inside it go to ``definitions``."""
    schema = model.model_json_schema()
    found = {**schema.pop("$defs", {}), "": schema}
    cleaned = {name: _cleaned(table) for name, table in found.items()}
    top: Schema = cleaned.pop("")
    definitions |= cleaned
    return top


def _cleaned(node: Any) -> Any:
    """Without what a file does not know: required keys, null, and titles made from names."""
    if isinstance(node, list):
        return [_cleaned(entry) for entry in node]
    if not isinstance(node, Mapping):
        return node
    return dict(_entries(node))


def _entries(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key == "properties":  # whose keys are names of ours
            yield key, {name: _cleaned(inner) for name, inner in value.items()}
        elif key == "anyOf":
            yield from _alternatives([e for e in value if e != {"type": "null"}])
        elif key == "default":
            if value is not None and not isinstance(
                value, Mapping
            ):  # tables have keys of their own
                yield key, value
        elif key not in ("required", "title"):
            yield key, _cleaned(value)


def _alternatives(left: list[Any]) -> Iterator[tuple[str, Any]]:
    if len(left) == 1:
        yield from _cleaned(left[0]).items()
    else:
        yield "anyOf", _cleaned(left)
