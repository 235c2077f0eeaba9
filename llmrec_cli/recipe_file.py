"""Reading recipe files: one strict TOML loader, ``extends``, overrides, and readable problems."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmrec_cli import methods
from llmrec_cli.errors import RecipeError
from llmrec_cli.recipe import AlignSection, Recipe
from llmrec_cli.recipe_baseline import BASELINES, OWN_TRAIN, BaselineSection
from llmrec_cli.recipe_task import task_problems

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
    ),
)

SHIPPED = Path(__file__).parent / "shipped" / "recipes"
CHECKOUT = Path(__file__).parents[1] / "recipes"
MAX_BYTES = 1 << 20


def load_recipe(
    name_or_path: str,
    overrides: Iterable[str] = (),
    aligns: Iterable[str] = (),
    baselines: Iterable[str] = (),
) -> Recipe:
    """Load, merge and check a recipe.

    Args:
        name_or_path: path of a TOML file, or the name of a shipped recipe without ``.toml``
            (``quickstart``, ``amazon2018/gift-cards``).
        overrides: ``key=value`` with a dotted key; the value is TOML, else a plain string.
        aligns, baselines: alignments and conventional models that are wanted; default options
            where the recipe is silent.

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
    for kind, names in (("align", aligns), ("baseline", ["pop", *baselines])):
        for name in names:
            if isinstance(table.setdefault(kind, {}), dict):
                table[kind].setdefault(name, {})
    problems = list(_problems(table))
    if not problems:
        resolved = _inherit_train(_split_options(table))
        problems = list(_model_problems(Recipe, resolved, ()))
    if not problems:
        recipe = Recipe.model_validate(resolved)
        problems = list(task_problems(recipe))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n  ".join([f"{path}: {count}", *problems]))
    return recipe


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


_DATA_KEYS = (
    ("data", "reviews"),
    ("data", "metadata"),
    ("data", "index"),
    *(("data", "splits", split) for split in ("train", "preference", "valid", "test")),
    ("prompt", "template"),
)
PATH_KEYS = (*_DATA_KEYS, *(("eval", *keys) for keys in _DATA_KEYS), ("model", "backbone"))


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


def _split_options(table: Table) -> Table:
    """``[align.NAME]`` and ``[baseline.NAME]`` hold two things, the stage's own keys and options of
    a method or model: tell them apart."""
    resolved = dict(table)
    for kind in KINDS:
        sections = {}
        for name, section in table.get(kind.table, {}).items():
            own, options = kind.apart(name, section)
            own["options"] = kind.options(own[kind.key]).model_validate(options)
            sections[name] = own
        resolved[kind.table] = sections
    return resolved


def _inherit_train(table: Table) -> Table:
    """A stage's ``train`` table lies over the shared ``[train]``."""
    shared = table.get("train", {})

    def inherit(stage: Table) -> Table:
        return {**stage, "train": _merge(shared, stage.get("train", {}))}

    align = {name: inherit(stage) for name, stage in table["align"].items()}
    baseline = {
        name: {**stage, "train": _merge({**shared, **OWN_TRAIN}, stage.get("train", {}))}
        for name, stage in table["baseline"].items()
    }
    sft = inherit(table.get("sft", {}))
    return {**table, "sft": sft, "align": align, "baseline": baseline}


def _problems(table: Table) -> Iterator[str]:
    """Every problem of a merged recipe, as lines ``[section] key = value: what was expected``."""
    names = [kind.table for kind in KINDS]
    yield from _model_problems(Recipe, {k: v for k, v in table.items() if k not in names}, ())
    for kind in KINDS:
        sections = table.get(kind.table, {})
        if not isinstance(sections, dict):
            yield f"{kind.table} = {_show(sections)}: expected tables such as [{kind.example}]"
            continue
        for name, section in sections.items():
            yield from _stage_problems(kind, name, section)


def _stage_problems(kind: Kind, name: str, section: object) -> Iterator[str]:
    table = f"{kind.table}.{name}"
    if not isinstance(section, dict):
        yield f"[{kind.table}] {name} = {_show(section)}: expected a table [{table}]"
        return
    own, rest = kind.apart(name, section)
    chosen = own[kind.key]
    if chosen not in kind.known():
        hint = _did_you_mean(str(chosen), kind.known())
        known = ", ".join(kind.known())
        shown = f"[{table}] {kind.key} = {_show(chosen)}"
        yield f"{shown}: unknown {kind.key}, expected one of {known}.{hint}"
        return
    options = kind.options(chosen)
    placeholder = own | {"options": options.model_construct()}
    yield from _model_problems(kind.section, placeholder, (kind.table, name))
    yield from _model_problems(options, rest, (kind.table, name), also=kind.own_keys())


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
        known = [*_keys(section), *also] if section else []
        return shown, f"unknown key.{_did_you_mean(key, known)}", ""
    field = _keys(section).get(key) if section else None
    return shown, _expected(problem), f" ({field.description})" if field else ""


def _keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields of a table under the keys of a recipe (``lambda`` is no name for Python)."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


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
