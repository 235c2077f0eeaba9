"""The command line: load a recipe, call one function, print.

The only place that prints results; ``exits.py`` catches exceptions and chooses exit codes.  Stories
are imported inside their commands, so that ``llmrec --help`` needs neither torch nor pandas.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

from llmrec_cli import __version__
from llmrec_cli.engine.launch import (
    end_with_launcher,
    is_first_rank,
    is_rank,
    launched,
    restarted,
)
from llmrec_cli.exits import ended, err
from llmrec_cli.recipe_file import load_recipe

if TYPE_CHECKING:
    from llmrec_cli.progress import Progress
    from llmrec_cli.recipe import Recipe
    from llmrec_cli.report.leaderboard import Leaderboard

app = typer.Typer(
    name="llmrec",
    help="Turn a language model into a recommender: prepare, sft, align, eval, from one recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)

RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A TOML file, or a shipped recipe such as quickstart."),
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
        help="Accelerate's config file: FSDP, DeepSpeed, several machines.",
    ),
]
Split = Annotated[Literal["test", "valid"], typer.Option(help="Which rows to rank.")]


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(f"llmrec {__version__}")
        raise typer.Exit


@app.command("prepare")
def prepare_command(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Read raw data, clean it, split it, and write the prepared folder.

    Example: llmrec prepare recipes/amazon2018/gift-cards.toml data.k_core=5
    """
    from llmrec_cli.prepare import prepare

    prepared = prepare(load_recipe(recipe, overrides or ()), Path, progress=_progress().say)
    out.print(f"{prepared.folder}: {'reused' if prepared.reused else 'written'}", markup=False)


@app.command("validate")
def validate_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="also show a training row, its tokens, and memory")
    ] = False,
) -> None:
    """Check a recipe and its sources without training, and show what would run.

    Example: llmrec validate quickstart --rows
    """
    from llmrec_cli.validate import validate

    for line in validate(load_recipe(recipe, overrides or ()), rows=rows):
        out.print(line, markup=False, soft_wrap=True)


@app.command("sft")
def sft_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
    config: Config = None,
) -> None:
    """Fine-tune the backbone on the next item (plain SFT).

    Example: llmrec sft recipes/quickstart.toml train.epochs=5
    """
    from llmrec_cli.sft import sft

    loaded = load_recipe(recipe, overrides or ())
    if not _launched(loaded, config):
        _done(sft(loaded, resume=resume or restarted(), progress=_progress()))


@app.command("align")
def align_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="dmpo, dpo, ilrec, lml, msl, sdpo, or an [align.NAME] of the recipe.",
        ),
    ] = "msl",
    resume: Resume = False,
    config: Config = None,
) -> None:
    """Align the model with a method, from SFT's result or from the base.

    Example: llmrec align --method msl recipes/quickstart.toml align.msl.tau=2
    """
    from llmrec_cli.align import align

    loaded = load_recipe(recipe, overrides or (), aligns=[method])
    if not _launched(loaded, config):
        _done(align(loaded, method, resume=resume or restarted(), progress=_progress()))


@app.command("baseline")
def baseline_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="caser, gru4rec, itemknn, pop, sasrec, or a [baseline.NAME] of the recipe.",
        ),
    ] = "sasrec",
    resume: Resume = False,
    config: Config = None,
) -> None:
    """Fit a conventional model on the same data, rows and rules as the language models.

    Example: llmrec baseline --model sasrec recipes/quickstart.toml baseline.sasrec.hidden=64
    """
    from llmrec_cli.baseline import baseline

    loaded = load_recipe(recipe, overrides or (), baselines=[model])
    if not _launched(loaded, config):
        _done(baseline(loaded, model, resume=resume or restarted(), progress=_progress()))


@app.command("eval")
def eval_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="sft, align-NAME, baseline-NAME; default: all."),
    ] = None,
    split: Split = "test",
    again: Annotated[bool, typer.Option("--again", help="Repeat an evaluation.")] = False,
    config: Config = None,
) -> None:
    """Rank the whole catalogue for every test row, and show the leaderboard.

    Example: llmrec eval recipes/quickstart.toml --run sft --run align-msl
    """
    from llmrec_cli.evaluate import evaluate

    kinds = [name.partition("-") for name in run or ()]
    aligns, baselines = (
        [name for found, _, name in kinds if found == kind] for kind in ("align", "baseline")
    )
    loaded = load_recipe(recipe, overrides or (), aligns, baselines)
    runs = run or loaded.runs()
    if not _launched(loaded, config):
        _show(evaluate(loaded, runs, split=split, again=again, progress=_progress()))


@app.command("run")
def run_command(recipe: RecipeArgument, overrides: Overrides = None, config: Config = None) -> None:
    """Run every stage of a recipe: prepare, each baseline, sft, each alignment, eval.

    Example: llmrec run quickstart
    """
    from llmrec_cli.run import run

    loaded = load_recipe(recipe, overrides or ())
    if not _launched(loaded, config):
        _show(run(loaded, progress=_progress()))


@app.command("sample")
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
) -> None:
    """Write synthetic raw files in a true Amazon format, with structure to learn.

    Example: llmrec sample --out raw/synthetic --users 1000 --items 320 --format 2018
    """
    from llmrec_cli.sample import write_sample

    report = write_sample(out_folder, seed=seed, users=users, items=items, format=generation)
    out.print(f"{report.reviews}\n{report.metadata}\n{report.oracle_file}", markup=False)


def main() -> NoReturn:
    """Run the command line and exit with the documented code (README, "Exit codes")."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:  # libraries' advice to developers, not to users
        warnings.simplefilter("ignore")
    if is_rank():
        end_with_launcher()
    sys.exit(ended(app))


def _progress() -> Progress:
    from llmrec_cli.progress import Lines, Rich, Silent

    if not is_first_rank():
        return Silent()
    return Rich(err) if err.is_terminal else Lines()


def _launched(recipe: Recipe, config: Path | None) -> bool:
    """Whether the command ran on many processes, started from here; else it runs in this one."""
    return launched(recipe.launch, config)


def _done(folder: Path) -> None:
    if is_first_rank():
        out.print(f"{folder}: done", markup=False)


def _show(board: Leaderboard) -> None:
    if not is_first_rank():
        return
    from llmrec_cli.report.leaderboard import to_table, to_text

    if out.is_terminal:
        out.print(to_table(board))
    else:
        out.print(to_text(board), markup=False, soft_wrap=True)
