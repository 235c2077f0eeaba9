"""The page of recipes: every table and key, from the pydantic models of recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from generate_commands import NOTE
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmrec_cli.config.loader import STAGE_TABLES
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.tokens import QUANTIZERS, TokensSection
from llmrec_cli.config.training import BASELINES, OWN_TRAIN, SHARED_TRAIN, TRAIN_OF, UNTRAINED
from llmrec_cli.data.prompts import ChatWording, FieldsWording, RankWording, Wording, template_names
from llmrec_cli.tokens.quantizers import find_quantizer, quantizer_names

NAMED = [tables.key for tables in STAGE_TABLES.values()]  # by default the name of their table
_TEXTS = "text, or a list of texts"
SAME_AS = ("train", "data", "prompt")  # tables that come again inside of others

OPENING = """
# Recipes

A recipe is a TOML file. It describes one experiment, and every command reads it. This page lists
every table and key with its values, its default and its meaning. The page is generated from the
code that checks recipes.

- llmrec refuses unknown keys, wrong types and values out of range. It lists all problems at once,
  and suggests the nearest name.
- `extends = "base.toml"` takes all other keys from another recipe. Tables are merged, other values
  are replaced. The path is relative to the recipe file. The base must not extend a third file.
- `key=value` on the command line overrides a key: `train.learning_rate=1e-3`. The value is read as
  TOML. If it is not valid TOML, it is text.
- A path that begins with `./` or `../` is relative to the recipe file. Any other path is relative
  to the working directory.
- llmrec refuses a key that cannot have an effect, such as `index` with `format = "msl-windows"`.
  If another key switches it off, a note says so, such as for `model.lora` with `tuning = "full"`.
- *absent* means that a key has no value by default.
- `llmrec validate RECIPE` checks a recipe and the first lines of its sources. It trains nothing.

Results go to the folder `out/name`. Every run's folder holds the resolved recipe.
"""

TRAIN_OF_BASELINES = """
Defaults of the `train` table of a conventional model. From the recipe's `[train]` it takes only
{shared}:

| key | {models} |
|---|{dashes}|
{rows}
"""


TEMPLATES = """
## Template files

`prompt.template` names a shipped wording: {names}. Or it is the path of your own TOML file with
these keys. Titles are inserted unchanged. Nothing in a title is read as a placeholder.
[Prompts](prompts.md) explains them.
"""


def recipe_page() -> str:
    """The whole page."""
    parts = [NOTE, OPENING.strip(), *_tables(Recipe, ()), *_template()]
    return "\n\n".join(parts) + "\n"


def _tables(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """A section with a table's keys, then the tables inside of it."""
    inner = {key: _model_of(field) for key, field in _fields(model).items()}
    yield _section(model, path, {key for key, found in inner.items() if found is None})
    for key, found in inner.items():
        if key in STAGE_TABLES and not path:
            yield from _tables(_required(found), (key, "NAME"))
            for name, options in STAGE_TABLES[key].registry().items():
                yield _options((key, name), options, STAGE_TABLES[key].key, name)
            yield from [_own_train()] if key == "baseline" else []
        elif found is not None and not (path and key in SAME_AS):
            yield from _tables(found, (*path, key))
            for name in quantizer_names() if found is TokensSection else ():
                yield _quantizer(name)


def _template() -> Iterator[str]:
    """The keys of a template file, which is no recipe but named by one."""
    tables = ("chat", "rank", "fields")
    yield TEMPLATES.strip().format(names=", ".join(f"`{name}`" for name in template_names()))
    models: dict[str, type[BaseModel]] = {
        "Wording": Wording,
        "[fields]": FieldsWording,
        "[chat]": ChatWording,
        "[rank]": RankWording,
    }
    for title, model in models.items():
        schema = model.model_json_schema()
        fields = [(key, field) for key, field in _fields(model).items() if key not in tables]
        rows = [_row(key, schema["properties"][key], field) for key, field in fields]
        yield "\n".join([f"### {title}", "", *_table(rows)])


