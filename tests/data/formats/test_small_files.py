"""Small files whose right reading is plain to see."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec_cli.data.formats import parsing
from llmrec_cli.data.formats.base import Source
from llmrec_cli.errors import DataError, MachineError, RecipeError
from tests.data.formats.small_sources import json_lines as _json
from tests.data.formats.small_sources import read_small as _read

R18 = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1529193600}
R23 = {"user_id": "A1", "parent_asin": "B1", "rating": 4, "timestamp": 1547589356557}
ODD_IDS = ["NA", "nan", "null", "007", "1e5", "5555991584", "#oc-R1", "ü", " x"]


def _frame(source: Source) -> pl.DataFrame:
    assert source.interactions is not None
    return pl.read_parquet(source.interactions)


def _reviews(folder: Path, data: bytes, form: str = "amazon2018", **more: Any) -> pl.DataFrame:
    return _frame(_read(folder, {"r": data}, format=form, reviews="r", **more))


def test_ids_are_strings_whatever_they_look_like(tmp_path: Path) -> None:
    frame = _reviews(tmp_path, _json(*[{**R18, "asin": value} for value in ODD_IDS]))
    assert frame["item_id"].to_list() == ODD_IDS
    csv = "".join(f"{value},A1,5.0,1529193600\n" for value in ODD_IDS).encode()
    assert _reviews(tmp_path, csv, "ratings2018")["item_id"].to_list() == ODD_IDS


@pytest.mark.parametrize("form", ["amazon2014", "amazon2018"])
def test_what_is_odd_but_right_is_read(tmp_path: Path, form: str) -> None:
    odd = [
        {**R18, "reviewText": "cut off \ud83d"},
        {**R18, "reviewText": "a\u2028b\rc\x0cd", "vote": "1,234"},
        {"helpful": [0, {"deep": [[]]}], **R18, "overall": 3},
    ]
    expected = [("A1", "B1", row["overall"], 1529193600000, i) for i, row in enumerate(odd)]
    data = _json(*odd)
    dos = b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\r\n").rstrip()
    for variant in (data, dos, gzip.compress(data), data.rstrip()):
        assert _reviews(tmp_path, variant, form).rows() == expected


def test_the_fast_path_and_the_slow_one_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "BLOCK", 1000)
    rows = [{**R18, "asin": f"B{n}", "overall": n % 5 + 1, "x": "é" * n} for n in range(300)]
    data = _json(*rows).replace(b"}\n", b"}\n\n", 7)
    fast = _reviews(tmp_path, data)
    monkeypatch.setattr(parsing, "_decode_block", lambda block, decoder: None)
    assert _reviews(tmp_path, data).equals(fast)
    assert fast["position"].to_list() == list(range(300))


def test_literals_and_json_read_alike(tmp_path: Path) -> None:
    items = [
        {"asin": "B1", "title": "Plain", "brand": "Maker"},
        {"asin": "B2", "title": "Don't", "related": {"also": ["B1"]}, "price": 1.5},
        {"asin": "B3", "title": 'Say "no"', "x": None},
        {"asin": "B4", "title": "Back\\slash, tab\t and é"},
        {"asin": "B5"},
    ]
    literals = "".join(f"{item!r}\n" for item in items).encode()
    found = [
        _read(
            tmp_path, {"r": _json(R18), "m": data}, format="amazon2014", reviews="r", metadata="m"
        )
        for data in (literals, _json(*items))
    ]
    assert found[0].items.equals(found[1].items)
    assert found[0].items["title"].to_list()[1:4] == ["Don't", 'Say "no"', "Back\\slash, tab and é"]


def test_quotes_inside_literals_are_not_mistaken(tmp_path: Path) -> None:
    lines_ = ["{'asin': 'B1', 'title': 'Don\\'t'}", """{'asin': 'B2', 'title': '", "title": "x'}"""]
    source = _read(
        tmp_path,
        {"r": _json(R18), "m": "\n".join(lines_).encode()},
        format="amazon2014",
        reviews="r",
        metadata="m",
    )
    assert source.items["title"].to_list() == ["Don't", '", "title": "x']


def test_one_row_per_item_and_the_rest_is_counted(tmp_path: Path) -> None:
    metadata = _json(
        {"asin": "B1", "title": "<span class=", "brand": " "},
        {"asin": "B2", "title": "Two"},
        {"asin": "B1", "title": "One &amp; only", "brand": "Maker"},
        {"asin": "B1", "title": "Too late", "brand": "Too late"},
        {"title": "No id"},
        {"asin": "B3", "title": " "},
    )
    source = _read(
        tmp_path, {"r": _json(R18), "m": metadata}, format="amazon2018", reviews="r", metadata="m"
    )
    assert source.items.rows() == [
        ("B1", "One & only", "Maker", None),
        ("B2", "Two", None, None),
        ("B3", None, None, None),
    ]
    assert source.notes["metadata"] == {
        "files": ["m"],
        "rows": 6,
        "rows_without_id": 1,
        "rows_repeating_an_id": 2,
        "rows_without_title": 1,
        "rows_with_unusable_title": 1,
        "items": 3,
        "items_with_title": 2,
    }


def test_2023_joins_on_parent_asin_and_finds_the_brand(tmp_path: Path) -> None:
    metadata = _json(
        {
            "parent_asin": "P1",
            "asin": "X",
            "title": "One",
            "store": "Shop",
            "details": {"Brand": "B"},
        },
        {"parent_asin": "P2", "title": None, "store": "Shop", "details": {"Color": "red"}},
        {"parent_asin": "P3", "title": "Three", "store": None, "details": "{}"},
    )
    review = {**R23, "parent_asin": "P1", "asin": "X", "title": "My opinion"}
    source = _read(
        tmp_path,
        {"r": _json(review), "m": metadata},
        format="amazon2023",
        reviews="r",
        metadata="m",
    )
    assert _frame(source)["item_id"].to_list() == ["P1"]
    assert source.items["title"].to_list() == ["One", None, "Three"]
    assert source.items["brand"].to_list() == ["B", "Shop", None]


def test_details_in_a_string_are_read_like_an_object(tmp_path: Path) -> None:
    details: list[object] = [
        {"Brand": "B", "Color": "red"},
        json.dumps({"Brand": "B", "Color": "red"}),
        "{}",
        "",
        "Brand: B",
        '{"Brand": ["B"]}',
        "[1]",
        None,
    ]
    rows = [
        {"parent_asin": f"P{n}", "title": "T", "store": "Shop", "details": found}
        for n, found in enumerate(details)
    ]
    files = {"r": _json(R23), "m": _json(*rows)}
    source = _read(tmp_path, files, format="amazon2023", reviews="r", metadata="m")
    assert source.items["brand"].to_list() == ["B", "B", *["Shop"] * 6]
    assert source.notes["metadata"]["rows_with_unreadable_details"] == 3


def test_the_unit_is_found_per_file_and_positions_continue(tmp_path: Path) -> None:
    files = {"s": _json(R18, R18), "ms": _json({**R18, "unixReviewTime": 1529193600001})}
    source = _read(tmp_path, files, format="amazon2018", reviews=("s", "ms"))
    frame = _frame(source)
    assert frame["timestamp"].to_list() == [1529193600000, 1529193600000, 1529193600001]
    assert frame["position"].to_list() == [0, 1, 2]
    assert source.notes["reviews"] == {
        "s": {"interactions": 2, "timestamp": "seconds"},
        "ms": {"interactions": 1, "timestamp": "milliseconds"},
    }


def test_the_unit_holds_for_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "BLOCK", 8)
    mixed = _json(*[R18] * 50, {**R18, "unixReviewTime": 1529193600000})
    with pytest.raises(DataError, match=r"r:51: .* but the lines before are in seconds"):
        _reviews(tmp_path, mixed)


def test_quoted_and_plain_csv_read_alike(tmp_path: Path) -> None:
    plain = b"A1,B1,5.0,1529193600\nA2,B2,1,1529193601\n"
    quoted = b'"A1",B1,"5.0",1529193600\r\n\r\nA2,"B2",1,1529193601'
    assert _reviews(tmp_path, plain, "ratings2014").rows()[1] == ("A2", "B2", 1.0, 1529193601000, 1)
    assert _reviews(tmp_path, quoted, "ratings2014").equals(
        _reviews(tmp_path, plain, "ratings2014")
    )


def test_interactions_are_the_same_in_every_notation(tmp_path: Path) -> None:
    columns = {"user": "u", "item": "i", "rating": "r", "timestamp": "t", "title": "name"}
    rows = [(7, "x,1", 4.5, 1547589356557), (8, "nan", 1.0, 1547589356558)]
    dicts = [dict(zip("uirt", row, strict=True)) for row in rows]
    csv = b'r,t,u,i,junk\n4.5,1547589356557,7,"x,1",\n1,1547589356558,8,nan,"a ""b"""\n'
    tsv = b"u\ti\tr\tt\n7\tx,1\t4.5\t1547589356557\n8\tnan\t1\t1547589356558\n"
    table = pa.Table.from_pylist(dicts)
    dates = [datetime.fromtimestamp(row[3] / 1000, UTC) for row in rows]
    dated = table.set_column(3, "t", pa.array(dates, pa.timestamp("us", "UTC")))
    for name, each in (("plain", table), ("dated", dated)):
        pq.write_table(each, tmp_path / name)
    notations = {
        "csv": csv,
        "gzip": gzip.compress(csv),
        "tsv": tsv,
        "jsonl": _json(*dicts),
        "parquet": (tmp_path / "plain").read_bytes(),
        "dates": (tmp_path / "dated").read_bytes(),
    }
    expected = [(str(u), i, r, t, n) for n, (u, i, r, t) in enumerate(rows)]
    for notation, data in notations.items():
        frame = _reviews(tmp_path, data, "interactions", columns=columns)
        assert frame.rows() == expected, notation


