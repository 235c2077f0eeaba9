"""The commands of the pipeline: prepare, tokenize, validate, baseline, sft, align, eval, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmrec_cli.cli import options
from llmrec_cli.cli.exit_codes import name_recipe
from llmrec_cli.cli.options import AsJson, Config, Overrides, Quiet, RecipeArgument, Resume, Split
from llmrec_cli.cli.output import Screen
from llmrec_cli.cli.reporting import show_comparison
from llmrec_cli.methods import list_methods
from llmrec_cli.models.baselines import baseline_names
from llmrec_cli.training.launch import is_restarted, launch_processes
from llmrec_cli.utils.imports import import_quickly


def prepare_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Clean and split raw data, and write the prepared folder.

    Example: llmrec prepare recipes/amazon2018/gift-cards.toml data.k_core=5
    """
    from llmrec_cli.config.loader import read_recipe
    from llmrec_cli.data.audit import judge_all, with_audit
    from llmrec_cli.pipeline.audit_text import short_lines
    from llmrec_cli.pipeline.prepare import prepare_data

    screen = Screen(as_json=as_json, quiet=quiet)
    prepared = prepare_data(
        read_recipe(recipe, overrides or (), say=screen.note), Path, screen.progress().say
    )
    told = short_lines(judge_all(with_audit(prepared)))
    told += [name_recipe("what this means: llmrec audit RECIPE")] if told else []
    screen.show(
        {"folder": str(prepared.folder), "reused": prepared.reused, **prepared.manifest},
        [f"{prepared.folder}: {'reused' if prepared.reused else 'written'}", *told],
    )


def tokenize_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Give IDs to the new items of a catalogue that has grown. Keep all others.",
        ),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make semantic IDs for the prepared items, and show how good they are.

    Example: llmrec tokenize amazon2018/gift-cards-semantic-ids tokens.codes=32
    """
    from llmrec_cli.config.loader import read_recipe

    screen = Screen(as_json=as_json, quiet=quiet)
    loaded = read_recipe(recipe, overrides or (), say=screen.note)

    with import_quickly():
        from llmrec_cli.pipeline.tokenize import describe_tokens, tokenize  # imports torch

    made = tokenize(loaded, append=append, progress=screen.progress())
    state = "reused" if made.reused else "written"
    screen.show(
        {"folder": str(made.folder), "reused": made.reused, **made.report},
        [f"{made.folder}: {state}", *([] if quiet else describe_tokens(made))],
    )


def validate_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[
        bool,
        typer.Option(
            "--rows", help="Also show a training row with its tokens, and estimate memory."
        ),
    ] = False,
    time: Annotated[
        bool,
        typer.Option(
            "--time", help="As --rows; also time the backbone, and say how long stages take."
        ),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a recipe and its sources, and show what would run. Nothing is trained.

    Example: llmrec validate quickstart --rows
    """
    from llmrec_cli.config.loader import read_recipe
    from llmrec_cli.pipeline.validate import validate

    notes: list[str] = []
    loaded = read_recipe(recipe, overrides or (), say=notes.append)
    with import_quickly():  # what is imported on the way takes most of the time
        lines = [*validate(loaded, rows=rows or time, time=time), *notes]
    screen = Screen(as_json=as_json, quiet=quiet)
    screen.show({"valid": True, "lines": lines}, ["valid", *notes] if quiet else lines)


