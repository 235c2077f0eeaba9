"""Reading recipe files: one strict TOML loader, ``extends`` and overrides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from llmrec_cli.errors import RecipeError
from llmrec_cli.recipe.baseline import OWN_TRAIN, SHARED_TRAIN, TRAIN_OF, BaselineSection
from llmrec_cli.recipe.problems import Table, did_you_mean, list_problems
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.stages import AlignSection, StageSection
from llmrec_cli.recipe.task import data_problems, link_problems, name_problems, task_problems
from llmrec_cli.recipe.toml import parse, require_bounds
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.recipe.unused import unused_notes, unused_problems
from llmrec_cli.redaction import redacted

SHIPPED = Path(__file__).parents[1] / "shipped" / "recipes"
CHECKOUT = Path(__file__).parents[2] / "recipes"
MAX_BYTES = 1 << 20
Stage = TypeVar("Stage", StageSection, AlignSection, BaselineSection)


def load_recipe(
    name_or_path: str,
    overrides: Iterable[str] = (),
    aligns: Iterable[str] = (),
    baselines: Iterable[str] = (),
    *,
    say: Callable[[str], None] = lambda _: None,
    whole: bool = False,
) -> Recipe:
    """Load, merge and check a recipe.

    Args:
        name_or_path: path of a TOML file, or the name of a shipped recipe without ``.toml``
            (``quickstart``, ``amazon2018/gift-cards``).
        overrides: ``key=value`` with a dotted key; the value is TOML, else a plain string.
        aligns, baselines: alignments and conventional models that are wanted; default options
            where the recipe is silent.
        say: receives a line for each set of keys that play no part and are no mistake.
        whole: the file is a run's own record, which may state every key there is.

    Raises:
        RecipeError: every problem at once, one line each.
    """
    path = find_recipe(name_or_path)
    table = merged_table(path, overrides)
    for kind, names in (("align", aligns), ("baseline", ["pop", *baselines])):
        for name in names:
            if isinstance(table.setdefault(kind, {}), dict):
                table[kind].setdefault(name, {})
    try:
        recipe = inherit_training(Recipe.model_validate(table))
    except ValidationError as error:
        problems = list(list_problems(error, table))
    else:  # what follows from a problem is not asked
        problems = [*name_problems(recipe)] or [*link_problems(recipe)]
        if not problems:
            unused = [] if whole else unused_problems(table, recipe)
            problems = [*data_problems(recipe), *task_problems(recipe), *unused]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n  ".join([f"{path}: {count}", *problems]))
    for note in () if whole else unused_notes(table, recipe):
        say(redacted(f"note: {note}"))
    return recipe


def merged_table(path: Path, overrides: Iterable[str] = ()) -> Table:
    """A recipe file over the one that it extends, and overrides over both; nothing is checked.

    Paths are relative to the working folder.

    Raises:
        RecipeError: a file that is not TOML, or a word that is no override.
    """
    table = _read_table(path)
    base = table.pop("extends", None)
    if base is not None:
        table = _merge_tables(_read_base(path, base), table)
    table.setdefault("name", path.stem)
    for override in overrides:
        _apply_override(table, override)
    try:
        require_bounds(table)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}, by an override; expected a recipe") from None
    return table


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
    hint = did_you_mean(name_or_path, shipped_names())
    raise RecipeError(f"{name_or_path}: no such recipe file or shipped recipe.{hint}")


def _read_table(path: Path) -> Table:
    """One TOML file, with its ``./`` paths made relative to the working folder."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_BYTES} bytes, expected a recipe")
        table = parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8, expected TOML text") from None
    except ValueError as error:
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
    table = _read_table(base_path)
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
    def anchored(path: str) -> str:
        return os.path.normpath(folder / path) if path.startswith(("./", "../")) else path

    map_paths(table, anchored)
    model = table.get("model")
    if isinstance(model, dict) and os.path.isdir(model.get("backbone", "")):
        model["backbone"] = os.path.abspath(model["backbone"])  # cannot be taken for a hub id


def map_paths(table: Table, change: Callable[[str], str]) -> None:
    """Change, in place, every value of a recipe's table that may be a path."""

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(entry) for entry in value]
        return change(value) if isinstance(value, str) else value

    for *parents, key in PATH_KEYS:
        inner: Any = table
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and key in inner:
            inner[key] = changed(inner[key])


def _merge_tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """``over`` wins; tables are merged, everything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merge_tables(below, value)
        merged[key] = value
    return merged


def _apply_override(table: Table, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise RecipeError(f"{override}: expected key=value, e.g. train.learning_rate=1e-4")
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{override}: {parent} is a value, not a table")
    table[last] = toml_value(text.strip())


def toml_value(text: str) -> Any:
    """The value that an override's text means: TOML, else the text itself."""
    try:
        parsed = parse(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def inherit_training(recipe: Recipe) -> Recipe:
    """A stage's ``train`` table lies over the shared ``[train]``; values are checked already."""

    def inherit(stage: Stage, shared: TrainSection) -> Stage:
        own = {key: getattr(stage.train, key) for key in stage.train.model_fields_set}
        return stage.model_copy(update={"train": shared.model_copy(update=own)})

    shared = recipe.train
    common = {k: getattr(shared, k) for k in SHARED_TRAIN if k in shared.model_fields_set}

    def conventional(model: str) -> TrainSection:
        own = OWN_TRAIN | TRAIN_OF.get(model, {}) | common
        return TrainSection.model_construct().model_copy(update=own)

    return recipe.model_copy(
        update={
            "sft": inherit(recipe.sft, shared),
            "align": {name: inherit(stage, shared) for name, stage in recipe.align.items()},
            "baseline": {
                name: inherit(stage, conventional(stage.model))
                for name, stage in recipe.baseline.items()
            },
        }
    )
