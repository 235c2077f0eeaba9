"""The recipes that are part of the package: list, show, copy (``llmrec recipes``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from llmrec_cli.config.loader import (
    find_recipe,
    find_shipped_folder,
    list_shipped_names,
    read_recipe,
)
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.runs.run import experiment_of
from llmrec_cli.utils.files import translate_os_errors, write_atomically

_EXTENDS = re.compile(r'^(extends\s*=\s*)"([^"\n]+)"', re.MULTILINE)
_NAME = re.compile(r'^name\s*=\s*"[^"\n]*"', re.MULTILINE)
_DATA = re.compile(r'"((?:\.\./)+data/[^"\n]+)"')  # the embedded sample


@dataclass(frozen=True, slots=True)
class Shipped:
    """One shipped recipe, for a list."""

    name: str
    description: str
    backbone: str
    runs: tuple[str, ...]


def list_shipped() -> list[Shipped]:
    """Every shipped recipe."""
    return [_describe_shipped(name) for name in list_shipped_names()]


def show_recipe(name: str, *, resolved: bool) -> str:
    """The text of a recipe; ``resolved``: with inherited keys and all defaults.

    Raises:
        RecipeError: no such recipe.
    """
    if resolved:
        return tomli_w.dumps(read_recipe(name).to_table())
    return find_recipe(name).read_text(encoding="utf-8")


def copy_recipe(name: str, target: Path | None) -> list[Path]:
    """Copy a shipped recipe, with the recipe that it extends and its sample data.

    Comments stay.  The copy's ``name`` is the name of its file, so it is a new experiment.

    Args:
        target: a new file; None: the last part of the recipe's name, in the working directory.

    Returns:
        The written files, the recipe first.

    Raises:
        RecipeError: no such shipped recipe.
        ArtefactError: a file exists with other content.
        MachineError: the disk refuses.
    """
    if name not in list_shipped_names():
        find_recipe(name)  # says what is near
        raise RecipeError(f"{name}: is a file of yours already; only shipped recipes are copied")
    target = target or Path(f"{name.rsplit('/', 1)[-1]}.toml")
    contents = dict(_plan_copies(name, target))
    for path, content in contents.items():
        if path.exists() and (path == target or path.read_bytes() != content):
            raise ArtefactError(f"{path}: exists already and is not overwritten; name another --to")
    for path, content in reversed(contents.items()):  # the recipe last
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return list(contents)


def _describe_shipped(name: str) -> Shipped:
    recipe = read_recipe(name)
    return Shipped(
        name, recipe.description, recipe.model.backbone, tuple(experiment_of(recipe).names)
    )


def _plan_copies(name: str, target: Path) -> Iterator[tuple[Path, bytes]]:
    """The files of a copy, with their contents."""
    source = find_shipped_folder() / f"{name}.toml"
    text = source.read_text(encoding="utf-8")
    text = _NAME.sub(f'name = "{target.stem}"', text, count=1)
    text = "".join(_rewrite_commands(text, name, target))
    bases = [base for _, base in _EXTENDS.findall(text)]
    data = _DATA.findall(text)
    text = _EXTENDS.sub(lambda match: f'{match[1]}"{Path(match[2]).name}"', text)
    text = _DATA.sub(lambda match: f'"./{_strip_ascent(match[1])}"', text)
    try:
        yield target, text.encode()
    except UnicodeEncodeError:  # its own name stands in it
        raise RecipeError(f"--to {target}: expected a name that is UTF-8") from None
    for base in bases:
        yield target.parent / Path(base).name, (source.parent / base).read_bytes()
    for file in data:
        inside = Path(os.path.normpath(source.parent / file))
        yield target.parent / _strip_ascent(file), inside.read_bytes()


def _rewrite_commands(text: str, name: str, target: Path) -> Iterator[str]:
    """The text's lines; commands in comments name the copy."""
    for line in text.splitlines(keepends=True):
        is_command = line.startswith("#") and "llmrec " in line
        yield line.replace(name, target.as_posix()) if is_command else line


def _strip_ascent(path: str) -> str:
    """A path without its leading ``../``."""
    return path[path.index("data/") :]
