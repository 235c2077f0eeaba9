"""Searching for settings."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmrec_cli.commands.options import AsJson, Overrides, Quiet, RecipeArgument
from llmrec_cli.commands.screen import Screen
from llmrec_cli.errors import RecipeError


def sweep_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="Values to try; all combinations."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N", help="Train each point with each; mean counts.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Points to try, where [sweep] has ranges.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="RUN", help="sft, align-NAME or baseline-NAME to judge.")
    ] = None,
    prune: Annotated[
        bool | None, typer.Option("--prune", help="Stop points that fall behind the median.")
    ] = None,
    study: Annotated[str, typer.Option(metavar="NAME", help="Name of the study.")] = "study",
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Optuna storage; default: SQLite in the study's folder."),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="N", help="Points at once; auto: one per GPU.")
    ] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search for settings on validation; resumes when typed again.

    Example: llmrec sweep quickstart --grid align.dmpo.beta=0.1,0.5 --seeds 1,2,3
    """
    from llmrec_cli.report.tables.screen import FittedTable, sheet_lines
    from llmrec_cli.report.trials import board_json, board_sheet
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
