"""`columns.timestamp = false`: file order is time order, from the recipe to the audit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.audit import judge_all, measure_prepared, with_audit
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.pipeline.prepare import prepare_data
from tests.experiments import typed

# Neither ids nor titles are in this order, and users lie across both files.
FIRST = [("u", "d"), ("v", "a"), ("u", "b"), ("u", "e")]
SECOND = [("v", "c"), ("u", "a"), ("v", "e"), ("u", "c"), ("v", "b"), ("v", "d")]
Rows = list[tuple[str, str]]


def csv(path: Path, rows: Rows) -> None:
    path.write_text("".join(f"{user},{item}\n" for user, item in [("user", "item"), *rows]))


def json_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps({"user": u, "item": i}) + "\n" for u, i in rows))


def parquet(path: Path, rows: Rows) -> None:
    table = pa.table({"user": [u for u, _ in rows], "item": [i for _, i in rows]})
    pq.write_table(table, path, row_group_size=2)


def asked(folder: Path, *files: str, **data: object) -> Path:
    section = {"format": "interactions", "reviews": list(files), "untitled": "id", "k_core": 0}
    columns = {"user": "user", "item": "item", "timestamp": False}
    path = folder / "r.toml"
    path.write_text(tomli_w.dumps({"data": {**section, "columns": columns, **data}}))
    return path


def sequences(recipe: Recipe) -> dict[str, str]:
    """Each user's items in order, as the test rows tell."""
    prepared = prepare_data(recipe, Path)
    ids = prepared.items["item_id"]
    test = pl.read_parquet(prepared.folder / "test.parquet")
    rows = test.select("user_id", "history", "target").rows()
    return {
        user: "".join(ids[item] for item in [*history, target]) for user, history, target in rows
    }


@pytest.mark.parametrize("write", [csv, json_lines, parquet])
def test_file_order_is_time_order_over_all_files_as_listed(
    write: Callable[[Path, Rows], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "z", FIRST)
    write(tmp_path / "a", SECOND)
    recipe = read_recipe(str(asked(tmp_path, "z", "a")), ["name=listed"])
    assert sequences(recipe) == {"u": "dbeac", "v": "acebd"}
    other = read_recipe(str(asked(tmp_path, "a", "z")), ["name=turned"])
    assert sequences(other) == {"u": "acdbe", "v": "cebda"}
    (tmp_path / "again.toml").write_text(tomli_w.dumps(recipe.to_table()))
    assert read_recipe("again.toml").data.columns.timestamp is False


def test_repeats_keep_the_first_or_the_last_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    csv(tmp_path / "r", [("u", item) for item in "abcad"])
    for keep, order in (("first", "abcd"), ("last", "bcad"), ("keep", "abcad")):
        path = asked(tmp_path, "r", duplicates=keep)
        assert sequences(read_recipe(str(path), [f"name={keep}"])) == {"u": order}


def test_the_audit_says_that_there_is_an_order_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    csv(tmp_path / "r", [*FIRST, *SECOND])
    prepared = prepare_data(read_recipe(str(asked(tmp_path, "r"))), Path)
    audit = prepared.manifest["audit"]
    assert audit["training rows later than the earliest test row"] is None
    assert prepared.manifest["data"]["columns"]["timestamp"] is False
    assert prepared.manifest["reader"]["reviews"]["r"]["timestamp"] == "order in the file"
    said = {v.check: v.text for v in judge_all(with_audit(prepared), measure_prepared(prepared))}
    assert said["interactions that tie in time"] == "The source has an order and no times."
    assert "whether training looks ahead cannot be told" in said["training later than test"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "data.split=global-time",
            '[data] split = "global-time": a source with columns.timestamp = false has no times '
            'that compare across users; use "leave-one-out" or "few-shot"',
        ),
        (
            "data.start=2020-01-01",
            "[data] start = 2020-01-01: a source with columns.timestamp = false has no times, only "
            "an order; remove start",
        ),
        (
            "data.end=2020-01-01",
            "[data] end = 2020-01-01: a source with columns.timestamp = false has no times, only "
            "an order; remove end",
        ),
    ],
)
def test_what_goes_by_the_clock_is_refused(override: str, words: str, tmp_path: Path) -> None:
    path = asked(tmp_path, "r")
    with pytest.raises(RecipeError) as error:
        read_recipe(str(path), [override])
    assert str(error.value).split("\n  ")[1:] == [words]
    key, _, value = override.removeprefix("data.").partition("=")
    recipe = read_recipe(str(path))  # and one that was not loaded from a file
    section = recipe.data.model_copy(update={key: value})
    with pytest.raises(DataError, match=r"has no times"):
        prepare_data(recipe.model_copy(update={"data": section, "out": str(tmp_path)}), Path)


@pytest.mark.parametrize(
    ("value", "shown"), [("true", "true"), ("3", "3"), ("{ zz = 3 }", "{'zz': 3}")]
)
def test_what_is_neither_a_column_nor_false_is_refused(
    value: str, shown: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(str(asked(tmp_path, "r")), [f"data.columns.timestamp={value}"])
    (line,) = str(error.value).split("\n  ")[1:]
    expected = "expected a column's name, or false: no time column"
    assert line.startswith(f"[data.columns] timestamp = {shown}: {expected}")


def test_a_file_without_the_column_gets_advice_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (csv, parquet):
        write(tmp_path / "r", [*FIRST, *SECOND])
        text = asked(tmp_path, "r").read_text().replace("timestamp = false\n", "")
        (tmp_path / "r.toml").write_text(text)
        ended = typed(capsys, "validate", "r.toml", "--quiet")
        assert ended.code == 2
        assert 'r:1: no column "timestamp" among user, item ([data.columns] names them' in (
            ended.err.replace("'", "")
        )
        assert "timestamp = false there where file order is time order" in ended.err
        words = ("r.toml", "data.columns.timestamp=false", "--quiet")
        assert typed(capsys, "validate", *words).code == 0
