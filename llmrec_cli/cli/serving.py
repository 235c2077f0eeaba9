"""The commands that use a trained run: recommend, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmrec_cli.cli import options
from llmrec_cli.cli.options import AsJson, Overrides, Quiet
from llmrec_cli.cli.output import Screen
from llmrec_cli.errors import RecipeError

RunFolder = Annotated[
    Path,
    typer.Option(
        "--run",
        metavar="RUN",
        help="Folder of a finished run, such as runs/quickstart/sft.",
        autocompletion=options.complete_folders,
    ),
]


def recommend_command(
    run: RunFolder,
    overrides: Overrides = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            "--history",
            metavar="ITEM",
            help="An item of the history: its id, or about its title. Oldest first.",
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="A user of the prepared data. The history is all of the user's items.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the list.")] = 10,
    keep: Annotated[
        bool, typer.Option("--keep-history", help="Keep the history among the candidates.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Accept only exact titles.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Device.")] = ("auto"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Recommend the next items for a history or a user.

    Example: llmrec recommend --run runs/quickstart/align-msl --history "restless dragons"
    """
    from llmrec_cli.serving.recommender import (
        Recommender,
        recommendations_to_json,
        recommendations_to_lines,
        recommendations_to_tables,
    )

    if user is not None and history:
        raise RecipeError("--user and --history: expected one of them")
    screen = Screen(as_json=as_json, quiet=quiet)
    screen.progress().say(f"opening {run}")
    opened = Recommender.load(run, overrides=overrides or (), device=device)
    if user is None:
        found = opened.recommend(history or [], k, exclude_history=not keep, fuzzy=not exact)
    else:
        found = opened.recommend_to(user, k, exclude_history=not keep)
    screen.show(
        {"run": str(run), **recommendations_to_json(found)},
        recommendations_to_lines(found),
        recommendations_to_tables(found),
    )


def export_command(
    run: RunFolder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New folder for the export.")],
    overrides: Overrides = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge a LoRA adapter into its base model.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="Licence for the model card, as the hub names it."
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="HUB_ID", help="Name on the hub of a base model that is a local folder."
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="HUB_ID", help="Data set for the model card.")
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            metavar="HUB_ID",
            help="Also upload the export to this repository, with the hub's login. A new "
            "repository is private.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run as a standard Hugging Face folder. It holds the model or adapter, the catalogue
    and a model card.

    Example: llmrec export --run runs/quickstart/align-msl --to exported --license apache-2.0
    """
    from llmrec_cli.serving.card import Wanted
    from llmrec_cli.serving.export import check_push, export, push

    if push_to:
        check_push(push_to)
    screen = Screen(as_json=as_json, quiet=quiet)
    wanted = Wanted(merge, licence, base_model, tuple(dataset or ()))
    made = export(run, to, wanted, overrides=overrides or (), progress=screen.progress())
    url = push(to, push_to, public=public) if push_to else None
    lines = [f"{to}: written", *(f"  {name}  {size:,} bytes" for name, size in made.files.items())]
    found = {
        "folder": str(to),
        "files": made.files,
        "difference": made.difference,
        "pushed": url,
    }
    screen.show(found, lines + ([f"pushed: {url}"] if url else []))
