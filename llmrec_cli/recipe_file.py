"""Reading recipe files: one strict TOML loader, ``extends``, overrides, and readable problems."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llmrec_cli import methods
from llmrec_cli.errors import RecipeError
from llmrec_cli.recipe import AlignSection, Recipe

Table = dict[str, Any]

SHIPPED = Path(__file__).parent / "shipped" / "recipes"
CHECKOUT = Path(__file__).parents[1] / "recipes"
MAX_BYTES = 1 << 20


def load_recipe(
    name_or_path: str, overrides: Iterable[str] = (), aligns: Iterable[str] = ()
) -> Recipe:
    """Load, merge and check a recipe.

    Args:
        name_or_path: path of a TOML file, or the name of a shipped recipe without ``.toml``
            (``quickstart``, ``amazon2018/gift-cards``).
        overrides: ``key=value`` with a dotted key; the value is TOML, else a plain string.
        aligns: alignments that are wanted; default options where the recipe is silent.

    Raises:
        RecipeError: every problem at once, one line each.
    """
    path = find_recipe(name_or_path)
    table = _read(path)
    base = table.pop("extends", None)
    if base is not None:
        table = _merge(_read_base(path, base), table)
    table.setdefault("name", path.stem)
    for override in overrides:
        _apply(table, override)
    for align in aligns:
        if isinstance(table.setdefault("align", {}), dict):
            table["align"].setdefault(align, {})
    problems = list(_problems(table))
    if not problems:
        resolved = _inherit_train(_split_align(table))
        problems = list(_model_problems(Recipe, resolved, ()))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n  ".join([f"{path}: {count}", *problems]))
    return Recipe.model_validate(resolved)


def shipped_folder() -> Path:
    """Folder of the recipes that travel with the package."""
    return SHIPPED if SHIPPED.is_dir() else CHECKOUT


def shipped_names() -> list[str]:
    """Names of the shipped recipes, sorted; base files (``base-*.toml``) are left out."""
    folder = shipped_folder()
    paths = (p.relative_to(folder).with_suffix("") for p in folder.rglob("*.toml"))
    return sorted(p.as_posix() for p in paths if not p.name.startswith("base"))


def find_recipe(name_or_path: str) -> Path:
    """The file behind a recipe's path or shipped name.

    Raises:
        RecipeError: neither exists; the message names the nearest shipped recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder, expected a TOML file or a shipped recipe's name")
    if name_or_path in shipped_names():
        return shipped_folder() / f"{name_or_path}.toml"
    hint = _did_you_mean(name_or_path, shipped_names())
    raise RecipeError(f"{name_or_path}: no such recipe file or shipped recipe.{hint}")


def _read(path: Path) -> Table:
    """One TOML file, with its ``./`` paths made relative to the working folder."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_BYTES} bytes, expected a recipe")
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8, expected TOML text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    _anchor_paths(table, path.parent)
    return table


def _read_base(path: Path, base: object) -> Table:
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends = {base!r}: expected the path of a TOML file")
    base_path = path.parent / base
    if not base_path.is_file():
        raise RecipeError(f"{path}: extends = {base!r}: no such file {base_path}")
    table = _read(base_path)
    if "extends" in table:
        raise RecipeError(f"{base_path}: extends again; one level of sharing is the limit")
    return table


PATH_KEYS = (
    ("data", "reviews"),
    ("data", "metadata"),
    ("data", "index"),
    ("data", "splits", "train"),
    ("data", "splits", "valid"),
    ("data", "splits", "test"),
    ("prompt", "template"),
    ("model", "backbone"),
)


def _anchor_paths(table: Table, folder: Path) -> None:
    def anchor(value: Any) -> Any:
        if isinstance(value, list):
            return [anchor(entry) for entry in value]
        if isinstance(value, str) and value.startswith(("./", "../")):
            return os.path.normpath(folder / value)
        return value

    for *parents, key in PATH_KEYS:
        inner: Any = table
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and key in inner:
            inner[key] = anchor(inner[key])
    model = table.get("model")
    if isinstance(model, dict) and os.path.isdir(model.get("backbone", "")):
        model["backbone"] = os.path.abspath(model["backbone"])  # cannot be taken for a hub id


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """``over`` wins; tables are merged, everything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type] # both: dicts
    return merged


