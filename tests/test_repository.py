"""The repository's own files agree with the package: versions, bounds, targets, hooks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmrec_cli import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
FORMS = ("bug", "method", "question")


def read_yaml(path: str | Path) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / path).read_text())
    assert isinstance(loaded, dict)
    return loaded


def list_steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read_yaml(workflow)["jobs"].values() for step in job["steps"]]


def list_targets(text: str) -> set[str]:
    """What ``make`` is asked for in a script or text."""
    commands = re.findall(r"\bmake ([a-z-]+(?: [a-z-]+)*)", text)
    return {target for command in commands for target in command.split()}


def test_the_citation_names_this_version() -> None:
    citation = read_yaml("CITATION.cff")
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds() -> None:
    jobs = read_yaml(".github/workflows/tests.yml")["jobs"]
    rows = jobs["versions"]["strategy"]["matrix"]["include"]
    [oldest] = [row["pins"] for row in rows if row["which"] == "oldest"]
    pins = dict(pin.split("==") for pin in oldest.split())
    assert set(pins) == {"torch", "transformers"}
    for name, version in pins.items():
        bound = version.removesuffix(".0")
        assert f"{name}>={bound}" in PROJECT["dependencies"]


def test_the_oldest_python_that_is_tested_is_the_lower_bound() -> None:
    jobs = read_yaml(".github/workflows/tests.yml")["jobs"]
    tested = jobs["tests"]["strategy"]["matrix"]["python"]
    assert tested == sorted(tested)
    assert f">={tested[0]}" == PROJECT["requires-python"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_runs_what_was_reviewed(workflow: Path) -> None:
    assert read_yaml(workflow)["permissions"] == {"contents": "read"}
    uses = [step["uses"] for step in list_steps(workflow) if "uses" in step]
    assert [action for action in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


@pytest.mark.parametrize("script", [*WORKFLOWS, ROOT / ".ci/run"], ids=lambda path: path.stem)
def test_every_target_that_is_called_exists(script: Path) -> None:
    called = list_targets(script.read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert "test" in called
    assert called <= targets


def test_the_hooks_of_pre_commit_are_the_tools_of_the_environment() -> None:
    [repo] = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    tools = {hook["entry"].split()[0] for hook in repo["hooks"] if hook["language"] == "system"}
    assert tools == {".venv/bin/ruff", ".venv/bin/mypy"}


@pytest.mark.parametrize("form", FORMS)
def test_an_issue_form_asks_for_something(form: str) -> None:
    asked = read_yaml(f".github/ISSUE_TEMPLATE/{form}.yml")["body"]
    assert any(field.get("validations", {}).get("required") for field in asked)


def test_the_image_is_built_from_what_it_is_given() -> None:
    """Every file that the wheel needs is let through by .dockerignore."""
    rules = (ROOT / ".dockerignore").read_text().split()
    let_through = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"]}
    needed |= {"pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]}
    assert let_through == needed
    assert all((ROOT / name).exists() for name in needed)
