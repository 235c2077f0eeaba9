"""Audit: what has to be known about prepared data."""

from __future__ import annotations

from typing import Annotated

import typer

from llmrec_cli.commands import completion
from llmrec_cli.commands.options import AsJson, Overrides, Quiet
from llmrec_cli.commands.screen import Screen


def audit_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|FOLDER",
            help="A recipe that was prepared, or a folder: prepared data, a run, an experiment.",
            autocompletion=completion.recipes_and_folders,
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check prepared data for leaks, doubles and ties, and say what each finding means.

    Example: llmrec audit quickstart
    """
    from llmrec_cli.audit import audit, to_json
    from llmrec_cli.report.audit_text import verdict_lines, verdict_table

    screen = Screen(as_json=as_json, quiet=quiet)
    found = audit(source, overrides or (), screen.progress())
    lines = [line for one in found for line in (str(one.folder), *verdict_lines(one.verdicts))]
    tables = [verdict_table(one.verdicts, str(one.folder)) for one in found]
    screen.show({"audits": list(map(to_json, found))}, lines, tables)
