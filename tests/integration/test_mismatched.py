"""Finished experiments that somebody changed: one line, exit code 2, and nothing written.

Hashes beside a changed file are made to fit, as of a folder that was put together by hand or comes
from another version; without that, the hashes tell (``data/test_store.py``, ``test_torture.py``).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec_cli.utils.files import HASHES_FILE, hash_file
from tests.experiments import copied, make_experiment, typed

pytestmark = pytest.mark.slow  # an experiment of its own, and many commands

Change = Callable[[Path], None]  # of the experiment's folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    make_experiment(home, "own", "track.trackers=[]")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made, tmp_path, monkeypatch)


def fit(file: Path) -> None:
    """Make the hashes that tell of a changed file fit again."""
    if (file.parent / HASHES_FILE).is_file():
        recorded = json.loads((file.parent / HASHES_FILE).read_text())
        rewrite(file.parent / HASHES_FILE, recorded | {file.name: hash_file(file)})
    if file.parent.name == "prepared":
        manifest = json.loads((file.parent / "manifest.json").read_text())
        if file.name in manifest["files"]:
            manifest["files"][file.name]["sha256"] = hash_file(file)
            (file.parent / "manifest.json").write_text(json.dumps(manifest))
        for run in file.parent.parent.glob("*/manifest.json"):
            told = json.loads(run.read_text())
            if "prepared" in told.get("facts", {}):
                told["facts"]["prepared"] = hash_file(file.parent / "manifest.json")
                run.write_text(json.dumps(told))


def rewrite(file: Path, value: object) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n")


def table(name: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Change:
    """Edit a parquet file; its columns keep their kinds where that is possible."""

    def change(folder: Path) -> None:
        path = folder / name
        schema = pq.read_schema(path)
        edited = edit(pd.read_parquet(path))
        try:
            # Without statistics: what they say is no proof of what is in a file.
            whole = pa.Table.from_pandas(edited, schema, preserve_index=False)
            pq.write_table(whole, path, write_statistics=False)
        except (pa.ArrowException, KeyError, TypeError):
            edited.to_parquet(path)
        fit(path)

    return change


def values(name: str, row: int, column: str, value: Any) -> Change:
    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        cells = list(frame[column])
        cells[row] = value
        return frame.assign(**{column: pd.Series(cells, index=frame.index)})

    return table(name, edit)


def entry(name: str, value: object, *keys: str) -> Change:
    """Set a key of a JSON file."""

    def change(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        inner = told
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        rewrite(folder / name, told)
        fit(folder / name)

    return change


def without(name: str, key: str) -> Change:
    def change(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        del told[key]
        rewrite(folder / name, told)
        fit(folder / name)

    return change


def text(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)
        fit(folder / name)

    return change


def unfinished(change: Change) -> Change:
    """... of a run that is gone on with."""

    def changed(folder: Path) -> None:
        path = folder / "align-msl/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
        shutil.rmtree(folder / "align-msl/model")
        change(folder)

    return changed


def files(home: Path) -> dict[Path, bytes]:
    """Every file that a command may have written, but for locks."""
    found = (path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.read_bytes() for path in found}


EVAL = ("eval", "tiny.toml", "name=own", "--run", "align-msl", "--again", "--quiet")
AUDIT = ("audit", "runs/own", "--quiet")
RECOMMEND = ("recommend", "--run", "runs/own/sft", "--history", "0102390101", "--quiet")
COMPARE = ("compare", "runs/own", "--quiet")
RESUME = ("align", "--method", "msl", "tiny.toml", "name=own", "--resume", "--quiet")
EXPORT = ("export", "--run", "runs/own/align-msl", "--to", "exported", "--quiet")
SHOW = ("runs", "show", "runs/own/align-msl")
READERS = (EVAL, AUDIT, RECOMMEND)  # of the prepared folder
ITEMS, TEST, TRAIN = "prepared/items.parquet", "prepared/test.parquet", "prepared/train.parquet"
STATE, MANIFEST = "align-msl/checkpoints/step-2/state.json", "align-msl/manifest.json"
OF_RUNS = (EVAL, RESUME, COMPARE, EXPORT, SHOW)
LISTS = "align-msl/predictions.parquet"
CASES: dict[str, tuple[Change, str, tuple[tuple[str, ...], ...]]] = {
    "an item twice": (
        table(ITEMS, lambda f: pd.concat([f, f.iloc[:1]])),
        "its column item is not 0, 1, ... in order",
        READERS,
    ),
    "an id twice": (values(ITEMS, 3, "item_id", "0102390101"), "has an id twice, or none", READERS),
    "an id gone": (values(ITEMS, 3, "item_id", None), "has an id twice, or none", READERS),
    "no items": (table(ITEMS, lambda f: f.iloc[:0]), "items.parquet: no items", READERS),
    "items out of order": (table(ITEMS, lambda f: f.iloc[::-1]), "0, 1, ... in order", READERS),
    "no title": (
        values(ITEMS, 3, "title", None),
        "item 3 has neither a title nor tokens",
        READERS,
    ),
    "tokens of some": (
        values(ITEMS, 3, "tokens", ["<a_1>"]),
        "item 0 has no tokens, and others have",
        READERS,
    ),
    "no title column": (
        table(ITEMS, lambda f: f.drop(columns="title")),
        "its columns are item, item_id, brand, tokens, count, expected item, item_id, title",
        READERS,
    ),
    "counts of text": (
        table(ITEMS, lambda f: f.assign(count="many")),
        "its column ",
        READERS,
    ),
    "target of no item": (
        values(TEST, 0, "target", 9999),
        "its column target has 9999, expected 0..310",
        READERS,
    ),
    "target below 0": (values(TEST, 0, "target", -1), "target has -1, expected 0..310", READERS),
    "no target": (values(TEST, 0, "target", None), "its column ", READERS),
    "history of no item": (
        values(TRAIN, 0, "history", [9999]),
        "its column history has 9999, expected 0..310",
        READERS,
    ),
    "no history column": (
        table(TEST, lambda f: f.drop(columns="history")),
        "its columns are row, user, user_id, target",
        READERS,
    ),
    "targets of text": (table(TEST, lambda f: f.assign(target="x")), "its column ", READERS),
    "rows numbered twice": (
        table(TEST, lambda f: pd.concat([f, f.assign(row=f["row"] + 9999)])),
        "its column row is not 0, 1, ... in order",
        READERS,
    ),
    "no test rows": (table(TEST, lambda f: f.iloc[:0]), "no rows", (EVAL, AUDIT)),
    "lists of another length": (
        table(LISTS, lambda f: f.assign(ranked=pd.Series([[1] * 10] * len(f)))),
        "10 items and 11 scores",
        (COMPARE,),
    ),
    "lists of unknown items": (
        table(LISTS, lambda f: f.assign(ranked=f["ranked"].map(lambda r: [9999] * len(r)))),
        "9999",
        (COMPARE,),
    ),
    "scores of NaN": (
        table(LISTS, lambda f: f.assign(scores=f["ranked"].map(lambda r: [math.nan] * len(r)))),
        " null in its lists, expected none",
        (COMPARE,),
    ),
    "rows twice": (
        table(LISTS, lambda f: pd.concat([f, f.iloc[:1]])),
        "occurs 2 times",
        (COMPARE,),
    ),
    "rows gone": (
        table(LISTS, lambda f: f.iloc[1:]),
        "its report has 60 rows, its predictions 59",
        (COMPARE,),
    ),
    "state of a newer version": (unfinished(entry(STATE, 3, "layout")), "layout", (RESUME,)),
    "state without a step": (unfinished(without(STATE, "step")), "step", (RESUME,)),
    "state of another step": (unfinished(entry(STATE, 7, "step")), "step", (RESUME,)),
    "state with a text for a step": (
        unfinished(entry(STATE, "two", "step")),
        "Expected `int`",
        (RESUME,),
    ),
    "state that is a list": (unfinished(text(STATE, "[]\n")), "Expected `object`", (RESUME,)),
    "manifest that is a list": (text(MANIFEST, "[]"), "not the manifest of a run", OF_RUNS),
    "manifest that is empty": (text(MANIFEST, ""), "not valid JSON", OF_RUNS),
    "manifest without settings": (
        without(MANIFEST, "settings"),
        "align-msl/manifest.json: ",
        (RESUME, EXPORT),
    ),
    "manifest without facts": (
        without(MANIFEST, "facts"),
        "align-msl/manifest.json: ",
        (EVAL, RESUME, EXPORT),
    ),
    "settings that are text": (entry(MANIFEST, "x", "settings"), "not the manifest", OF_RUNS),
    "recipe that is none": (text("align-msl/recipe.toml", "= 3"), "recipe.toml", (COMPARE, EXPORT)),
    "report of a newer version": (
        entry("align-msl/report.json", {"new": 1}, "protocol"),
        "not a report of llmrec eval: no protocol.split",
        (COMPARE,),
    ),
    "config of another width": (
        entry("align-msl/model/config.json", 32, "hidden_size"),
        "lm_head.weight has shape (400, 16), by config.json it should have (400, 32)",
        (EVAL,),
    ),
    "config that is none": (text("align-msl/model/config.json", "{}"), "align-msl/model", (EVAL,)),
    "base that is none": (text("base/config.json", "{}"), "base", (EVAL,)),
    "rows of another split": (
        table(LISTS, lambda f: f.assign(row=f["row"] + 9999)),
        "of its lists is not that of",
        (COMPARE,),
    ),
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(name, words, id=f"{name}-{words[0]}")
        for name in CASES
        for words in CASES[name][2]
    ],
)
def test_what_was_changed_is_one_line(
    name: str, words: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, told, _ = CASES[name]
    change(home / "runs/own")
    before = files(home)
    ended = typed(capsys, *words)
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert len(ended.err.splitlines()) == 1
    assert f"llmrec {words[0]}: error: " in ended.err
    assert told in ended.err
    assert files(home) == before


def test_an_experiment_that_nobody_changed_is_read(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control."""
    for words in (*READERS, COMPARE):
        assert typed(capsys, *words).code == 0
