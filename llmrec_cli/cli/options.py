"""Options that several commands share, and their shell completion."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Context

from llmrec_cli.errors import LlmrecError

# Shell completion: only names that are cheap to find. A broken file completes nothing.


RUNS = "runs"  # the default folder of all runs (``out`` of a recipe)


def complete_recipes(incomplete: str) -> list[str]:
    """Shipped recipes, TOML files, and folders."""
    from llmrec_cli.config.loader import list_shipped_names

    return _beginning([*list_shipped_names(), *_paths(incomplete, ".toml")], incomplete)


def complete_shipped(incomplete: str) -> list[str]:
    """Shipped recipes."""
    from llmrec_cli.config.loader import list_shipped_names

    return _beginning(list_shipped_names(), incomplete)


def complete_folders(incomplete: str) -> list[str]:
    """Experiments and runs under ``runs``, and other folders."""
    from llmrec_cli.utils.files import MANIFEST_FILE

    known = [path.as_posix() for path in Path(RUNS).glob("*") if path.is_dir()]
    known += [p.parent.as_posix() for p in Path(RUNS).glob(f"*/*/{MANIFEST_FILE}")]
    return _beginning([*known, *_paths(incomplete)], incomplete)


def recipes_and_folders(incomplete: str) -> list[str]:
    """Recipes and folders."""
    return _beginning([*complete_recipes(incomplete), *complete_folders(incomplete)], incomplete)


def run_names(context: Context, incomplete: str) -> list[str]:
    """Names of the runs of the recipe on the command line."""
    from llmrec_cli.config.loader import read_recipe
    from llmrec_cli.runs.run import experiment_of

    try:
        recipe = read_recipe(str(context.params.get("recipe") or "quickstart"))
        known = experiment_of(recipe).names
    except LlmrecError:
        return []
    return _beginning(known, incomplete)


def complete_methods(incomplete: str) -> list[str]:
    """Alignment methods."""
    from llmrec_cli.methods import list_methods

    return _beginning(list_methods(), incomplete)


def complete_models(incomplete: str) -> list[str]:
    """Conventional models."""
    from llmrec_cli.config.training import BASELINES

    return _beginning(BASELINES, incomplete)


def categories(incomplete: str) -> list[str]:
    """Official data sets."""
    from llmrec_cli.sources.download import load_generations

    found = load_generations().values()
    return _beginning(
        [f"{g.name}/{category}" for g in found for category in g.categories], incomplete
    )


def _paths(incomplete: str, suffix: str | None = None) -> list[str]:
    """Visible folders (with a slash), and visible files with the suffix."""
    parent = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        inside = [path for path in parent.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
    files = [path.as_posix() for path in inside if suffix and path.suffix == suffix]
    return [*files, *(f"{path.as_posix()}/" for path in inside if path.is_dir())]


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


# Arguments and options that several commands share.


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A TOML file, or a shipped recipe such as quickstart.",
        autocompletion=complete_recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Keys to override, such as train.learning_rate=1e-4."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--accelerate-config",
        metavar="FILE",
        help="A config file of Accelerate, for FSDP or several machines.",
    ),
]
Split = Annotated[Literal["test", "valid"], typer.Option(help="Split whose rows are ranked.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only the result, no progress.")]
