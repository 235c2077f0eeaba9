"""The JSON schema of recipes: it takes what the loader takes, and refuses what an editor can see.

The validator here knows the keywords that the schema uses, and no others.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llmrec_cli import methods
from llmrec_cli.config.loader import find_shipped_folder
from llmrec_cli.config.recipe import recipe_schema
from llmrec_cli.config.training import BASELINES

SCHEMA = recipe_schema()
FILES = sorted(find_shipped_folder().rglob("*.toml"))
TOLD = {"$schema", "$defs", "title", "description", "default"}  # say nothing about a value
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
SIMPLE: dict[str, Callable[[Any, Any], bool]] = {
    "const": lambda value, wanted: value == wanted,
    "enum": lambda value, wanted: value in wanted,
    "pattern": lambda value, wanted: re.search(wanted, value) is not None,
    "minimum": lambda value, wanted: value >= wanted,
    "maximum": lambda value, wanted: value <= wanted,
    "exclusiveMinimum": lambda value, wanted: value > wanted,
    "exclusiveMaximum": lambda value, wanted: value < wanted,
    "minLength": lambda value, wanted: len(value) >= wanted,
    "minItems": lambda value, wanted: len(value) >= wanted,
    "maxItems": lambda value, wanted: len(value) <= wanted,
    "required": lambda value, wanted: set(wanted) <= set(value),
}


def valid(value: Any, schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    if kind is not None and not TYPES[kind](value):
        return False
    return all(
        _holds(value, word, wanted, schema)
        for word, wanted in schema.items()
        if word not in TOLD and word != "type"
    )


def _holds(value: Any, word: str, wanted: Any, schema: Mapping[str, Any]) -> bool:
    if word in SIMPLE:
        return SIMPLE[word](value, wanted)
    if word == "$ref":
        return valid(value, SCHEMA["$defs"][wanted.removeprefix("#/$defs/")])
    if word == "anyOf":
        return any(valid(value, branch) for branch in wanted)
    if word == "oneOf":
        return sum(valid(value, branch) for branch in wanted) == 1
    if word == "properties":
        return all(valid(value[key], inner) for key, inner in wanted.items() if key in value)
    if word == "additionalProperties":
        further = [inner for key, inner in value.items() if key not in schema.get("properties", {})]
        return not further if wanted is False else all(valid(inner, wanted) for inner in further)
    if word == "items":
        return all(valid(entry, wanted) for entry in value[len(schema.get("prefixItems", ())) :])
    if word == "prefixItems":
        return all(valid(entry, inner) for entry, inner in zip(value, wanted, strict=False))
    raise AssertionError(f"keyword {word} is new: teach the test")


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: str(path.relative_to(find_shipped_folder()))
)
def test_every_shipped_file_is_valid(path: Any) -> None:
    assert valid(tomllib.loads(path.read_text(encoding="utf-8")), SCHEMA)


def test_a_known_validator_agrees() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(SCHEMA)
    checker.check_schema(SCHEMA)
    for path in FILES:
        assert list(checker.iter_errors(tomllib.loads(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text",
    [
        'data = { format = "interactions", reviews = "one.csv" }',
        'align.msl = { tau = "ats" }',
        'align.mine = { method = "dmpo", beta = 0.5, k = 3 }',
        'align.msl = { method = "dmpo", beta = 0.5 }',
        "baseline.sasrec = { hidden = 64, train = { epochs = 3 } }",
        'baseline.wide = { model = "sasrec", hidden = 256 }',
        "sft.train = { max_steps = 5 }",
        'launch.processes = "auto"',
        "launch.processes = 2",
        "train.betas = [0.9, 0.99]",
        'eval.data = { format = "interactions" }',
    ],
)
def test_what_a_recipe_may_say_is_valid(text: str) -> None:
    assert valid(tomllib.loads(text), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "train.epoch = 1",
        'train.epochs = "three"',
        "train.epochs = 0",
        "seed = -1",
        "seed = 1.5",
        "align.msl = { beta = 0.5 }",
        "align.mine = { beta = 0.5 }",
        'align.mine = { method = "mls" }',
        'align.msl = { method = "dmpo", tau = 1.0 }',
        "baseline.sasrec = { neighbours = 3 }",
        'baseline.pop = { model = "sasrec" }',
        'baseline.mine = { model = "pop" }',
        'data = { format = "amazon2019" }',
        'launch.processes = "some"',
        'name = "../away"',
        "colour = 1",
    ],
)
def test_what_an_editor_can_see_is_refused(text: str) -> None:
    assert not valid(tomllib.loads(text), SCHEMA)


def test_every_option_of_every_method_and_model_has_its_meaning() -> None:
    tables = {f"align_{name}": methods.find_method(name).options for name in methods.list_methods()}
    tables |= {f"baseline_{name}": options for name, options in BASELINES.items()}
    for name, options in tables.items():
        properties = SCHEMA["$defs"][name]["properties"]
        for key, field in options.model_fields.items():
            assert properties[field.alias or key]["description"] == field.description
            assert field.description


def test_it_is_plain_json_without_null_and_without_loose_ends() -> None:
    text = json.dumps(SCHEMA, allow_nan=False)
    assert '"null"' not in text
    referred = set(re.findall(r'"#/\$defs/([^"]+)"', text))
    assert referred == set(SCHEMA["$defs"])
