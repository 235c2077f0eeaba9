"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmrec_cli.commands import completion

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A TOML file, or a shipped recipe such as quickstart.",
        autocompletion=completion.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. train.learning_rate=1e-4"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--accelerate-config",
        metavar="FILE",
        help="Accelerate's config file: FSDP, several machines.",
    ),
]
Split = Annotated[Literal["test", "valid"], typer.Option(help="Which rows to rank.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only the result.")]
