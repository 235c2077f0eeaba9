"""The commands that compare and search: audit, compare, export-data, export-lists, sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmrec_cli.cli import options
from llmrec_cli.cli.exit_codes import name_recipe
from llmrec_cli.cli.options import AsJson, Overrides, Quiet, RecipeArgument, Split
from llmrec_cli.cli.output import Screen
from llmrec_cli.errors import RecipeError

if TYPE_CHECKING:
    from llmrec_cli.pipeline.compare import Compared


# Audit of prepared data.


def audit_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|FOLDER",
            help="A prepared recipe, or a folder of prepared data, a run or an experiment.",
            autocompletion=options.recipes_and_folders,
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check prepared data for leaks, duplicates and ties. Explain each finding.

    Example: llmrec audit quickstart
    """
    from llmrec_cli.pipeline.audit import audit, to_json
    from llmrec_cli.pipeline.audit_text import verdict_lines, verdict_table

    screen = Screen(as_json=as_json, quiet=quiet)
    found = audit(source, overrides or (), screen.progress())
    lines = [line for one in found for line in (str(one.folder), *verdict_lines(one.verdicts))]
    tables = [verdict_table(one.verdicts, str(one.folder)) for one in found]
    screen.show({"audits": list(map(to_json, found))}, lines, tables)


# Comparing evaluated runs, and exchanging rows and lists with other tools.


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Folders of experiments or runs, or recipes (with KEY=VALUE overrides).",
            autocompletion=options.recipes_and_folders,
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Entry that the others are compared with. Default: sft.")
    ] = None,
    split: Annotated[
        Literal["test", "valid"], typer.Option(help="Split whose evaluations are compared.")
    ] = "test",
    seen: Annotated[
        Literal["keep", "remove"] | None,
        typer.Option(
            help="Whether the history stays among the candidates. Default: as in the recipe of "
            "the runs."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of the paired differences. Default: NDCG at the largest cut-off."
        ),
    ] = None,
    external: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Lists of another tool: CSV, parquet or TREC run."),
    ] = None,
    missing: Annotated[
        Literal["refuse", "miss"],
        typer.Option(
            help="Rows without a list in such a file: refuse the file, or count them as misses."
        ),
    ] = "refuse",
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Also write the comparison as .md, .csv, .tex, .json or .html."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare evaluated runs. Show intervals, paired tests, cost, and what is comparable.

    Example: llmrec compare runs/quickstart --baseline sft --out board.md --out report.html
    """
    from llmrec_cli.pipeline.compare import Asked, compare_runs, parse_external_files
    from llmrec_cli.report.outputs import check_outputs, write_output

    check_outputs(out or [])
    asked = Asked(split, baseline, seen, metric, parse_external_files(external or ()), missing)
    screen, compared = Screen(as_json=as_json, quiet=quiet), compare_runs(runs, asked)
    for path in out or ():
        write_output(path, compared)
        screen.progress().say(f"written: {path}")
    show_comparison(screen, compared, full=True)


def export_data_command(
    recipe: RecipeArgument,
    to: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the files.")],
    overrides: Overrides = None,
    format: Annotated[
        Literal["recbole"], typer.Option(help="Format of the files: RecBole's atomic files.")
    ] = "recbole",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the prepared rows of each split for another tool.

    Example: llmrec export-data quickstart --to recbole/quickstart
    """
    from llmrec_cli.config.loader import read_recipe
    from llmrec_cli.evaluation.external_lists import export_data

    files = list(map(str, export_data(read_recipe(recipe, overrides or ()), to)))
    Screen(as_json=as_json, quiet=quiet).show({"format": format, "files": files}, files)


def export_lists_command(
    run: Annotated[
        Path,
        typer.Option(
            metavar="RUN",
            help="Folder of an evaluated run, such as runs/quickstart/sft.",
            autocompletion=options.complete_folders,
        ),
    ],
    to: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write. An existing file is replaced.")
    ],
    format: Annotated[
        Literal["trec", "csv"],
        typer.Option(help="Format of the file: TREC run, or CSV with a line per recommended item."),
    ] = "trec",
    qrels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the targets, for trec_eval.")
    ] = None,
    split: Split = "test",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the lists of an evaluated run for another tool.

    Example: llmrec export-lists --run runs/quickstart/sft --to sft.trec --qrels test.qrels
    """
    from llmrec_cli.evaluation.external_lists import export_lists

    count = export_lists(run, to, split=split, format=format, relevant=qrels)
    found = {"format": format, "file": str(to), "lists": count}
    Screen(as_json=as_json, quiet=quiet).show(found, [f"{to}: {count:,} lists"])


def show_comparison(screen: Screen, compared: Compared, *, full: bool) -> None:
    """Print a comparison; ``full`` as in ``tabulate_comparison``."""
    from llmrec_cli.report.tables import (
        comparison_to_json,
        comparison_to_lines,
        comparison_to_tables,
    )

    found = compared.comparison
    found = replace(found, notes=tuple(map(name_recipe, found.notes)))
    screen.show(
        comparison_to_json(found),
        comparison_to_lines(found, full=full),
        comparison_to_tables(found, full=full),
    )


# Searching for settings.


def sweep_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE", help="A key and its values. All combinations are tried."
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Seeds for each point. The mean over seeds is compared."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of points to try, if [sweep] has ranges.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Run to judge: sft, align-NAME or baseline-NAME."),
    ] = None,
    prune: Annotated[
        bool | None,
        typer.Option("--prune", help="Stop points whose validation is worse than the median."),
    ] = None,
    study: Annotated[str, typer.Option(metavar="NAME", help="Name of the study.")] = "study",
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Optuna storage. Default: an SQLite file in the study's folder."
        ),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            metavar="N", help="Number of points trained at the same time. auto: one per GPU."
        ),
    ] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search for settings on validation. The same command resumes the search.

    Example: llmrec sweep quickstart --grid align.dmpo.beta=0.1,0.5 --seeds 1,2,3
    """
    from llmrec_cli.report.tables import FittedTable, sheet_lines
    from llmrec_cli.sweep.board import board_json, board_sheet
    from llmrec_cli.sweep.plan import make_plan
    from llmrec_cli.sweep.search import BEST, search_settings

    asked = {"seeds": _seeds(seeds), "trials": trials, "stage": stage, "prune": prune}
    at_once: int | Literal["auto"] = (
        "auto" if workers == "auto" else _whole("--workers", workers, least=1)
    )
    plan = make_plan(recipe, overrides or (), asked, grid or (), study)
    screen = Screen(as_json=as_json, quiet=quiet)
    progress = screen.progress()
    board = search_settings(plan, storage=storage, workers=at_once, progress=progress)
    best, sheet = plan.folder / BEST, board_sheet(board)
    screen.show(board_json(board, str(best)), sheet_lines(sheet), [FittedTable(sheet)])
    progress.say(f"the best point: {best}; to evaluate it once: llmrec run {best}")


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    return [_whole("--seeds", part.strip(), least=0) for part in text.split(",")]


def _whole(flag: str, text: str, *, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise RecipeError(f"{flag} {text}: expected a whole number from {least}")
    return int(text)
