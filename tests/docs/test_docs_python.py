"""The page of the Python face has every name of the package, and its example runs."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from generate_python import describe, format_signature, parse_docstring, parse_entries, spell_type

import llmrec_cli
from llmrec_cli import errors
from tests.docs.doc_pages import DOCS, blocks, read

PAGE = read(DOCS / "python.md")
EXAMPLE = next(block.text for block in blocks(PAGE) if block.language == "python")
Colour = Literal["red", "blue"]


def test_the_page_has_every_public_name() -> None:
    headings = re.findall(r"^## (\w+)$", PAGE, re.M)
    assert sorted(headings) == sorted({*llmrec_cli.__all__, "Example", "Errors"} - {"__version__"})


def test_every_exception_is_in_the_tree_and_every_field_has_a_meaning() -> None:
    tree = PAGE.partition("\n## Errors\n")[2]
    known = {name for name, found in vars(errors).items() if inspect.isclass(found)}
    named = {name for name in re.findall(r"\b\w+Error\b", tree)}
    assert {name for name in known if name.endswith("Error")} == named - {
        "MemoryError",
        "TypeError",
    }
    assert set(re.findall(r"^\| `(\w+Error)` \|", PAGE, re.M)) <= known
    assert [line for line in PAGE.splitlines() if re.search(r"\|\s*\|$", line)] == [
        "| field | type | |"
    ] * PAGE.count("| field | type | |")


@dataclass
class Box:
    """A box
    of things."""

    size: int  # in all | what counts
    colour: Colour | None = None  # of the lid

    def pack(self, what: str, *, tight: bool = False) -> Box:
        """Put ``what`` in.

        Args:
            what: a thing, and
                then more.
            tight: or not.

        Returns:
            The box.

        Raises:
            DataError: it is full.
        """
        raise NotImplementedError

    @property
    def weight(self) -> float:
        """In kg."""
        raise NotImplementedError


def test_a_class_is_read_from_its_source_and_docstrings() -> None:
    lines = list(describe("Box", Box))
    assert lines[0] == "A box\nof things."
    assert "| `size` | `int` | in all \\| what counts |" in lines
    assert '| `colour` | `Literal["red", "blue"] \\| None` | of the lid |' in lines
    assert "Box.pack(what: str, *, tight: bool = False) -> Box" in lines
    assert "| `what` | a thing, and then more. |" in lines
    assert ["Returns: The box.", "| `DataError` | it is full. |"] == [
        line for line in lines if line.startswith(("Returns", "| `DataError"))
    ]
    assert "Box.weight -> float" in lines
    assert parse_docstring(Box.pack)[0] == "Put `what` in."
    assert parse_entries("a: b\nc: d\n    e: f\ng: h") == {"a": "b", "c": "d e: f", "g": "h"}
    assert spell_type("dict[str, Colour]", __name__) == 'dict[str, Literal["red", "blue"]]'
    long = format_signature("a_box.that_has_a_long_name.pack_carefully_and_slowly", Box.pack)
    assert long.splitlines()[1:] == [
        "    what: str,",
        "    *,",
        "    tight: bool = False,",
        ") -> Box",
    ]


def test_the_example_is_short() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 20


@pytest.mark.slow
def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "python.md", "exec"), {})  # noqa: S102 - it is the page's own
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith("311 items, 969 test rows\nchecking the sources\n")
    assert "sft: 10/10 updates" in out
    assert re.search(r"^runs/tiny/align-msl 0\.\d+$", out, re.M)
    assert re.search(r"^\d +baseline-itemknn +0\.\d+ +0\.\d+ +0\.\d+$", out, re.M)
    assert re.findall(r"^(\d) .+ 0\.\d+$", out, re.M)[-5:] == ["1", "2", "3", "4", "5"]