def _section(model: type[BaseModel], path: tuple[str, ...], keys: set[str]) -> str:
    about = _about(model) if path else "These stand at the top of the file, before any table."
    lines = [f"## {_heading(path)}" if path else "## Top level", "", about, ""]
    rows = []
    schema = model.model_json_schema()
    for key, field in _fields(model).items():
        if path and key in SAME_AS and key not in keys:
            rows.append(f"| `{key}` | table | {_linked(field)} |")
        elif key in keys:
            rows.append(_row(key, schema["properties"][key], field))
    return "\n".join([*lines, *_table(rows)])


def _options(path: tuple[str, ...], options: type[BaseModel], kind: str, name: str) -> str:
    lines = [f"## {_heading(path)}", "", f'Options of {kind} `"{name}"`, in the same table.', ""]
    schema = options.model_json_schema()
    rows = [_row(key, schema["properties"][key], f) for key, f in _fields(options).items()]
    return "\n".join([*lines, *(_table(rows) if rows else ["It has none."])])


def _quantizer(name: str) -> str:
    options = find_quantizer(name).options
    text = _options(("tokens",), options, QUANTIZERS.key, name)
    return text.replace("## [tokens]", f"## [tokens] with {name}", 1)


def _own_train() -> str:
    """Defaults of the conventional models' training, which are not `[train]`'s."""
    models = [name for name in BASELINES if name not in UNTRAINED]
    rows = [
        f"| `{key}` | "
        + " | ".join(_default((OWN_TRAIN | TRAIN_OF.get(m, {}))[key]) for m in models)
        for key in OWN_TRAIN
    ]
    return TRAIN_OF_BASELINES.strip().format(
        shared=", ".join(f"`{key}`" for key in SHARED_TRAIN),
        models=" | ".join(models),
        dashes="|".join(["---"] * len(models)),
        rows="\n".join(rows),
    )


def _heading(path: tuple[str, ...]) -> str:
    return f"[{'.'.join(path)}]"


def _about(model: type[BaseModel]) -> str:
    """The model's docstring without the name of its table."""
    text = " ".join((model.__doc__ or "").split()).replace("``", "`")
    text = text.partition("`: ")[2] if text.startswith("`[") else text
    return text[:1].upper() + text[1:]


def _table(rows: list[str]) -> list[str]:
    return ["| key | values, default | meaning |", "|---|---|---|", *rows]


def _row(key: str, schema: dict[str, Any], field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default {_default(schema.get('default'))}"
    default = "default *NAME*" if key in NAMED else default
    return f"| `{key}` | {_values(schema)}; {default} | {_cell(field)} |"


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a key that is a table."""
    inner = get_args(field.annotation)
    parts = [get_args(found)[0] for found in inner if get_origin(found) is Annotated]
    for found in (field.annotation, *inner, *parts):
        if isinstance(found, type) and issubclass(found, BaseModel) and found is not BaseModel:
            return found
    return None


def _required(model: type[BaseModel] | None) -> type[BaseModel]:
    if model is None:
        raise TypeError("expected a key whose values are tables")
    return model


def _values(schema: dict[str, Any]) -> str:
    """Type and range of a key, in words."""
    if "anyOf" in schema:
        words = [_values(branch) for branch in schema["anyOf"] if branch.get("type") != "null"]
        return " or ".join(w for w in words if w != "text" or _TEXTS not in words)
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{json.dumps(choice)}`" for choice in choices)
    kind = schema.get("type")
    if kind is None:
        return "table" if "$ref" in schema else "any value"
    if kind == "array":
        return _array(schema)
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"table of {_values(inner)}" if isinstance(inner, dict) else "table"
    names = {"integer": "integer", "number": "number", "boolean": "`true`, `false`"}
    return names.get(str(kind), "text") + _range(schema)


def _array(schema: dict[str, Any]) -> str:
    places = schema.get("prefixItems")
    if places:
        return f"list of {len(places)}: {_values(places[0])}"
    items = _values(schema["items"])
    return _TEXTS if items == "text" else f"list: {items}"


def _range(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "&lt;"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(value: Any) -> str:
    if value in (None, [], ()):
        return "*absent*"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{json.dumps(value)}`"


def _cell(field: FieldInfo) -> str:
    text = (field.description or "").replace("docs/data.md", "[Data](data.md)")
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _linked(field: FieldInfo) -> str:
    """A description whose tables are links."""
    return re.sub(r"`\[(\w+)\]`", r"[`[\1]`](#\1)", _cell(field))
