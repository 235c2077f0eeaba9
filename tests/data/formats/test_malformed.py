"""Every malformed file is refused in one line with file and line, and leaves no parquet behind."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats import read_source
from llmrec_cli.errors import DataError
from tests.experiments import typed

R18 = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1529193600}
R23 = {"user_id": "A1", "parent_asin": "B1", "rating": 4.0, "timestamp": 1547589356557}
M18 = {"asin": "B1", "title": "One", "brand": "Maker", "also_buy": []}
M23 = {"parent_asin": "B1", "title": "One", "store": "Maker", "details": {"Brand": "True Maker"}}
M14 = "{'asin': 'B1', 'title': 'One', 'imUrl': 'x'}"
HEAD23 = "user_id,parent_asin,rating,timestamp"
CSV23 = "A1,B1,5.0,1547589356557"


def _json(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _text(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def _r18(**changes: object) -> bytes:
    return _json(R18, {**R18, **changes})


def _r23(**changes: object) -> bytes:
    return _json(R23, {**R23, **changes})


def _without(row: dict[str, Any], field: str) -> bytes:
    return _json(row, {name: value for name, value in row.items() if name != field})


def _equal_rows() -> bytes:
    """Parquet of one interaction, very often."""
    names = ("user_id", "item_id")
    ids = {name: pa.repeat("x", 1_100_000).dictionary_encode() for name in names}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**ids, "timestamp": pa.repeat(1529193600, 1_100_000)}), sink)
    return bytes(sink.getvalue())


ZIPPED = gzip.compress(_json(R18))


@dataclass(frozen=True)
class Case:
    """A bad file (as reviews or metadata of a format), the bad line, and words of the message."""

    form: str
    data: bytes
    line: int
    words: str
    role: str = "reviews"


CASES = {
    # JSON lines
    "rating is text": Case(
        "amazon2018", _r18(overall="five"), 2, "\"overall\" is 'five', expected a number"
    ),
    "rating is null": Case(
        "amazon2014", _r18(overall=None), 2, '"overall" is None, expected a number'
    ),
    "rating is NaN": Case("amazon2018", _r18(overall=float("nan")), 2, "NaN is no JSON number"),
    "rating is infinite": Case(
        "amazon2023", _r23(rating=float("inf")), 2, "Infinity is no JSON number"
    ),
    "rating overflows": Case(
        "amazon2023", _json(R23) + _json(R23).replace(b"4.0", b"1e999"), 2, "expected a number"
    ),
    "rating 0": Case("amazon2018", _r18(overall=0), 2, '"overall" is 0, expected a number 1..5'),
    "rating 6": Case("amazon2023", _r23(rating=6), 2, '"rating" is 6, expected a number 1..5'),
    "rating -1": Case("amazon2014", _r18(overall=-1), 2, '"overall" is -1'),
    "id is a number": Case("amazon2018", _r18(asin=5), 2, '"asin" is 5, expected a string'),
    "user is null": Case(
        "amazon2023", _r23(user_id=None), 2, '"user_id" is None, expected a string'
    ),
    "id is empty": Case("amazon2018", _r18(asin=""), 2, '"asin" is empty, expected an id'),
    "user is empty": Case("amazon2023", _r23(user_id=""), 2, '"user_id" is empty'),
    "id is half a surrogate pair": Case("amazon2018", _r18(asin="B\ud83d"), 2, "not valid Unicode"),
    "time is text": Case(
        "amazon2018",
        _r18(unixReviewTime="today"),
        2,
        "\"unixReviewTime\" is 'today', expected a number",
    ),
    "time is a fraction": Case(
        "amazon2023", _r23(timestamp=1.5), 2, '"timestamp" is 1.5, expected seconds, milliseconds'
    ),
    "time is true": Case("amazon2018", _r18(unixReviewTime=True), 2, '"unixReviewTime" is True'),
    "time is negative": Case(
        "amazon2018", _r18(unixReviewTime=-1529193600), 2, "between the years 1990 and 2100"
    ),
    "time is 0": Case(
        "amazon2014", _json({**R18, "unixReviewTime": 0}), 1, '"unixReviewTime" is 0'
    ),
    "time is in picoseconds": Case(
        "amazon2023",
        _json({**R23, "timestamp": 1547589356557000000000}),
        1,
        "milliseconds, microseconds or nanoseconds between the years 1990 and 2100",
    ),
    "time has 500 digits": Case(
        "amazon2018",
        _json(R18) + _json(R18).replace(b"1529193600", b"9" * 500),
        2,
        '"unixReviewTime" is',
    ),
    "units are mixed": Case(
        "amazon2018",
        _r18(unixReviewTime=1529193600000),
        2,
        "in milliseconds, but the lines before are in seconds",
    ),
    "units are mixed, ms first": Case(
        "amazon2023",
        _r23(timestamp=1547589356),
        2,
        "in seconds, but the lines before are in milliseconds",
    ),
    "no user": Case("amazon2018", _without(R18, "reviewerID"), 2, 'has no "reviewerID"'),
    "no time": Case("amazon2023", _without(R23, "timestamp"), 2, 'has no "timestamp"'),
    "line cut short": Case("amazon2018", _json(R18) + _json(R18)[:40], 2, "invalid JSON"),
    "line missing its quote": Case(
        "amazon2018", _json(R18) + b'{"reviewerID: 1}\n', 2, "invalid JSON"
    ),
    "pretty-printed": Case(
        "amazon2018", json.dumps(R18, indent=1).encode(), 1, "one whole object on this line"
    ),
    "two objects on a line": Case(
        "amazon2018", _json(R18) + _json(R18).strip() + _json(R18), 2, "Extra data"
    ),
    "two objects on a line, beside a blank one": Case(
        "amazon2018", _json(R18) + b"\n" + _json(R18).strip() + _json(R18), 3, "Extra data"
    ),
    "half a surrogate pair in a field's name": Case(
        "amazon2018", b'{"re\\ud800": 1}\n', 1, "a field's name is not valid Unicode"
    ),
    "array": Case("amazon2018", json.dumps([R18]).encode(), 1, "a JSON array"),
    "array after a line": Case("amazon2018", _json(R18, [R18]), 2, "a JSON array"),
    "number": Case("amazon2018", _json(R18, 17), 2, "17 is no object"),
    "CSV as JSON": Case(
        "amazon2018", _text(HEAD23, CSV23), 1, "CSV files have formats of their own"
    ),
    "HTML as JSON": Case("amazon2023", b"\n<html>Not found</html>\n", 2, "no JSON object"),
    "nested too deeply": Case(
        "amazon2018",
        _json(R18) + b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        2,
        "nested too deeply",
    ),
    "Latin-1": Case("amazon2018", _json(R18) + b'{"reviewerID": "\xe9"}\n', 2, "not UTF-8"),
    "UTF-16": Case("amazon2018", _json(R18).decode().encode("utf-16"), 1, "this is UTF-16 text"),
    "UTF-16 without its mark": Case(
        "amazon2014", _json(R18, R18).decode().encode("utf-16-le"), 1, "invalid JSON"
    ),
    "bzip2": Case("amazon2018", bz2.compress(_json(R18)), 1, "this is bzip2 data"),
    "xz": Case("amazon2023", lzma.compress(_json(R23)), 1, "this is xz data"),
    "zip": Case("amazon2023", b"PK\x03\x04rest", 1, "this is a zip archive"),
    "NUL in a line": Case(
        "amazon2018", _json(R18) + b'{"reviewerID": "A\0"}\n', 2, "Invalid control character"
    ),
    "NULs": Case("amazon2014", _json(R18) + b"\0" * 99 + b"\n", 2, "is no JSON object"),
    "commas between objects": Case(
        "amazon2018", _json(R18).replace(b"}", b"},") * 2, 1, "Extra data"
    ),
    "lone carriage returns": Case(
        "amazon2018", _json(R18, R18).replace(b"\n", b"\r"), 1, "Extra data"
    ),
    "rating is a string": Case("amazon2018", _r18(overall="5.0"), 2, "expected a number"),
    "time is a string": Case("amazon2023", _r23(timestamp="1547589356557"), 2, "expected a number"),
    "time is after 2100": Case(
        "amazon2014", _r18(unixReviewTime=4_102_444_810), 2, "between the years 1990 and 2100"
    ),
    "0 bytes": Case("amazon2018", b"", 1, "empty"),
    "gzip of nothing": Case("amazon2018", gzip.compress(b""), 1, "no lines"),
    "blank lines only": Case("amazon2018", b"\n \n", 1, "no interactions"),
    "gzip cut short": Case("amazon2018", gzip.compress(_json(*[R18] * 99))[:-8], 100, "truncated"),
    "gzip with a wrong sum": Case(
        "amazon2018", ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:], 1, "incorrect data check"
    ),
    "gzip with a wrong length": Case(
        "amazon2014", ZIPPED[:-1] + b"\x09", 1, "incorrect length check"
    ),
    "gzip and rubbish": Case("amazon2018", ZIPPED + b"rubbish", 2, "the gzip data is corrupt"),
    "gzip in gzip": Case("amazon2018", gzip.compress(ZIPPED), 1, "not UTF-8"),
    "2023 as 2018": Case("amazon2018", _json(R23), 1, "this is an amazon2023 review"),
    "2018 as 2023": Case(
        "amazon2023", _json(R18), 1, "this is an amazon2014 review or an amazon2018 review"
    ),
    "metadata as reviews": Case("amazon2018", _json(M18), 1, "this is amazon2018 metadata"),
    # Python literals
    "literal computes": Case(
        "amazon2014", b"{'asin': __import__('os').getcwd()}", 1, "names something or computes"
    ),
    "literal cut short": Case(
        "amazon2014", b"{'asin': 'B1', 'title': 'On", 1, "unterminated string"
    ),
    "literal too long": Case(
        "amazon2014", b"{'asin': '" + b"B" * 300_000 + b"'}", 1, "above 256 KiB"
    ),
    "literal too deep": Case(
        "amazon2014", b"{'a': " + b"[" * 10_000 + b"]" * 10_000 + b"}", 1, "Python literal"
    ),
    "literal of many signs": Case(
        "amazon2014", b"{'a': " + b"-" * 20_000 + b"1}", 1, "nested too deeply"
    ),
    "literal with NUL": Case("amazon2014", b"{'a': '\0'}", 1, "not a Python literal"),
    "literal as 2018": Case(
        "amazon2018", M14.encode(), 1, "a Python literal, as in amazon2014", "metadata"
    ),
    # metadata
    "reviews as metadata": Case(
        "amazon2023", _json(R23), 1, "this is an amazon2023 review", "metadata"
    ),
    "2018 reviews as metadata": Case(
        "amazon2018", _json(R18), 1, "review; expected amazon2018 metadata", "metadata"
    ),
    "2018 metadata as 2023": Case(
        "amazon2023", _json(M18), 1, "this is amazon2018 metadata", "metadata"
    ),
    "2023 metadata as 2018": Case(
        "amazon2018", _json(M23), 1, "this is amazon2023 metadata", "metadata"
    ),
    "title is a number": Case(
        "amazon2018",
        _json(M18, {**M18, "title": 5}),
        2,
        '"title" is 5, expected a string or null',
        "metadata",
    ),
    "brand is a list": Case(
        "amazon2023",
        _json({**M23, "details": {"Brand": ["a"]}}),
        1,
        '"details.Brand" is',
        "metadata",
    ),
    "metadata's id is half a surrogate pair": Case(
        "amazon2018", _json(M18, {**M18, "asin": "B\ud83d"}), 2, '"asin" is', "metadata"
    ),
    # ratings
    "too few cells": Case(
        "ratings2014", _text("A1,B1,5.0,1393545600", "A1,B1,5.0"), 2, "3 cells, expected 4"
    ),
    "too many cells": Case(
        "ratings2018", _text("B1,A1,5.0,1393545600,x"), 1, "5 cells, expected 4"
    ),
    "CSV rating is text": Case(
        "ratings2014",
        _text("A1,B1,5.0,1393545600", "A1,B1,x,1393545600"),
        2,
        "\"rating\" is 'x', expected a number",
    ),
    "CSV rating with a separator of units": Case(
        "ratings2023", _text(HEAD23, CSV23.replace("5.0", "5.\x1f")), 2, '"rating" is'
    ),
    "CSV rating is NaN": Case(
        "ratings2023", _text(HEAD23, CSV23.replace("5.0", "nan")), 2, "\"rating\" is 'nan'"
    ),
    "CSV rating is empty": Case(
        "ratings2023", _text(HEAD23, CSV23.replace("5.0", "")), 2, "\"rating\" is ''"
    ),
    "CSV rating 9": Case(
        "ratings2023", _text(HEAD23, CSV23, "A,B,9,1547589356557"), 3, '"rating" is 9'
    ),
    "CSV id is empty": Case(
        "ratings2023", _text(HEAD23, CSV23, ",B1,5.0,1547589356557"), 3, '"user_id" is empty'
    ),
    "CSV quote is open": Case(
        "ratings2023", _text(HEAD23, '"A1,B1,5.0,1547589356557'), 2, "no valid CSV"
    ),
    "columns are swapped": Case(
        "ratings2014",
        _text("B004LLIKVU,A31UBHTUUIFJUT,5.0,1393545600"),
        1,
        'is this "ratings2018"?',
    ),
    "columns are swapped, 2018": Case(
        "ratings2018",
        _text("A31UBHTUUIFJUT,B004LLIKVU,5.0,1393545600"),
        1,
        'is this "ratings2014"?',
    ),
    "2023 ratings as 2014": Case("ratings2014", _text(HEAD23, CSV23), 1, 'format "ratings2023"'),
    "2014 ratings as 2023": Case(
        "ratings2023", _text("A1,B1,5.0,1393545600"), 1, "expected the header"
    ),
    "splits as ratings": Case(
        "ratings2023", _text(f"{HEAD23},history", f"{CSV23},"), 1, 'format "split2023"'
    ),
    "header where none is": Case(
        "ratings2018", _text("item,user,rating,timestamp"), 1, "\"rating\" is 'rating'"
    ),
    "semicolons": Case("ratings2014", _text("A1;B1;5.0;1529193600"), 1, "1 cells, expected 4"),
    "header only": Case("ratings2023", _text(HEAD23), 1, "no interactions"),
    "JSON as CSV": Case("ratings2018", _json(R18), 1, "JSON, expected CSV"),
    # interactions
    "no such column": Case(
        "interactions",
        _text("user_id,itemid,timestamp", "1,2,1547589356557"),
        1,
        'did you mean "itemid"?',
    ),
    "repeated column": Case(
        "interactions", _text("user_id,item_id,item_id", "1,2,3"), 1, "repeated column names"
    ),
    "id is a fraction": Case(
        "interactions",
        _json({"user_id": 1.5, "item_id": 2, "timestamp": 1547589356557}),
        1,
        '"user_id" is 1.5',
    ),
    "id is absent": Case(
        "interactions",
        _json({"user_id": None, "item_id": 2, "timestamp": 1547589356557}),
        1,
        '"user_id" is empty',
    ),
    "no parquet inside": Case("interactions", b"PAR1 and rubbish", 1, "no readable parquet file"),
    "a million rows in a kilobyte": Case("interactions", _equal_rows(), 1, "a parquet bomb?"),
    # semantic IDs
    "no object": Case("semantic-ids", b"[1, 2]", 1, "expected one JSON object: user id"),
    "list of lists": Case("semantic-ids", b'{"1": [[2]]}', 1, "expected one JSON object: user id"),
    "object cut short": Case("semantic-ids", b'{"1": [1],\n"2": [1', 2, "invalid JSON"),
}


def _section(form: str, role: str, good: Path) -> DataSection:
    sources: dict[str, Any] = {"reviews": ("bad",)}
    if role == "metadata":
        good.write_bytes(_json(R23 if form == "amazon2023" else R18))
        sources = {"reviews": ("good",), "metadata": ("bad",)}
    if form == "semantic-ids":
        good.write_bytes(b"{}")
        sources["index"] = "good"
    return DataSection(format=form, **sources)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refused_in_one_line_and_nothing_left(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").write_bytes(case.data)
    section = _section(case.form, case.role, tmp_path / "good")
    recipe = {"data": section.model_dump(exclude_defaults=True, exclude_none=True)}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    ended = typed(capsys, "prepare", "recipe.toml", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    start = f"llmrec prepare: error: bad:{case.line}: "
    assert ended.err.startswith(start), ended.err
    assert case.words in ended.err
    assert ended.err.removesuffix("\n").isprintable()  # hence one line
    assert len(ended.err) < 500
    assert set(tmp_path.rglob("*")) == before


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    torn = pa.array([b"A1", b"\xbb"]).view(pa.string())
    times = pa.array([1547589356557] * 2)
    table = pa.table({"user_id": torn, "item_id": ["1", "2"], "timestamp": times})
    pq.write_table(table, tmp_path / "rows.parquet")
    section = DataSection(format="interactions", reviews=("rows.parquet",))
    with pytest.raises(DataError, match=r"rows.parquet:1: no readable parquet file \(.*utf-8"):
        read_source(section, lambda name: tmp_path / name, tmp_path)


def test_a_bad_second_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(_json(*[R18] * 1000))
    (tmp_path / "bad").write_bytes(_r18(overall=9))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    section = DataSection(format="amazon2018", reviews=("good", "bad"))
    with pytest.raises(DataError, match=r"bad:2: "):
        read_source(section, lambda name: tmp_path / name, scratch)
    assert not list(scratch.iterdir())
