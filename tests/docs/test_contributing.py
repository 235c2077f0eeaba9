"""CONTRIBUTING is true: the tree is the package's, and the traces are what runs."""

from __future__ import annotations

import itertools
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

import llmrec_cli
from benchmarks.small import RECIPE
from tests.docs.doc_pages import ROOT, read
from tests.experiments import typed

PACKAGE = Path(llmrec_cli.__file__).parent
TEXT = read(ROOT / "CONTRIBUTING.md")
ROW = re.compile(r"^\| .+? \| `llmrec_cli/([\w/]+\.py)` \| `([\w.]+)` \|$", re.M)
OTHERS = '[baseline.itemknn]\n[align.msl]\nparent = "sft"\n'  # of the recipe: not traced
ILREC = """
[baseline.sasrec]
hidden = 16
[align.ilrec]
parent = "base"
support = "legal"
n = 1
"""

Place = tuple[str, str]  # a file below the package, and a function of it


def trace_of(heading: str) -> list[Place]:
    """Where every row below a heading says that something stands."""
    section = TEXT.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    return ROW.findall(section)


def test_the_tree_has_every_room_and_no_other() -> None:
    tree = TEXT.partition("```text\nllmrec_cli/\n")[2].partition("```")[0]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    files = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert named == rooms | files


def test_named_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:`|^)make ([\w-]+)", TEXT, re.M))
    assert len(named) > 10
    assert named - targets == set()


def test_every_trace_has_its_rows() -> None:
    """``test_docs_pages`` looks at whether each function exists."""
    assert len(trace_of("Trace 1")) > 30
    assert len(trace_of("Trace 2")) > 25


def missing_from(trace: list[Place], calls: Iterable[Place]) -> list[Place]:
    """The rest of a trace from the first place on that the calls, in their order, do not reach."""
    left = iter(calls)
    reached = itertools.takewhile(lambda place: place in left, trace)
    return trace[len(list(reached)) :]


def test_a_trace_in_another_order_is_found() -> None:
    a, b, c = ("x.py", "a"), ("x.py", "b"), ("x.py", "c")
    assert missing_from([a, b], [c, a, c, b]) == []
    assert missing_from([a, b], [b, a]) == [b]
    assert missing_from([a, c, b], [a, b]) == [c, b]


@contextmanager
def calls_noted() -> Iterator[list[Place]]:
    """Calls of the package's functions meanwhile, those of threads that begin meanwhile too."""
    calls: list[Place] = []
    known: dict[object, Place | None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code not in known:
            path = Path(code.co_filename)
            inside = path.is_relative_to(PACKAGE)
            known[code] = (
                (path.relative_to(PACKAGE).as_posix(), code.co_qualname) if inside else None
            )
        if (place := known[code]) is not None:
            calls.append(place)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.mark.slow
def test_the_traces_are_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE.replace(OTHERS, "") + ILREC)
    monkeypatch.chdir(tmp_path)
    with calls_noted() as calls:
        ended = typed(capsys, "run", "tiny.toml", "--quiet")
    assert ended.code == 0, ended.err
    assert missing_from(trace_of("Trace 1"), calls) == []

    trace = trace_of("Trace 2")
    begin, end = trace[0], trace[-1]
    until_loss = calls[: calls.index(("methods/ilrec.py", "loss"))]
    begun = len(until_loss) - 1 - until_loss[::-1].index(begin)
    update = calls[begun : calls.index(end, begun) + 1]
    assert update.count(begin) == 1
    assert missing_from(trace, update) == []
