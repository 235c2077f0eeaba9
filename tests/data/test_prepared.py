"""The prepared folder: what is written comes back, and nothing else passes for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.data import prepared as store
from llmrec_cli.data.prepared import (
    check_fits,
    describe_sources,
    load_prepared,
    stage_folder,
    write_items,
    write_manifest,
    write_split,
)
from llmrec_cli.data.schema import (
    BRAND,
    COUNT,
    DISLIKED,
    HISTORY,
    ITEM,
    ITEM_ID,
    ITEMS_FILE,
    RATING,
    ROW,
    SPLITS,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER,
    USER_ID,
    split_file,
)
from llmrec_cli.data.table_files import ITEMS_SCHEMA, ROWS_SCHEMA
from llmrec_cli.errors import ArtefactError, DataError, MachineError
from llmrec_cli.utils.files import temporary_name
from llmrec_cli.utils.locks import lock_to_make

ITEMS = pl.DataFrame(
    {
        ITEM: [0, 1],
        ITEM_ID: ["a", "b"],
        TITLE: ["Té \u2028", None],
        BRAND: [None, "B"],
        TOKENS: [["<a_2>"], ["<a_1>", "<b_2>"]],
        COUNT: [2, 0],
    }
)
ROWS = pl.DataFrame(
    {
        USER: [1, 0],
        USER_ID: ["v", "u"],
        HISTORY: [[0, 1], []],
        TARGET: [1, 0],
        TIMESTAMP: [5, 6],
        RATING: [None, 4.5],
    },
    schema_overrides={HISTORY: pl.List(pl.Int32)},
)
ROWS_OF = {"train": ROWS, "valid": ROWS[:1], "test": ROWS[1:]}
FACTS = {"layout": store.LAYOUT, "data": {"k_core": 5}, "seed": 0, "sources": []}


def write_prepared(
    stage: Path, items: pl.DataFrame, splits: dict[str, pl.DataFrame], facts: store.Manifest
) -> None:
    for name, rows in splits.items():
        write_split(stage, name, rows)
    write_items(stage, items)
    write_manifest(stage, splits, facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with stage_folder(tmp_path / "prepared") as stage:
        write_prepared(stage, ITEMS, ROWS_OF, FACTS)
    return tmp_path / "prepared"


def test_what_was_written_comes_back(folder: Path) -> None:
    prepared = load_prepared(folder)
    train = prepared.split("train")
    assert list(train) == [ROW, USER, USER_ID, HISTORY, TARGET, TIMESTAMP, RATING]
    assert train[ROW].tolist() == [0, 1]
    assert [h.tolist() for h in train[HISTORY]] == [[0, 1], []]
    assert all(h.dtype == np.int32 for h in train[HISTORY])
    assert train[TARGET].dtype == np.int32
    assert len(prepared.split("valid")) == len(prepared.split("test")) == 1
    assert prepared.items[TITLE].tolist()[0] == "Té \u2028"
    assert prepared.items[TOKENS].tolist() == [["<a_2>"], ["<a_1>", "<b_2>"]]
    assert prepared.items[COUNT].tolist() == [2, 0]
    assert list(prepared.items) == [ITEM, ITEM_ID, TITLE, BRAND, TOKENS, COUNT]
    assert prepared.manifest["files"]["train.parquet"]["rows"] == 2
    assert not prepared.reused


def test_writing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    with stage_folder(tmp_path / "again") as stage:
        write_prepared(stage, ITEMS, ROWS_OF, FACTS)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "prepared"]


def test_optional_columns_come_back(tmp_path: Path) -> None:
    lists = pl.Series(DISLIKED, [[1], []], dtype=pl.List(pl.Int64))
    with stage_folder(tmp_path / "prepared") as stage:
        splits = {name: rows.with_columns(lists[: len(rows)]) for name, rows in ROWS_OF.items()}
        write_prepared(stage, ITEMS, splits, FACTS)
    train = load_prepared(tmp_path / "prepared").split("train")
    assert list(train) == [*ROWS_SCHEMA.names, DISLIKED]
    assert [items.tolist() for items in train[DISLIKED]] == [[1], []]
    assert all(items.dtype == np.int32 for items in train[DISLIKED])


def test_parquet_schema_is_the_agreed_one(folder: Path) -> None:
    assert pq.read_schema(folder / "train.parquet").equals(ROWS_SCHEMA)
    assert pq.read_schema(folder / "items.parquet").equals(ITEMS_SCHEMA)


@pytest.mark.parametrize("name", [ITEMS_FILE, *map(split_file, SPLITS)])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(ArtefactError, match=rf"{name}: (changed since|missing)"):
        load_prepared(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": {}}', '{"files": 3}', "null"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"manifest\.json: not a manifest of layout 1"):
        load_prepared(folder)


def test_another_layout_or_no_manifest_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"layout": 0}))
    with pytest.raises(ArtefactError, match="not a manifest of layout 1"):
        load_prepared(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match=r"not a prepared folder \(no manifest\.json\)"):
        load_prepared(folder)


def test_an_error_while_staging_leaves_nothing(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def interrupted(error: BaseException) -> None:
        with stage_folder(tmp_path / "prepared") as stage:
            write_prepared(stage, ITEMS, ROWS_OF, FACTS)
            raise error

    for error in (Stop(), DataError("no")):
        with pytest.raises(type(error)):
            interrupted(error)
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    for left in (temporary_name(prepared), tmp_path / ".prepared.partial"):  # now, and before
        left.mkdir()
        (left / "train.parquet").write_text("half")
    with lock_to_make(prepared, print), stage_folder(prepared) as stage:
        assert list(stage.iterdir()) == []
    assert {file.name for file in tmp_path.iterdir()} == {"prepared", ".prepared.lock"}


@pytest.mark.parametrize("call", ["fsync", "rename", "write_table"])
def test_each_refusal_of_the_disk_is_the_machines_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"fsync": os, "rename": Path, "write_table": pq.ParquetWriter}[call]
    monkeypatch.setattr(owner, call, refuse)
    with (
        pytest.raises(MachineError, match="prepared: not prepared: No space left on device"),
        stage_folder(tmp_path / "prepared") as stage,
    ):
        write_prepared(stage, ITEMS, ROWS_OF, FACTS)
    assert list(tmp_path.iterdir()) == []


def section(folder: Path, **keys: object) -> DataSection:
    for name in ("one.csv", "two.csv"):
        file = folder / name
        if not file.exists():
            file.write_text(name)
    base = {"format": "ratings2023", "reviews": ("one.csv", "two.csv")}
    return DataSection.model_validate(base | keys)


def test_a_folder_fits_the_same_choices_and_contents_only(tmp_path: Path) -> None:
    def asked(seed: int = 0, **keys: object) -> store.Manifest:
        return describe_sources(section(tmp_path, **keys), seed, lambda name: tmp_path / name)

    with stage_folder(tmp_path / "prepared") as stage:
        write_prepared(stage, ITEMS, ROWS_OF, asked())
    check_fits(tmp_path / "prepared", asked())

    def refused(difference: str, now: store.Manifest) -> None:
        with pytest.raises(DataError, match=f"prepared from something else: {difference}"):
            check_fits(tmp_path / "prepared", now)

    check_fits(tmp_path / "prepared", asked(engine="spark", memory=4096))
    check_fits(tmp_path / "prepared", asked(engine="spark", spark={"master": "local[2]"}))
    refused("data.k_core was 5, is now 10", asked(k_core=10))
    refused("data.min_rating was null, is now 4.0", asked(min_rating=4.0))
    refused("seed was 0, is now 1", asked(seed=1))
    refused("2 source files then, 1 now", asked(reviews=("one.csv",)))
    refused(r"data.reviews two.csv differs in content", asked(reviews=("two.csv", "one.csv")))
    (tmp_path / "one.csv").rename(tmp_path / "renamed.csv")
    check_fits(tmp_path / "prepared", asked(reviews=("renamed.csv", "two.csv")))
    (tmp_path / "renamed.csv").write_text("edited")
    refused(
        "data.reviews renamed.csv differs in content from data.reviews one.csv",
        asked(reviews=("renamed.csv", "two.csv")),
    )


def test_a_missing_source_names_its_key(tmp_path: Path) -> None:
    asked = section(tmp_path, reviews=("absent.csv",))
    with pytest.raises(DataError, match=r"^data\.reviews = absent\.csv: No such file"):
        describe_sources(asked, 0, lambda name: tmp_path / name)
    with pytest.raises(DataError, match=r"^data\.reviews = absent\.csv: Is a directory"):
        describe_sources(asked, 0, lambda _: tmp_path)