def sft_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the backbone to predict the next item (SFT).

    Example: llmrec sft recipes/quickstart.toml train.epochs=5
    """
    from llmrec_cli.config.loader import read_recipe

    screen = Screen(as_json=as_json, quiet=quiet)
    loaded = read_recipe(recipe, overrides or (), say=screen.note)

    with import_quickly():
        from llmrec_cli.pipeline.train import sft  # imports torch, so after the recipe

    if not launch_processes(loaded.launch, config):
        _done(screen, sft(loaded, resume=resume or is_restarted(), progress=screen.progress()))


def align_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help=f"Method: {', '.join(list_methods())}, or an [align.NAME] of the recipe.",
            autocompletion=options.complete_methods,
        ),
    ] = "msl",
    resume: Resume = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Align the model with a method. It starts from the SFT model or from the backbone.

    Example: llmrec align --method msl recipes/quickstart.toml align.msl.tau=2
    """
    from llmrec_cli.config.loader import read_recipe

    screen = Screen(as_json=as_json, quiet=quiet)
    loaded = read_recipe(recipe, overrides or (), aligns=[method], say=screen.note)

    with import_quickly():
        from llmrec_cli.pipeline.train import align  # imports torch, so after the recipe

    if not launch_processes(loaded.launch, config):
        go_on = resume or is_restarted()
        _done(screen, align(loaded, method, resume=go_on, progress=screen.progress()))


def baseline_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help=f"Model: {', '.join(sorted(baseline_names()))}, or a [baseline.NAME].",
            autocompletion=options.complete_models,
        ),
    ] = "sasrec",
    resume: Resume = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a conventional model on the language models' rows.

    Example: llmrec baseline --model sasrec recipes/quickstart.toml baseline.sasrec.hidden=64
    """
    from llmrec_cli.config.loader import read_recipe

    screen = Screen(as_json=as_json, quiet=quiet)
    loaded = read_recipe(recipe, overrides or (), baselines=[model], say=screen.note)

    with import_quickly():
        from llmrec_cli.pipeline.baseline import baseline  # imports torch, so after the recipe

    if not launch_processes(loaded.launch, config):
        go_on = resume or is_restarted()
        _done(screen, baseline(loaded, model, resume=go_on, progress=screen.progress()))


def eval_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            help="Run to evaluate: sft, align-NAME, baseline-NAME, or base (the untouched "
            "pretrained backbone). Default: all runs of the recipe that are finished.",
            autocompletion=options.run_names,
        ),
    ] = None,
    split: Split = "test",
    again: Annotated[
        bool, typer.Option("--again", help="Evaluate again, and replace the report.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Rank the whole catalogue for every test row. Show the leaderboard.

    Example: llmrec eval recipes/quickstart.toml --run sft --run align-msl
    """
    from llmrec_cli.config.loader import read_recipe
    from llmrec_cli.runs.run import find_recipe_tables

    screen = Screen(as_json=as_json, quiet=quiet)
    loaded = read_recipe(recipe, overrides or (), *find_recipe_tables(run or ()), say=screen.note)

    with import_quickly():
        from llmrec_cli.pipeline.evaluate import evaluate_runs  # imports torch, so after the recipe

    if not launch_processes(loaded.launch, config):
        progress = screen.progress()
        keep = run is None and not again
        found = evaluate_runs(loaded, run, split=split, again=again, keep=keep, progress=progress)
        show_comparison(screen, found, full=False)


def run_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    config: Config = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run all stages of a recipe. They are prepare, each baseline, sft, each alignment, eval.

    With [tokens], tokenize comes behind prepare.

    Example: llmrec run quickstart
    """
    from llmrec_cli.config.loader import read_recipe

    screen = Screen(as_json=as_json, quiet=quiet)
    loaded = read_recipe(recipe, overrides or (), say=screen.note)

    with import_quickly():
        from llmrec_cli.pipeline.run import run  # imports torch, so after the recipe
    from llmrec_cli.report.outputs import find_reports, write_reports

    if not launch_processes(loaded.launch, config):
        progress = screen.progress()
        compared = run(loaded, progress=progress)
        write_reports(loaded, compared, progress)
        show_comparison(screen, compared, full=False)
        for file in find_reports(loaded):
            progress.say(f"report: {file}")


def _done(screen: Screen, folder: Path) -> None:
    screen.show({"folder": str(folder), "status": "done"}, [f"{folder}: done"])
