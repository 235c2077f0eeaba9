"""Formats as values: what differs between them is asked of the value, and compared nowhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import llmrec_cli
from llmrec_cli.config import formats
from llmrec_cli.config.data import DataSection
from llmrec_cli.config.formats import FORMATS
from llmrec_cli.data import formats as readers

PACKAGE = Path(llmrec_cli.__file__).parent
HOME = Path(formats.__file__)
AMBIGUOUS = {"interactions"}  # also the name of a figure


def comparisons(code: str) -> Iterator[str]:
    """Comparisons with a format's name, and of a section's format with anything."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(map(_names_a_format, sides))
            equal = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
            if named or (equal and any(map(_is_format, sides))):
                yield ast.unparse(node)
        elif isinstance(node, ast.MatchValue) and _names_a_format(node.value):
            yield ast.unparse(node)


def _names_a_format(node: ast.expr) -> bool:
    """A name, or a collection of them."""
    elements = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    values = {each.value for each in elements if isinstance(each, ast.Constant)}
    return bool(values & (FORMATS.keys() - AMBIGUOUS))


def _is_format(node: ast.expr) -> bool:
    """``section.format`` or ``data["format"]``."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "format"
    return isinstance(node, ast.Attribute) and node.attr == "format"


@pytest.mark.parametrize(
    "code",
    [
        'if section.format == "interactions": pass',
        'x = manifest["data"]["format"] != "rank-pairs"',
        'x = form == "ratings2023"',
        'x = recipe.data.format in ("split2023", "msl-windows")',
        "x = one.format == other.format",
        'match name:\n    case "semantic-ids": pass',
    ],
)
def test_a_comparison_is_found(code: str) -> None:
    assert list(comparisons(code))


def test_what_is_no_comparison_of_formats_is_left_alone() -> None:
    assert not list(comparisons('x = "interactions" in figures and "{}".format(1) == "1"'))


def test_no_format_is_compared_outside_its_home() -> None:
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if path != HOME and (lines := list(comparisons(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_a_reader_and_known_keys(name: str) -> None:
    form = FORMATS[name]
    assert callable(import_module(f"{readers.__name__}.{form.reader}").read)
    tables = {key.partition(".")[0] for key in (*form.needs, *form.uses)}
    assert tables <= DataSection.model_fields.keys()


def test_times_compare_where_there_are_some() -> None:
    assert FORMATS["amazon2018"].compares_times(None)  # its files have times, named or not
    assert FORMATS["interactions"].compares_times("timestamp")
    assert not FORMATS["interactions"].compares_times(False)
    assert not FORMATS["semantic-ids"].compares_times("timestamp")
