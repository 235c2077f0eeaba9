"""Comparing what was evaluated, and exchanging rows and lists with other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmrec_cli.commands import completion
from llmrec_cli.commands.options import AsJson, Overrides, Quiet, RecipeArgument, Split
from llmrec_cli.commands.screen import Screen

if TYPE_CHECKING:
    from llmrec_cli.compare import Compared


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Experiments' folders, runs' folders, recipes (with their KEY=VALUE overrides).",
            autocompletion=completion.recipes_and_folders,
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Entry that the others are set against; default: sft.")
    ] = None,
    split: Annotated[
        Literal["test", "valid"], typer.Option(help="Evaluations to compare.")
    ] = "test",
    seen: Annotated[
        Literal["keep", "remove"] | None,
        typer.Option(help="The history among the candidates; default: as it was evaluated."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric of the contrasts; default: NDCG, largest cut-off.")
    ] = None,
    external: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Another tool's lists: CSV, parquet or TREC run."),
    ] = None,
    missing: Annotated[
        Literal["refuse", "miss"], typer.Option(help="Rows that such a file has no list for.")
    ] = "refuse",
    out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also write .md, .csv, .tex, .json or .html."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare evaluated runs: intervals, paired tests, cost, and what does not compare.

    Example: llmrec compare runs/quickstart --baseline sft --out board.md --out report.html
    """
    from llmrec_cli.compare import Asked, compare, parse_external_files
    from llmrec_cli.comparing.outputs import check_outputs, write_output

    check_outputs(out or [])
    asked = Asked(split, baseline, seen, metric, parse_external_files(external or ()), missing)
    screen, compared = Screen(as_json=as_json, quiet=quiet), compare(runs, asked)
    for path in out or ():
        write_output(path, compared)
        screen.progress().say(f"written: {path}")
    show_comparison(screen, compared, full=True)


def export_data_command(
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    overrides: Overrides = None,
    format: Annotated[Literal["recbole"], typer.Option(help="Atomic files.")] = "recbole",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write prepared rows for another tool, split as they are.

    Example: llmrec export-data quickstart --to recbole/quickstart
    """
    from llmrec_cli.exchange import export_data
    from llmrec_cli.recipe.file import load_recipe

    files = list(map(str, export_data(load_recipe(recipe, overrides or ()), to)))
    Screen(as_json=as_json, quiet=quiet).show({"format": format, "files": files}, files)


def export_lists_command(
    run: Annotated[
        Path,
        typer.Option(
            metavar="RUN",
            help="Folder of an evaluated run: runs/quickstart/sft.",
            autocompletion=completion.folders,
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FILE", help="A file of that name is replaced.")],
    format: Annotated[
        Literal["trec", "csv"], typer.Option(help="TREC run, or a line per recommended item.")
    ] = "trec",
    qrels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also the targets, for trec_eval.")
    ] = None,
    split: Split = "test",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write what an evaluated run recommends, for another tool.

    Example: llmrec export-lists --run runs/quickstart/sft --to sft.trec --qrels test.qrels
    """
    from llmrec_cli.exchange import export_lists

    count = export_lists(run, to, split=split, format=format, relevant=qrels)
    found = {"format": format, "file": str(to), "lists": count}
    Screen(as_json=as_json, quiet=quiet).show(found, [f"{to}: {count:,} lists"])


def show_comparison(screen: Screen, compared: Compared, *, full: bool) -> None:
    """Print a comparison; ``full`` as in ``tabulate_comparison``."""
    from llmrec_cli.report.tables.figures import to_json
    from llmrec_cli.report.tables.screen import to_lines, to_tables

    found = compared.comparison
    screen.show(to_json(found), to_lines(found, full=full), to_tables(found, full=full))
