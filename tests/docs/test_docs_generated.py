"""Pages that follow from the code follow from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from generate import BEGIN, END, generated, unknown, with_commands
from generate_commands import Command, Parameter, commands
from generate_recipe import recipe_page

from llmrec_cli.cli.app import COMMANDS
from tests.docs.doc_pages import DOCS, name_of, read

PAGES = generated()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_generated_page_is_up_to_date(path: Path) -> None:
    assert path.is_file(), f"{name_of(path)} is missing: run make docs"
    assert read(path) == PAGES[path], f"{name_of(path)} is not what the code says: run make docs"


def test_no_page_is_left_of_a_command_that_is_gone() -> None:
    assert unknown() == [], "run make docs"


def test_every_command_has_a_page() -> None:
    assert {" ".join(command.words) for command in commands()} == set(COMMANDS)
    pages = {path.stem for path in PAGES if path.parent == DOCS / "commands"}
    assert pages == {words.split()[0] for words in COMMANDS} | {"index"}


def example_app() -> typer.Typer:
    app, inner = typer.Typer(), typer.Typer(help="Boxes.")

    @app.command("pack")
    def pack(
        what: Annotated[str, typer.Argument(metavar="WHAT", help="A thing.")],
        to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where.")],
        extra: Annotated[list[str] | None, typer.Argument(metavar="[X]...", help="More.")] = None,
        size: Annotated[int, typer.Option(min=1, max=9, help="How large.")] = 3,
        colour: Annotated[Literal["red", "blue"], typer.Option(help="Which.")] = "red",
        tag: Annotated[list[str] | None, typer.Option("--tag", "-t", help="Label.")] = None,
        dry: Annotated[bool, typer.Option("--dry", help="Only say so.")] = False,
        secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
    ) -> None:
        """Pack a thing
        tightly.

        It stays whole.

        Example: llmrec pack x --to box
        """

    @inner.command("ls")
    def ls() -> None:
        """List boxes."""

    app.add_typer(inner, name="boxes")
    return app


def test_a_command_is_read_from_its_function() -> None:
    pack, ls = commands(example_app())
    assert pack.usage == "llmrec pack WHAT [X]... --to DIR [OPTIONS]"
    assert (pack.summary, pack.text) == ("Pack a thing tightly.", ("It stays whole.",))
    assert pack.examples == ("llmrec pack x --to box",)
    assert [p for p in pack.parameters if p.is_option] == [
        Parameter(("--to",), "`DIR`", "", "Where.", True, True, False),
        Parameter(("--size",), "integer ≥ 1 ≤ 9", "3", "How large.", True, False, False),
        Parameter(("--colour",), "`red`, `blue`", "red", "Which.", True, False, False),
        Parameter(("--tag", "-t"), "text", "", "Label.", True, False, True),
        Parameter(("--dry",), "", "", "Only say so.", True, False, False),
    ]
    assert ls == Command(("boxes", "ls"), "List boxes.", (), (), ())


def test_only_the_list_of_commands_is_rewritten() -> None:
    config = f"a: 1\nnav:\n  - x:\n      {BEGIN}\n      - old: old.md\n      {END}\n  - y: y.md\n"
    found = with_commands(config)
    assert found.startswith(f"a: 1\nnav:\n  - x:\n      {BEGIN}\n      - prepare: commands/")
    assert found.endswith(f"      {END}\n  - y: y.md\n")
    assert "old.md" not in found
    assert with_commands(found) == found


def test_the_page_of_recipes_has_types_ranges_defaults_and_meanings() -> None:
    page = recipe_page()
    assert (
        "| `batch` | integer ≥ 1; default `128` | global batch, rows per update |"
        in page.partition("## [train]")[2]
    )
    assert '| `tau` | number > 0 or `"ats"`; default `1` | softmax temperature > 0' in page
    assert "| `dropout` | number ≥ 0, &lt; 1; default `0.4` |" in page
    assert "| `max_steps` | integer ≥ 1; default *absent* |" in page
    for table in ("[data.spark]", "[model.lora]", "[align.NAME]", "[align.ilrec]", "[eval.decode]"):
        assert f"\n## {table}\n" in page
    assert "`options` | table of text" in page  # of [data.spark]: the one that is a key
    assert page.count("| `options` |") == 1


@pytest.mark.starts_python("it imports no package but a stand-in")
def test_the_pages_are_made_from_the_checkout_that_they_stand_in(tmp_path: Path) -> None:
    """As in a worktree of git, where another checkout is the one that is installed."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "llmrec_cli").mkdir()
    (tmp_path / "llmrec_cli" / "__init__.py").write_text("raise SystemExit(7)\n")
    script = tmp_path / "docs" / "generate.py"
    script.write_text((DOCS / "generate.py").read_text())
    (tmp_path / "docs" / "generate_commands.py").write_text("import llmrec_cli\n")
    assert subprocess.run([sys.executable, str(script)], cwd=tmp_path.parent).returncode == 7