def _apply(table: Table, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise RecipeError(f"{override}: expected key=value, e.g. train.learning_rate=1e-4")
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{override}: {parent} is a value, not a table")
    table[last] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _split_align(table: Table) -> Table:
    """``[align.NAME]`` holds the stage's own keys and the method's options: tell them apart."""
    own = set(AlignSection.model_fields) - {"options"}
    sections = {}
    for name, section in table.get("align", {}).items():
        stage = {key: value for key, value in section.items() if key in own}
        stage.setdefault("method", name)
        options = {key: value for key, value in section.items() if key not in own}
        stage["options"] = methods.find(stage["method"]).options.model_validate(options)
        sections[name] = stage
    return {**table, "align": sections}


def _inherit_train(table: Table) -> Table:
    """A stage's ``train`` table lies over the shared ``[train]``."""
    shared = table.get("train", {})

    def inherit(stage: Table) -> Table:
        return {**stage, "train": _merge(shared, stage.get("train", {}))}

    align = {name: inherit(stage) for name, stage in table["align"].items()}
    return {**table, "sft": inherit(table.get("sft", {})), "align": align}


def _problems(table: Table) -> Iterator[str]:
    """Every problem of a merged recipe, as lines ``[section] key = value: what was expected``."""
    align = table.get("align", {})
    if not isinstance(align, dict):
        yield f"align = {_show(align)}: expected tables such as [align.msl]"
        align = {}
    yield from _model_problems(Recipe, {k: v for k, v in table.items() if k != "align"}, ())
    for name, section in align.items():
        yield from _align_problems(name, section)


def _align_problems(name: str, section: object) -> Iterator[str]:
    if not isinstance(section, dict):
        yield f"[align] {name} = {_show(section)}: expected a table [align.{name}]"
        return
    method = section.get("method", name)
    if method not in methods.names():
        hint = _did_you_mean(str(method), methods.names())
        known = ", ".join(methods.names())
        shown = f"[align.{name}] method = {_show(method)}"
        yield f"{shown}: unknown method, expected one of {known}.{hint}"
        return
    options = methods.find(method).options
    stage_keys = set(AlignSection.model_fields) - {"options"}
    stage = {key: value for key, value in section.items() if key in stage_keys}
    stage |= {"method": method, "options": options.model_construct()}
    yield from _model_problems(AlignSection, stage, ("align", name))
    rest = {key: value for key, value in section.items() if key not in stage_keys}
    yield from _model_problems(options, rest, ("align", name), also=tuple(sorted(stage_keys)))


def _model_problems(
    model: type[BaseModel], values: Table, prefix: tuple[str, ...], also: tuple[str, ...] = ()
) -> Iterator[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        by_place: dict[tuple[str, str], list[str]] = {}  # a union has one problem per branch: join
        for problem in error.errors(include_url=False, include_context=False):
            loc = _real_location(values, problem["loc"])
            place, expected, meaning = _describe(model, prefix, loc, problem, also)
            by_place.setdefault((place, meaning), []).append(expected)
        for (place, meaning), expected_ones in by_place.items():
            first, *others = dict.fromkeys(expected_ones)
            either = [other.removeprefix("expected ") for other in others]
            yield place + " or ".join([first, *either]) + meaning


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
    shown = f"{where}{key} = {_show(problem['input'])}: "
    if problem["type"] == "extra_forbidden":
        known = [*section.model_fields, *also] if section else []
        return shown, f"unknown key.{_did_you_mean(key, known)}", ""
    field = section.model_fields.get(key) if section else None
    return shown, _expected(problem), f" ({field.description})" if field else ""


def _section(model: type[BaseModel], loc: tuple[str, ...]) -> type[BaseModel] | None:
    """The model in which the last key of ``loc`` stands; None if that is not a table."""
    found: Any = model
    for key in loc[:-1]:
        field = found.model_fields.get(key)
        annotation = field.annotation if field else None
        models = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type)]
        found = next((t for t in models if issubclass(t, BaseModel)), None)
        if found is None:
            return None
    return found  # type: ignore[no-any-return] # walked through Any on purpose


def _expected(problem: Mapping[str, Any]) -> str:
    message: str = problem["msg"]
    message = message.removeprefix("Value error, ").replace("Input should be", "expected")
    return message[0].lower() + message[1:]


def _show(value: object) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    text = text.replace("'", '"') if isinstance(value, str) else text
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
