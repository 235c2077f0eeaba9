"""Raw material: official files, and synthetic ones."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmrec_cli.commands import completion
from llmrec_cli.commands.options import AsJson, Quiet
from llmrec_cli.commands.screen import Screen


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
            help="e.g. amazon2018/Gift_Cards; with --list, a generation or nothing.",
            autocompletion=completion.categories,
        ),
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder of the files.")] = Path("raw"),
    what: Annotated[
        list[What] | None,
        typer.Option(
            "--what",
            help="reviews (5-core; of 2023 all), full (all reviews), meta (titles), ratings, "
            "splits (official, 2023), or all of these but full; default: reviews and meta.",
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="Your own copy instead of the official hosts."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show what there is.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Download official files, and go on where a download was interrupted.

    Example: llmrec download amazon2018/Gift_Cards --to raw
    """
    from llmrec_cli.download import official

    screen = Screen(as_json=as_json, quiet=quiet)
    if show_list or name is None:
        found = official.find_generations(name)
        values = {"generations": [asdict(generation) for generation in found]}
        return screen.show(
            values, [line for one in found for line in official.format_generation(one)]
        )
    kinds = [kind.value for kind in what or (What.reviews, What.meta)]
    done = official.download_category(name, to, kinds, mirror, screen.progress())
    screen.show(official.describe_downloads(done), official.format_downloads(done))


def sample_command(
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder; files of the same names are replaced.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    users: Annotated[int, typer.Option(min=1, help="Number of users.")] = 1000,
    items: Annotated[int, typer.Option(min=40, help="Number of items.")] = 320,
    generation: Annotated[
        Literal["2014", "2018", "2023"], typer.Option("--format", help="Amazon file format.")
    ] = "2018",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write synthetic raw files in a true Amazon format, with structure to learn.

    Example: llmrec sample --out raw/synthetic --users 1000 --items 320 --format 2018
    """
    from llmrec_cli.synthetic.raw_files import write_sample

    report = write_sample(out_folder, seed=seed, users=users, items=items, format=generation)
    files = [report.reviews, report.metadata, report.oracle_file]
    screen = Screen(as_json=as_json, quiet=quiet)
    screen.show({"files": list(map(str, files)), "counts": report.counts}, list(map(str, files)))