@pytest.mark.parametrize(
    ("user", "time", "words"),
    [
        (1.5, 1547589356557, 'column "user_id" is double, expected strings or whole numbers'),
        ("1", "today", "\"timestamp\" is 'today', expected a number of a unit of time, or an ISO"),
        ("1", None, 'column "timestamp" is null, expected numbers or dates'),
    ],
)
def test_parquet_columns_of_wrong_types(
    tmp_path: Path, user: object, time: object, words: str
) -> None:
    row = {"user_id": user, "item_id": "2", "timestamp": time}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p")
    with pytest.raises(DataError, match=rf"r:1: {words}"):
        _reviews(tmp_path, (tmp_path / "p").read_bytes(), "interactions")


def test_without_timestamps_the_order_in_the_files_is_the_time(tmp_path: Path) -> None:
    files = {"a": b"user_id,item_id\n1,2\n1,3\n", "b": b"item_id,user_id\n4,1\n"}
    section = {"format": "interactions", "reviews": ("a", "b"), "columns": {"timestamp": None}}
    source = _read(tmp_path, files, **section)
    assert _frame(source).rows() == [
        ("1", "2", None, 0, 0),
        ("1", "3", None, 1, 1),
        ("1", "4", None, 2, 2),
    ]
    assert source.notes["reviews"]["a"]["timestamp"] == "order in the file"
    with pytest.raises(DataError, match='"item_id" is empty'):
        _read(tmp_path, {"a": b"user_id,item_id\n1,\n"}, **section)


