"""Tables of one's own: ratings on any scale, columns of every type, folders, pandas' index."""

from __future__ import annotations

import json
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.formats import read_source
from llmrec_cli.data.formats.base import Source
from llmrec_cli.data.formats.parsing import BLOCK, read_only_beginnings
from llmrec_cli.errors import DataError
from llmrec_cli.pipeline.prepare import prepare_data
from tests.experiments import typed

MS = 1_547_589_356_557
IDS = {"user_id": ["u"], "item_id": ["i"]}
TIME = {"timestamp": [MS]}


def read_path(path: Path, scratch: Path, **section: Any) -> Source:
    scratch.mkdir(exist_ok=True)
    chosen = {"format": "interactions", "reviews": str(path), **section}
    return read_source(DataSection.model_validate(chosen), Path, scratch)


def frame_of(source: Source) -> pl.DataFrame:
    assert source.interactions is not None
    return pl.read_parquet(source.interactions)


def write_ratings(folder: Path, kind: str, ratings: list[Any]) -> Path:
    rows = [
        {"user_id": "u", "item_id": f"i{n}", "timestamp": MS + n, "rating": rating}
        for n, rating in enumerate(ratings)
    ]
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        pd.DataFrame(rows, dtype=object).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


RATED: dict[str, Any] = {"columns": {"rating": "rating"}}
SCALES = {
    "halves": [0.5, 4.5, 5.0],
    "zero": [0.0, 3.0, 5.0],
    "tens": [8.5, 10.0, 1.0],
    "yes and no": [0.0, 1.0, 1.0],
    "jokes": [-9.75, 9.5, 0.0],
    "percent": [100.0, 55.0, 0.0],
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("ratings", SCALES.values(), ids=SCALES)
def test_a_rating_is_any_finite_number(kind: str, ratings: list[float], tmp_path: Path) -> None:
    path = write_ratings(tmp_path, kind, ratings)
    source = read_path(path, tmp_path / "scratch", **RATED)
    assert frame_of(source)["rating"].to_list() == ratings
    found = source.notes["reviews"][str(path)]["ratings"]
    assert found == {"lowest": min(ratings), "highest": max(ratings), "absent": 0}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_empty_rating_is_an_interaction_without_one(kind: str, tmp_path: Path) -> None:
    path = write_ratings(tmp_path, kind, [4.0, None, 2.0])
    source = read_path(path, tmp_path / "scratch", **RATED)
    assert frame_of(source)["rating"].to_list() == [4.0, None, 2.0]
    found = source.notes["reviews"][str(path)]["ratings"]
    assert found == {"lowest": 2.0, "highest": 4.0, "absent": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_min_rating_leaves_out_what_is_not_rated_and_counts_it(kind: str, tmp_path: Path) -> None:
    path = write_ratings(tmp_path, kind, [9.0, None, 3.0, 10.0, 8.5, 7.0])
    section: dict[str, Any] = {"format": "interactions", "reviews": str(path), **RATED}
    section |= {"min_rating": 6.5, "k_core": 0, "untitled": "id"}
    told = list[str]()
    recipe = Recipe(name="x", out=str(tmp_path), data=DataSection.model_validate(section))
    prepared = prepare_data(recipe, Path, told.append)
    assert prepared.items["item_id"].to_list() == ["i0", "i3", "i4", "i5"]
    assert any(
        line.endswith("ratings 3 .. 10; 1 without, left out by data.min_rating") for line in told
    )


def test_no_rating_at_all_is_no_rating(tmp_path: Path) -> None:
    columns = pa.table({**IDS, **TIME, "rating": pa.nulls(1)})
    pq.write_table(columns, tmp_path / "p")
    source = read_path(tmp_path / "p", tmp_path / "scratch", **RATED)
    assert frame_of(source)["rating"].to_list() == [None]


@pytest.mark.parametrize(
    ("rating", "words"),
    [(float("nan"), '"rating" is nan, expected a finite'), (float("-inf"), '"rating" is -inf')],
)
def test_nan_is_no_rating(rating: float, words: str, tmp_path: Path) -> None:
    path = write_ratings(tmp_path, "parquet", [3.0, rating])
    with pytest.raises(DataError, match=f"parquet:2: {words}"):
        read_path(path, tmp_path / "scratch", **RATED)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_word_is_no_rating(kind: str, tmp_path: Path) -> None:
    path = write_ratings(tmp_path, kind, [3.0, "five"])
    with pytest.raises(DataError, match="\"rating\" is 'five', expected a number"):
        read_path(path, tmp_path / "scratch", **RATED)


ID = {
    "categorical": pa.array(["7"]).dictionary_encode(),
    "categorical of numbers": pa.array([7]).dictionary_encode(),
    "string": pa.array(["7"], pa.string()),
    "large string": pa.array(["7"], pa.large_string()),
    "string view": pa.array(["7"], pa.string_view()),
    **{
        str(kind): pa.array([7], kind) for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.uint64())
    },
    "decimal": pa.array([Decimal("7.00")], pa.decimal128(10, 2)),
}


@pytest.mark.parametrize("column", ID.values(), ids=ID)
def test_ids_and_titles_of_every_type_in_parquet(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": column, "item_id": column, **TIME}), tmp_path / "p")
    pq.write_table(pa.table({"item_id": column, "title": column}), tmp_path / "m")
    source = read_path(
        tmp_path / "p", tmp_path / "s", metadata=str(tmp_path / "m"), columns={"title": "title"}
    )
    assert frame_of(source).select("user_id", "item_id").rows() == [("7", "7")]
    assert source.items.select("item_id", "title").rows() == [("7", "7")]


NUMBER = {
    **{str(kind): pa.array([4], kind) for kind in (pa.int8(), pa.uint8(), pa.int64(), pa.uint64())},
    **{str(kind): pa.array([4.0], kind) for kind in (pa.float16(), pa.float32())},
    "decimal": pa.array([Decimal("4.0")], pa.decimal128(3, 1)),
    "wide decimal": pa.array([Decimal("4.0")], pa.decimal256(50, 1)),
    "categorical": pa.array([4.0]).dictionary_encode(),
}


@pytest.mark.parametrize("column", NUMBER.values(), ids=NUMBER)
def test_ratings_of_every_type_in_parquet(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({**IDS, **TIME, "rating": column}), tmp_path / "p")
    source = read_path(tmp_path / "p", tmp_path / "scratch", **RATED)
    assert frame_of(source)["rating"].to_list() == [4.0]


REFUSED = {
    "item_id": (pa.array([1.5]), 'column "item_id" is double, expected strings or whole numbers'),
    "user_id": (
        pa.array([Decimal("1.5")], pa.decimal128(3, 1)),
        r'column "user_id" is decimal128\(3, 1\) with fractions, expected strings or whole numb',
    ),
    "rating": (pa.array([True]), 'column "rating" is bool, expected numbers'),
    "timestamp": (pa.array([1], pa.duration("s")), r'"timestamp" is duration\[s\], expected numbe'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_refused_names_column_type_and_what_is_expected(
    name: str, tmp_path: Path
) -> None:
    column, words = REFUSED[name]
    columns = {**IDS, **TIME, "rating": [1.0]} | {name: column}
    pq.write_table(pa.table(columns), tmp_path / "p")
    with pytest.raises(DataError, match=f"p:1: .*{words}"):
        read_path(tmp_path / "p", tmp_path / "scratch", **RATED)


ROWS = pa.table(
    {
        "user_id": ["a", "b", "c", "d"],
        "item_id": ["1", "2", "3", "4"],
        "timestamp": [MS + n for n in range(4)],
        "shop": ["north", "south", "a/b", None],
    }
)


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "deeper").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    pq.write_table(ROWS[2:], folder / "deeper" / "part-0.parquet")
    pq.write_table(ROWS[:2], folder / "part-1.parquet")
    pq.write_table(ROWS, folder / "_temporary" / "part-9.parquet")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    source = read_path(folder, tmp_path / "scratch")
    assert frame_of(source)["user_id"].to_list() == ["c", "d", "a", "b"]  # by path
    notes = source.notes["reviews"][str(folder)]
    assert {name: found["interactions"] for name, found in notes.items()} == {
        "deeper/part-0.parquet": 2,
        "part-1.parquet": 2,
    }


def test_names_of_hive_folders_are_columns(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    ds.write_dataset(
        ROWS[:3], folder, format="parquet", partitioning=["shop"], partitioning_flavor="hive"
    )
    source = read_path(folder, tmp_path / "scratch", columns={"item": "shop"})
    assert set(frame_of(source).select("user_id", "item_id").rows()) == {
        ("a", "north"),
        ("b", "south"),
        ("c", "a/b"),
    }
    ds.write_dataset(
        ROWS[3:],
        tmp_path / "none",
        format="parquet",
        partitioning=["shop"],
        partitioning_flavor="hive",
    )
    with pytest.raises(DataError, match='"shop" is empty, expected an id'):
        read_path(tmp_path / "none", tmp_path / "scratch", columns={"item": "shop"})


def test_a_folder_is_prepared_and_its_files_are_the_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(2):
        rows = {"user_id": ["u", "v", "w"] * 4, "item_id": [str(n // 3) for n in range(12)]}
        times = {"timestamp": [MS + n for n in range(12)]}
        pq.write_table(pa.table({**rows, **times}), folder / f"part-{number}.parquet")
    section = DataSection(
        format="interactions", reviews=(str(folder),), untitled="id", k_core=0, duplicates="keep"
    )
    recipe = Recipe(name="x", out=str(tmp_path), data=section)
    prepared = prepare_data(recipe, Path)
    names = [source["name"] for source in prepared.manifest["sources"]]
    assert names == ["rows/part-0.parquet", "rows/part-1.parquet"]
    (tmp_path / "x.toml").write_text(
        f'[data]\nformat = "interactions"\nreviews = "{folder}"\nk_core = 0\nuntitled = "id"\n'
    )
    assert typed(capsys, "validate", str(tmp_path / "x.toml")).code == 0
    pq.write_table(ROWS, folder / "part-2.parquet")
    with pytest.raises(DataError, match="2 source files then, 3 now"):
        prepare_data(recipe, Path)


def test_a_part_of_a_folder_may_be_empty_but_not_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spark writes a part without rows where a partition had none."""
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(ROWS.slice(0, 0), folder / "part-0.parquet")
    nulls = pa.table({name: pa.nulls(0) for name in ROWS.column_names})  # of an empty frame
    pq.write_table(nulls, folder / "part-2.parquet")
    with pytest.raises(DataError, match="rows: no file of the folder has interactions"):
        read_path(folder, tmp_path / "scratch")
    rows = {"user_id": ["u", "v", "w"] * 4, "item_id": [str(n // 3) for n in range(12)]}
    times = {"timestamp": [MS + n for n in range(12)]}
    pq.write_table(pa.table({**rows, **times}), folder / "part-1.parquet")
    source = read_path(folder, tmp_path / "scratch")
    assert frame_of(source).height == 12
    notes = source.notes["reviews"][str(folder)]
    assert notes["part-0.parquet"] == notes["part-2.parquet"] == {"interactions": 0}
    recipe = tmp_path / "x.toml"
    recipe.write_text(
        f'[data]\nformat = "interactions"\nreviews = "{folder}"\nk_core = 0\nuntitled = "id"\n'
    )
    ended = typed(capsys, "prepare", str(recipe), f"out={tmp_path}")
    assert ended.code == 0
    assert "part-0.parquet: 0 interactions\n" in ended.out + ended.err
    with pytest.raises(DataError, match=r"part-0\.parquet:1: the file has no interactions"):
        read_path(folder / "part-0.parquet", tmp_path / "scratch")


def test_a_key_that_a_json_line_lacks_is_null_where_it_may_be(tmp_path: Path) -> None:
    lines = [
        {"user_id": "u", "item_id": "a", "timestamp": MS, "rating": 4},
        {"user_id": "u", "item_id": "b", "timestamp": MS + 1},
        {"user_id": "u", "item_id": "c", "timestamp": MS + 2, "rating": None},
        {"user_id": "u", "timestamp": MS + 3, "rating": 5},
        {"user_id": "u", "item_id": "e", "rating": 5},
    ]
    names = [
        {"item_id": "a", "title": "One", "maker": "Ann"},
        {"item_id": "b", "title": "Two"},
        {"item_id": "c", "maker": "Cem"},
        {"title": "Four"},
    ]
    for file, rows in (("r", lines), ("m", names)):
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"rating": "rating", "title": "title", "brand": "maker"}
    keys: dict[str, Any] = {"metadata": str(tmp_path / "m"), "columns": columns}
    source = read_path(tmp_path / "r", tmp_path / "s", on_bad_line="skip", **keys)
    assert frame_of(source).select("item_id", "rating").rows() == [
        ("a", 4.0),
        ("b", None),
        ("c", None),
    ]
    assert source.items.select("item_id", "title", "brand").rows() == [
        ("a", "One", "Ann"),
        ("b", "Two", None),
        ("c", None, "Cem"),
    ]
    said = [entry.split(";")[0] for entry in source.notes["bad_lines"]["first"]]
    assert said == ['r:4: has no "item_id"', 'r:5: has no "timestamp"', 'm:4: has no "item_id"']
    assert source.notes["reviews"][str(tmp_path / "r")]["ratings"]["absent"] == 2


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_ids_that_tables_write_for_no_value_are_ids_with_a_warning(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids are exact texts; a column with "nan" is a pandas export of missing ids, more likely."""
    users = ["u", "nan", "v", "nan", "None", "nanna", "NAN", "w"] * 3
    items = ["a", "b", "b", "a", "a", "c", "NA", "a"] * 3
    rows = [
        {"user_id": user, "item_id": item, "timestamp": MS + n}
        for n, (user, item) in enumerate(zip(users, items, strict=True))
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read_path(path, tmp_path / "s")
    assert frame_of(source)["user_id"].to_list() == users
    notes = source.notes["reviews"][str(path)]["ids_that_may_be_missing"]
    assert notes == {"user_id": {"None": 3, "nan": 6}, "item_id": {"NA": 3}}
    (tmp_path / "x.toml").write_text(
        f'[data]\nformat = "interactions"\nreviews = "{path}"\nk_core = 0\nuntitled = "id"\n'
        'duplicates = "keep"\n'
    )
    ended = typed(capsys, "prepare", str(tmp_path / "x.toml"), f"out={tmp_path}")
    assert ended.code == 0
    means = "; it is taken as an id: if it stands for a missing one, remove these rows"
    warnings = [line for line in ended.err.splitlines() if "warning" in line]
    assert [line.removeprefix(f"{path}: ") for line in warnings] == [
        f'warning: user_id is "None" in 3 rows, "nan" in 6 rows{means}',
        f'warning: item_id is "NA" in 3 rows{means}',
    ]


def test_no_warning_where_no_id_looks_like_no_value(tmp_path: Path) -> None:
    pq.write_table(pa.table({**IDS, **TIME}), tmp_path / "p")
    source = read_path(tmp_path / "p", tmp_path / "s")
    assert "ids_that_may_be_missing" not in source.notes["reviews"][str(tmp_path / "p")]


@pytest.mark.parametrize("checked", [False, True])
def test_a_key_that_no_json_line_has_is_refused(checked: bool, tmp_path: Path) -> None:
    """It is misspelt in the recipe, more likely than absent from all of the file."""
    (tmp_path / "r").write_text(json.dumps({"user_id": "u", "item_id": "i", "timestamp": MS}))
    rows = [{"item_id": "i"}, {"item_id": "i", "title": "One"}]
    (tmp_path / "m").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys: dict[str, Any] = {"metadata": str(tmp_path / "m"), "columns": {"title": "titel"}}
    words = r'm:1: no column "titel" among .item_id, title.; did you mean "title"\?'
    with read_only_beginnings() if checked else nullcontext():
        with pytest.raises(DataError, match=words):
            read_path(tmp_path / "r", tmp_path / "s", **keys)
        with pytest.raises(DataError, match=r'r:1: no column "stars" among'):
            read_path(tmp_path / "r", tmp_path / "s", columns={"rating": "stars"})


def test_a_key_may_come_behind_the_beginning_that_is_checked(tmp_path: Path) -> None:
    row = {"user_id": "u", "item_id": "i", "timestamp": MS, "text": "x" * 4000}
    late = {**row, "rating": 3}
    count = 2 * BLOCK // 4000
    (tmp_path / "r").write_text("".join(json.dumps(r) + "\n" for r in [row] * count + [late]))
    keys: dict[str, Any] = {"columns": {"rating": "rating"}}
    with read_only_beginnings():
        assert frame_of(read_path(tmp_path / "r", tmp_path / "s", **keys)).height < count
    assert frame_of(read_path(tmp_path / "r", tmp_path / "s", **keys)).height == count + 1


def test_a_folder_of_other_files_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    with pytest.raises(DataError, match="rows: this is a folder without parquet files"):
        read_path(folder, tmp_path / "scratch")
    (folder / "rows.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(DataError, match=r"rows\.csv: no parquet file; expected a folder of parq"):
        read_path(folder, tmp_path / "scratch")


@pytest.mark.parametrize("kind", ["csv", "csv read again", "parquet"])
def test_the_unnamed_index_of_pandas_is_ignored_with_a_word(kind: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({**IDS, **TIME}, index=[5])
    items = pd.DataFrame({"item_id": ["i"], "title": ["One"]})
    if kind == "parquet":
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=True), tmp_path / "r")
    else:
        frame.to_csv(tmp_path / "r")
    if kind == "csv read again":
        pd.read_csv(tmp_path / "r").to_csv(tmp_path / "r", index=False)
    items.to_csv(tmp_path / "m")
    section: dict[str, Any] = {"metadata": str(tmp_path / "m"), "columns": {"title": "title"}}
    source = read_path(tmp_path / "r", tmp_path / "scratch", **section)
    assert frame_of(source).select("user_id", "item_id", "timestamp").rows() == [("u", "i", MS)]
    assert source.items.select("item_id", "title").rows() == [("i", "One")]
    names = {"csv": "", "csv read again": "Unnamed: 0", "parquet": "__index_level_0__"}
    assert source.notes["reviews"][str(tmp_path / "r")]["ignored_index_column"] == names[kind]
    assert source.notes["metadata"]["ignored_index_column"] == {str(tmp_path / "m"): ""}


def test_an_index_that_is_asked_for_is_no_index(tmp_path: Path) -> None:
    pd.DataFrame({**IDS, **TIME}, index=[5]).to_csv(tmp_path / "r")
    pd.read_csv(tmp_path / "r").to_csv(tmp_path / "r", index=False)
    source = read_path(tmp_path / "r", tmp_path / "scratch", columns={"item": "Unnamed: 0"})
    assert frame_of(source)["item_id"].to_list() == ["5"]
    assert "ignored_index_column" not in source.notes["reviews"][str(tmp_path / "r")]


def test_other_nameless_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("user_id,item_id,,timestamp\nu,i,x,1547589356557\n")
    with pytest.raises(DataError, match="r:1: empty or repeated column names"):
        read_path(tmp_path / "r", tmp_path / "scratch")


def test_texts_that_are_no_times_are_bad_rows_of_parquet(tmp_path: Path) -> None:
    times = ["2018-06-17", "today", "2018-06-18", None]
    ids = {"user_id": ["u"] * 4, "item_id": ["a", "b", "c", "d"]}
    pq.write_table(pa.table({**ids, "timestamp": times}), tmp_path / "p")
    source = read_path(tmp_path / "p", tmp_path / "scratch", on_bad_line="skip")
    assert frame_of(source)["item_id"].to_list() == ["a", "c"]
    assert source.notes["bad_lines"]["skipped"] == 2
    assert source.notes["bad_lines"]["first"][0].startswith("p:2: \"timestamp\" is 'today'")


def test_ratings_of_an_amazon_format_on_another_scale_are_advised_right(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("u,i,4.5,1529193600\nu,j,0.5,1529193600\n")
    words = r"r:2: .*1\.\.5; ratings on another scale need format \"interactions\""
    with pytest.raises(DataError, match=words):
        read_path(tmp_path / "r", tmp_path / "scratch", format="ratings2014")


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    arrays = [pa.array(["u"]), pa.array(["i"]), pa.array([MS]), pa.array([1.0]), pa.array([2.0])]
    names = ["user_id", "item_id", "timestamp", "rating", "rating"]
    pq.write_table(pa.table(arrays, names=names), tmp_path / "t.parquet")
    with pytest.raises(DataError, match='column "rating" occurs more than once'):
        read_path(tmp_path / "t.parquet", tmp_path / "s", columns={"rating": "rating"})


def test_a_folders_name_does_not_replace_a_column(tmp_path: Path) -> None:
    folder = tmp_path / "t" / "user_id=1"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({**IDS, **TIME}), folder / "x.parquet")
    with pytest.raises(DataError, match="in the file and a folder's name"):
        read_path(tmp_path / "t", tmp_path / "s")


def test_ratings_may_be_names_of_folders(tmp_path: Path) -> None:
    rows = {"user_id": ["u", "v"], "item_id": ["i", "i"], "timestamp": [MS, MS], "rating": [1, 5]}
    pd.DataFrame(rows).to_parquet(tmp_path / "t", partition_cols=["rating"])
    source = read_path(tmp_path / "t", tmp_path / "s", columns={"rating": "rating"})
    assert frame_of(source)["rating"].to_list() == [1.0, 5.0]


def test_other_separators_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user_id;item_id;timestamp\nu;i;1547589356\n")
    with pytest.raises(DataError, match="separated by semicolons or bars"):
        read_path(tmp_path / "t.csv", tmp_path / "s")


def test_user_and_item_are_two_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected two columns"):
        read_path(tmp_path / "t.csv", tmp_path / "s", columns={"user": "item_id"})
