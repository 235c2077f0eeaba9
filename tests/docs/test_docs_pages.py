"""What pages promise is there: links, commands, recipes, functions, equations, messages."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.main import get_command

from llmrec_cli import methods
from llmrec_cli.cli.app import app
from llmrec_cli.config.data import DataFormat
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.training import BASELINES
from tests.docs.doc_pages import (
    DOCS,
    PAGES,
    ROOT,
    Block,
    all_blocks,
    anchors,
    blocks,
    links,
    name_of,
    prose,
    read,
)

RESULTS = ROOT / "benchmarks" / "results"
PATH = re.compile(r"(?<![\w.~])/(?:home|root|work|tmp|usr|var|mnt|opt|Users)/\w|\b[A-Z]:\\\w")
ROW = re.compile(r"^\| (.+?) \| `(llmrec_cli/[\w/]+\.py)` \| `([\w.]+)` \|$", re.M)
LOADED = "loaded by"  # a block that another test takes


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = [link for link in links(read(page)) if not leads_somewhere(page, link)]
    assert wrong == []


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a relative link has its file and anchor, inside of what the site can show."""
    if re.match(r"https?://", link):
        return True
    target, _, anchor = link.partition("#")
    path = (page.parent / target).resolve() if target else page
    shown = path.is_relative_to(DOCS) or path.is_relative_to(RESULTS)
    if not path.is_file() or (page.is_relative_to(DOCS) and not shown):
        return False
    return not anchor or anchor in anchors(read(path))