def test_ratings_are_checked_without_timestamps_too(tmp_path: Path) -> None:
    columns = {"timestamp": None, "rating": "r"}
    with pytest.raises(DataError, match=r"r:2: \"r\" is 'x'"):
        _reviews(tmp_path, b"user_id,item_id,r\n1,2,x\n", "interactions", columns=columns)


def test_metadata_of_interactions(tmp_path: Path) -> None:
    files = {
        "r": b"user_id,item_id,timestamp\n1,2,1547589356557\n",
        "m": b"item_id,name,by\n2,Two ,\n,No id,\n",
    }
    source = {"format": "interactions", "reviews": "r", "metadata": "m"}
    items = _read(tmp_path, files, **source, columns={"title": "name", "brand": "by"})
    assert items.items.rows() == [("2", "Two", None, None)]
    assert items.notes["metadata"]["rows_without_id"] == 1
    with pytest.raises(RecipeError, match="title is missing"):
        _read(tmp_path, files, **source)


def test_semantic_ids_with_titles(tmp_path: Path) -> None:
    files = {
        "r": b'{"u": [2, 1], "v": ["2"]}',
        "i": b'{"1": ["<a_1>", "<b_1>"], "2": ["<a_1>", "<b_1>"]}',
        "m": b'{"2": {"title": "Two", "brand": "B", "x": 1}}',
    }
    source = _read(tmp_path, files, format="semantic-ids", reviews="r", index="i", metadata="m")
    assert _frame(source).rows() == [
        ("u", "2", None, 0, 0),
        ("u", "1", None, 1, 1),
        ("v", "2", None, 0, 2),
    ]
    assert source.items.rows() == [
        ("1", None, None, ["<a_1>", "<b_1>"]),
        ("2", "Two", "B", ["<a_1>", "<b_1>"]),
    ]
    assert source.notes["index"]["items_beyond_distinct_ids"] == 1
    with pytest.raises(DataError, match="user 'u' occurs in an earlier file"):
        _read(tmp_path, files, format="semantic-ids", reviews=("r", "r"), index="i")
    with pytest.raises(DataError, match=r"i:1: item '1' has the tokens \[\]"):
        _read(tmp_path, {**files, "i": b'{"1": []}'}, format="semantic-ids", reviews="r", index="i")


def test_a_full_disk_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(MachineError, match="cannot be written: No space left on device"):
        _reviews(tmp_path, _json(R18))
    assert not list((tmp_path / "scratch").iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no such file$"):
        _read(tmp_path, {}, format="amazon2018", reviews="absent")
