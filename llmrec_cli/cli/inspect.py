"""The commands around a recipe: recipes, runs, schema, env, sample, download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from llmrec_cli.cli import options
from llmrec_cli.cli.options import (
    AsJson,
    Quiet,
    complete_folders,
    complete_recipes,
    complete_shipped,
)
from llmrec_cli.cli.output import Screen
from llmrec_cli.utils.text import clean_line

# Shipped recipes, their schema, this machine, and the runs under ``runs/``.


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name or path of a recipe, such as quickstart.",
        autocompletion=complete_recipes,
    ),
]


def recipes_list_command(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the shipped recipes.

    Example: llmrec recipes ls
    """
    from llmrec_cli.cli.shipped import list_shipped

    found = list_shipped()
    rows = [(one.name, one.description, one.backbone) for one in found]
    table = _table(("recipe", "what it shows", "backbone"), rows)
    screen = Screen(as_json=as_json, quiet=quiet)
    screen.show({"recipes": [asdict(one) for one in found]}, _lines(rows), [table])


def recipes_show_command(
    recipe: RecipeName,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Include inherited keys and all defaults.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print a recipe.

    Example: llmrec recipes show amazon2018/gift-cards --resolved
    """
    from llmrec_cli.cli.shipped import show_recipe

    text = show_recipe(recipe, resolved=resolved)
    screen = Screen(as_json=as_json, quiet=quiet)
    screen.show({"recipe": recipe, "text": text}, text.rstrip().split("\n"))


def recipes_copy_command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="Name of a shipped recipe.", autocompletion=complete_shipped
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE",
            help="File to write. Default: the recipe's name, in the working directory.",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Copy a shipped recipe and the files that it needs. Nothing is overwritten.

    Example: llmrec recipes copy quickstart --to mine.toml
    """
    from llmrec_cli.cli.shipped import copy_recipe

    files = list(map(str, copy_recipe(recipe, to)))
    screen = Screen(as_json=as_json, quiet=quiet)
    screen.show({"files": files}, [*files, f"run it: llmrec run {files[0]}"])


def schema_command(
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write the schema to this file.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print the JSON schema of recipes, for editors. It includes the options of every method.

    Editors that support TOML schemas (taplo, Even Better TOML) read the first line of a recipe:
    #:schema ./recipe.schema.json

    Example: llmrec schema --to recipe.schema.json
    """
    from llmrec_cli.config.recipe import recipe_schema
    from llmrec_cli.utils.files import write_json

    schema = recipe_schema()
    screen = Screen(as_json=as_json, quiet=quiet)
    if to is None:
        return screen.show(schema, json.dumps(schema, indent=2).split("\n"))
    write_json(to, schema)
    screen.show({"file": str(to)}, [f"{to}: written"])


def env_command(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Show versions, processors, memory and devices. Bug reports need them.

    The output holds no names of users, machines or folders.

    Example: llmrec env
    """
    from llmrec_cli.pipeline.environment import collect_environment, format_facts

    found = collect_environment()
    Screen(as_json=as_json, quiet=quiet).show(found, list(format_facts(found)))


def runs_list_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of all experiments, or of one experiment.",
            autocompletion=complete_folders,
        ),
    ] = Path("runs"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List experiments and their runs. Show the state and main metric of each.

    Example: llmrec runs ls
    """
    from llmrec_cli.runs.listing import HEADINGS, find_states, state_to_cells, state_to_json

    found = find_states(folder)
    rows = [state_to_cells(one) for one in found]
    values, table = {"runs": list(map(state_to_json, found))}, _table(HEADINGS, rows)
    Screen(as_json=as_json, quiet=quiet).show(values, _lines([HEADINGS, *rows]), [table])


def runs_show_command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a run.", autocompletion=complete_folders),
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the state, parents, versions, command and evaluations of a run.

    Example: llmrec runs show runs/quickstart/sft
    """
    from llmrec_cli.pipeline.environment import format_facts
    from llmrec_cli.runs.listing import describe_run

    found = describe_run(run)
    Screen(as_json=as_json, quiet=quiet).show(found, list(format_facts(found)))


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, for a pipe."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [zip(map(clean_line, row), widths, strict=True) for row in rows]
    return ["  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in padded]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for a terminal. Long cells wrap. Nothing in it is read as markup."""
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean_line(cell)) for cell in row))
    return table


# Raw files: official ones, and synthetic ones.


class What(StrEnum):
    """Kinds of official files."""

    reviews = "reviews"
    full = "full"
    meta = "meta"
    ratings = "ratings"
    splits = "splits"
    all = "all"


def download_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Data set, such as amazon2018/Gift_Cards. With --list: a generation, or nothing.",
            autocompletion=options.categories,
        ),
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder for the files.")] = Path("raw"),
    what: Annotated[
        list[What] | None,
        typer.Option(
            "--what",
            help="Files to download: reviews (5-core; for 2023 all reviews), full (all "
            "reviews), meta (titles), ratings, splits (official, 2023), or all "
            "(everything except full). Default: reviews and meta.",
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="URL", help="Address of a copy to use instead of the official hosts."
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the data sets.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Download official files. The same command resumes an interrupted download.

    Example: llmrec download amazon2018/Gift_Cards --to raw
    """
    from llmrec_cli.sources import download

    screen = Screen(as_json=as_json, quiet=quiet)
    if show_list or name is None:
        found = download.find_generations(name)
        values = {"generations": [asdict(generation) for generation in found]}
        return screen.show(
            values, [line for one in found for line in download.format_generation(one)]
        )
    kinds = [kind.value for kind in what or (What.reviews, What.meta)]
    done = download.download_category(name, to, kinds, mirror, screen.progress())
    screen.show(download.describe_downloads(done), download.format_downloads(done))


def sample_command(
    out_folder: Annotated[
        Path,
        typer.Option("--out", help="Folder for the files. Files of the same names are replaced."),
    ],
    seed: Annotated[
        int, typer.Option(min=0, help="Seed. The same seed writes the same bytes.")
    ] = 0,
    users: Annotated[int, typer.Option(min=1, help="Number of users.")] = 1000,
    items: Annotated[int, typer.Option(min=40, help="Number of items.")] = 320,
    generation: Annotated[
        Literal["2014", "2018", "2023"],
        typer.Option("--format", help="Generation of the Amazon file format."),
    ] = "2018",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write synthetic raw files in an Amazon format. A model can learn their patterns.

    Example: llmrec sample --out raw/synthetic --users 1000 --items 320 --format 2018
    """
    from llmrec_cli.sources.synthetic import write_sample

    report = write_sample(out_folder, seed=seed, users=users, items=items, format=generation)
    files = [report.reviews, report.metadata, report.oracle_file]
    screen = Screen(as_json=as_json, quiet=quiet)
    screen.show({"files": list(map(str, files)), "counts": report.counts}, list(map(str, files)))