@pytest.mark.parametrize(
    ("link", "good"),
    [
        ("data.md", True),
        ("data.md#splits", True),
        ("methods/msl.md#ats-the-adaptive-temperature", True),
        ("#how-the-catalogue-is-ranked", True),
        ("../benchmarks/results/2026-11-22-quality.md", True),
        ("data.md#no-such-heading", False),
        ("nowhere.md", False),
        ("../README.md", False),  # no page of the site
        ("/data.md", False),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link: str, good: bool) -> None:
    assert leads_somewhere(DOCS / "evaluation.md", link) is good


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_machine(page: Path) -> None:
    assert PATH.findall(read(page)) == []


def typed(block: Block) -> Iterator[list[str]]:
    """Words behind ``llmrec`` in the lines of a block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for name in ("llmrec", "llmrec_cli"):
            if name in words:
                yield words[words.index(name) + 1 :]


def parsed(words: list[str]) -> dict[str, Any]:
    """Values of a command line's arguments and options, as Typer reads them.

    Raises:
        Exception: no such command or option, a wrong value, or a missing one.
    """
    command, rest = get_command(app), list(words)
    while (inner := getattr(command, "commands", None)) and not rest[0].startswith("-"):
        command = inner[rest.pop(0)]
    try:
        return dict(command.make_context("llmrec", rest).params)
    except typer.Exit:  # --help
        return {}


def is_placeholder(recipe: str) -> bool:
    """``RECIPE``, ``R``, or a file of the reader's own."""
    return recipe.isupper() or (recipe.endswith(".toml") and not recipe.startswith("recipes/"))


@pytest.mark.parametrize("block", all_blocks("console", "bash", "sh"), ids=str)
def test_typed_commands_are_understood(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in typed(block):
        values = parsed(words)
        recipe, overrides = values.get("recipe"), values.get("overrides") or ()
        if recipe and not is_placeholder(recipe):
            aligns = [values["method"]] if "method" in values else []
            baselines = [values["model"]] if "model" in values else []
            read_recipe(recipe, overrides, aligns, baselines)


@pytest.mark.parametrize(
    "line",
    [
        "llmrec fly",
        "llmrec sft",
        "llmrec sft quickstart --quick",
        "llmrec eval quickstart --split train",
        "llmrec sft quickstar",
        "llmrec sft quickstart train.epoch=2",
        "llmrec align --method mls quickstart",
        "python -m llmrec_cli run no-such-recipe",
    ],
)
def test_a_mistyped_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(f"```console\n{line}  # as typed\n```\n")
    with pytest.raises(Exception, match=r".") as found:
        test_typed_commands_are_understood(block, monkeypatch)
    assert not isinstance(found.value, AssertionError)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_mentioned_commands_and_options_exist(page: Path) -> None:
    for mention in re.findall(r"`llmrec ([a-z][^`]*)`", prose(read(page))):
        command: Any = get_command(app)
        words = mention.split()
        while hasattr(command, "commands") and words and words[0].isidentifier():
            assert words[0] in command.commands, mention
            command = command.commands[words.pop(0)]
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        assert {w for w in words if w.startswith("--")} <= known | {"--help"}, mention


@pytest.mark.parametrize("block", all_blocks("toml"), ids=str)
def test_recipes_and_parts_of_them_load(block: Block, tmp_path: Path) -> None:
    if block.mark.startswith(LOADED):
        return
    load(block.text, tmp_path)


def load(text: str, folder: Path) -> None:
    """A whole recipe as it is, a part of one on top of the quickstart."""
    base = f'extends = "{ROOT / "recipes" / "quickstart.toml"}"\n'
    whole = re.search(r"(?m)^format =", text) is not None
    recipe = folder / "page.toml"
    recipe.write_text(text if whole else base + text, encoding="utf-8")
    read_recipe(str(recipe))


@pytest.mark.parametrize("text", ["[trian]\n", "[train]\nbatch = 0\n", '[align.mls]\nk = "x"\n'])
def test_a_recipe_that_does_not_load_is_found(text: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="problem"):
        load(text, tmp_path)


@cache
def functions_of(path: str) -> frozenset[str]:
    """Functions and classes of a file, methods as ``Class.method``."""
    found = set()
    for node in ast.parse(read(ROOT / path)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
            found.update(f"{node.name}.{inner.name}" for inner in inside)
    return frozenset(found)


def places() -> list[tuple[str, str, str, str]]:
    """Page, what, file and function of every table that says where something stands."""
    return [(name_of(page), *row) for page in PAGES for row in ROW.findall(read(page))]


@pytest.mark.parametrize(("page", "what", "path", "function"), places())
def test_named_functions_exist_and_carry_their_equation(
    page: str, what: str, path: str, function: str
) -> None:
    assert (ROOT / path).is_file(), f"{page}: {path}"
    assert function in functions_of(path), f"{page}: {path} has no {function}"
    label = re.fullmatch(r"`([^`=]+)`", what)
    if label and page.startswith("docs/methods/"):
        assert label[1] in read(ROOT / path), f"{page}: {label[1]} stands nowhere in {path}"


def test_every_method_says_where_its_equations_stand() -> None:
    found = {(page, path) for page, _, path, _ in places()}
    for name in methods.list_methods():
        assert [p for p, path in found if path.endswith((f"methods/{name}.py", "preference.py"))]
    labels = {what.strip("`") for page, what, *_ in places() if page.startswith("docs/methods/")}
    assert {"LML", "MSL eq. 5", "MSL eq. 8", "ATS", "DPO eq. 7", "S-DPO", "DMPO"} <= labels
    assert {f"ILRec step {n}" for n in range(1, 8)} <= labels


def test_every_number_of_an_equation_in_the_code_stands_on_a_page() -> None:
    numbered = re.compile(r"\b([A-Z][\w-]+ (?:eq\.|step) \d+)")
    code = {
        label
        for path in (ROOT / "llmrec_cli").rglob("*.py")
        for label in numbered.findall(read(path))
    }
    pages = "\n".join(read(page) for page in (DOCS / "methods").glob("*.md"))
    assert {"MSL eq. 5", "DPO eq. 7", "ILRec step 6"} <= code
    assert [label for label in sorted(code) if f"`{label}`" not in pages] == []


@pytest.mark.parametrize("name", [*methods.list_methods(), *BASELINES])
def test_every_method_and_model_has_a_page(name: str) -> None:
    rows = re.findall(r"^\| (`.+) \|.*\]\((\w+\.md)\) \|$", read(DOCS / "methods/index.md"), re.M)
    (page,) = [page for names, page in rows if f"`{name}`" in names]
    text = read(DOCS / "methods" / page)
    assert name in text.lower().replace("-", "")
    for heading in ("In the code", "Options", "Cost", "What we know"):
        assert f"\n## {heading}\n" in text, heading
    assert re.search(r"\n## What (the )?released code does differently\n", text)


def test_every_source_format_is_described() -> None:
    described = re.findall(r"^\| `([\w-]+)` \|", read(DOCS / "data.md"), re.M)
    assert [name for name in get_args(DataFormat) if name not in described] == []


def test_quoted_messages_are_the_packages_own() -> None:
    said = "\n".join(
        node.value
        for path in (ROOT / "llmrec_cli").rglob("*.py")
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    table = read(DOCS / "troubleshooting.md").partition("## Common messages")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    assert len(messages) > 10
    parts = [part.strip() for message in messages for part in message.split("…")]
    assert [part for part in parts if part not in said] == []


def test_exit_codes_are_the_packages_own() -> None:
    from llmrec_cli.errors import MachineError, NumbersError, UserError

    codes = re.findall(r"^\| (\d+(?:, \d+)?) \|", read(DOCS / "troubleshooting.md"), re.M)
    assert codes == ["0", "1", "2", "3", "4", "130, 143"]
    assert (UserError.exit_code, MachineError.exit_code, NumbersError.exit_code) == (2, 3, 4)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_extra_is_named(page: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    named = re.findall(r"`([a-z]+)`", (ROOT / page).read_text())
    assert extras <= set(named)


def keys_of_recipes() -> set[str]:
    """``table.key`` of everything that ``docs/recipe.md`` lists."""
    found, table = set(), ""
    for line in read(DOCS / "recipe.md").splitlines():
        heading, key = re.match(r"## \[([\w.]+)\]", line), re.match(r"\| `(\w+)` \|", line)
        table = heading[1] if heading else table
        if table and key:
            found.add(f"{table}.{key[1]}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_keys_are_keys_of_a_recipe(page: Path) -> None:
    known = keys_of_recipes()
    known |= {key.rpartition(".")[0] for key in known}
    tables = "data|prompt|model|train|eval|launch|track"
    named = re.findall(rf"`((?:{tables})\.[a-z_.]*[a-z])`", read(page))
    keys = [key for key in named if not key.endswith((".parquet", ".safetensors"))]
    assert [key for key in keys if key not in known] == []


def test_a_key_that_is_none_is_found() -> None:
    known = keys_of_recipes()
    assert {"data.split", "train.rows", "eval.decode.search", "data.columns.user"} <= known
    assert not {"data.splitting", "data.schema"} & known
