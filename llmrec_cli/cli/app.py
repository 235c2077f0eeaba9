"""The command line: the table of commands, and the entry point.

Only ``cli/`` prints results.  ``exit_codes.py`` catches exceptions and chooses exit codes.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from llmrec_cli import __version__
from llmrec_cli.cli import inspect, pipeline, reporting, serving
from llmrec_cli.cli.exit_codes import run_to_exit_code
from llmrec_cli.training.launch import end_with_launcher, leave_group
from llmrec_cli.utils.text import let_go, out, show_any_text

app = typer.Typer(
    name="llmrec",
    help="Turn a language model into a recommender, from one recipe file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": pipeline.prepare_command,
    "tokenize": pipeline.tokenize_command,
    "validate": pipeline.validate_command,
    "baseline": pipeline.baseline_command,
    "sft": pipeline.sft_command,
    "align": pipeline.align_command,
    "eval": pipeline.eval_command,
    "run": pipeline.run_command,
    "sweep": reporting.sweep_command,
    "compare": reporting.compare_command,
    "export-data": reporting.export_data_command,
    "export-lists": reporting.export_lists_command,
    "audit": reporting.audit_command,
    "recommend": serving.recommend_command,
    "export": serving.export_command,
    "download": inspect.download_command,
    "sample": inspect.sample_command,
    "recipes ls": inspect.recipes_list_command,
    "recipes show": inspect.recipes_show_command,
    "recipes copy": inspect.recipes_copy_command,
    "runs ls": inspect.runs_list_command,
    "runs show": inspect.runs_show_command,
    "schema": inspect.schema_command,
    "env": inspect.env_command,
}
GROUPS = {
    "recipes": "List, show and copy shipped recipes.",
    "runs": "List runs, and show one run.",
}


def _register() -> None:
    """Add every command to the app. Each group has an app of its own."""
    apps = {"": app}
    for name, text in GROUPS.items():
        apps[name] = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    for words, command in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        apps[group].command(name)(command)
    for name in GROUPS:
        app.add_typer(apps[name], name=name)


_register()


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(f"llmrec {__version__}")
        raise typer.Exit


def read_recipe_words(words: Sequence[str]) -> list[str] | None:
    """The recipe and the overrides of a command line; None: it has none.

    Args:
        words: behind ``llmrec``, as typed; a command that was carried out.
    """
    if not words or words[0] not in COMMANDS:
        return None
    group: Any = typer.main.get_command(app)
    given = group.commands[words[0]].make_context(words[0], list(words[1:]), resilient_parsing=True)
    recipe, overrides = (given.params.get(key) for key in ("recipe", "overrides"))
    return [recipe, *(overrides or ())] if isinstance(recipe, str) else None


def silence_libraries() -> None:
    """Before they are imported: some read these variables then, and some warn."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:  # warnings of libraries are for developers
        warnings.simplefilter("ignore")


def main() -> NoReturn:
    """Run the command line and exit with the documented code (docs/pipeline.md, "Exit codes")."""
    silence_libraries()
    show_any_text()
    code = run_to_exit_code(_command)
    if code == 0:  # otherwise the others may be gone, and NCCL could wait for them
        leave_group()
    let_go()
    sys.exit(code)


def _command() -> None:
    end_with_launcher()
    app()
