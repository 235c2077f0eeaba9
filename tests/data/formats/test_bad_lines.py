"""``data.on_bad_line = "skip"``: bad lines are left out, counted and quoted, up to a limit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import polars as pl
import pyarrow.csv
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.data.formats import base, parsing, read_source
from llmrec_cli.data.formats.base import Source
from llmrec_cli.data.formats.parsing import BLOCK, Block
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.pipeline.prepare import prepare_data

GOOD: dict[str, dict[str, Any]] = {
    "amazon2014": {"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1400000000},
    "amazon2018": {"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1500000000},
    "amazon2023": {"user_id": "A", "parent_asin": "B", "rating": 4.0, "timestamp": 1547589356557},
}
RATING = {"amazon2014": "overall", "amazon2018": "overall", "amazon2023": "rating"}
TIME = {"amazon2014": "unixReviewTime", "amazon2018": "unixReviewTime", "amazon2023": "timestamp"}


def line(form: str, item: str, **changes: Any) -> bytes:
    """A good review of ``item`` but for ``changes`` (``rating``, ``time``, or a key)."""
    names = {"rating": RATING[form], "time": TIME[form]}
    name = "parent_asin" if form == "amazon2023" else "asin"
    row = GOOD[form] | {name: item} | {names.get(key, key): v for key, v in changes.items()}
    return json.dumps(row).encode()


def bad_lines(form: str) -> list[tuple[bytes, str]]:
    """Bad lines of every kind that a reader can meet, and words of what is said of each."""
    return [
        (b'{"half": ', "invalid JSON"),
        (line(form, "x", rating="five"), "expected a number"),
        (line(form, "x", rating=9), "expected a number 1..5"),
        (line(form, "x", time=-5), "between the years 1990 and 2100"),
        (line(form, ""), "is empty, expected an id"),
        (line(form, "x").replace(b'"A"', b'"\xff"'), "not UTF-8"),
        (line(form, "x").replace(b'"A"', b'"\\ud800"'), "not valid Unicode"),
        (b"[1, 2]", "a JSON array"),
        (b"x,y,z", "no JSON object"),
    ]


def source(form: str, path: Path, tmp_path: Path, **keys: Any) -> Source:
    section = DataSection(format=form, reviews=[str(path)], on_bad_line="skip", **keys)  # type: ignore[arg-type]
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return read_source(section, Path, scratch)


def items_of(found: Source) -> list[str]:
    assert found.interactions is not None
    return pl.read_parquet(found.interactions)["item_id"].to_list()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("form", GOOD)
def test_bad_lines_of_every_kind_are_left_out_and_the_good_ones_stay_in_order(
    form: str, zipped: bool, tmp_path: Path
) -> None:
    written, expected = list[bytes](), list[str]()
    for number, (bad, _) in enumerate(bad_lines(form)):
        written += [line(form, f"B{number}"), bad]
        expected.append(f"B{number}")
    data = b"\n".join([*written, line(form, "last")]) + b"\n"
    path = tmp_path / "reviews.json"
    path.write_bytes(gzip.compress(data) if zipped else data)
    found = source(form, path, tmp_path)
    assert items_of(found) == [*expected, "last"]
    notes = found.notes["bad_lines"]
    assert notes["skipped"] == len(bad_lines(form))
    assert len(notes["first"]) == 5
    said = dict(entry.removeprefix("reviews.json:").split(": ", 1) for entry in notes["first"])
    kinds = {str(2 * n + 2): words for n, (_, words) in enumerate(bad_lines(form))}
    assert all(kinds[number] in words for number, words in said.items())


@pytest.mark.parametrize("form", GOOD)
def test_what_is_left_out_is_what_stops_otherwise(form: str, tmp_path: Path) -> None:
    """The control: each of the lines alone ends a strict reading, with the same words."""
    for bad, words in bad_lines(form):
        path = tmp_path / "reviews.json"
        path.write_bytes(line(form, "B1") + b"\n" + bad + b"\n")
        strict = DataSection(format=form, reviews=[str(path)])  # type: ignore[arg-type]
        (tmp_path / "scratch").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=rf"reviews\.json:2: .*{words}"):
            read_source(strict, Path, tmp_path / "scratch")


def test_line_numbers_stay_true_behind_bad_lines_and_over_blocks(tmp_path: Path) -> None:
    filler = line("amazon2018", "B", reviewText="x" * 1000)
    count = BLOCK // len(filler) + 10  # the last lines are in the second block
    rows = [filler] * count
    rows[3], rows[count - 2] = b"{", line("amazon2018", "B", rating=0)
    path = tmp_path / "long.json"
    path.write_bytes(b"\n".join(rows) + b"\n")
    found = source("amazon2018", path, tmp_path)
    assert len(items_of(found)) == count - 2
    places = [entry.split(": ")[0] for entry in found.notes["bad_lines"]["first"]]
    assert places == ["long.json:4", f"long.json:{count - 1}"]


def test_more_than_the_limit_stops_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    path.write_bytes(b"\n".join([line("amazon2018", "B"), b"{", b"{", b"{"]))
    assert source("amazon2018", path, tmp_path, bad_line_limit=3).notes["bad_lines"]["skipped"] == 3
    words = r"reviews\.json:4: .*; 2 other bad lines are left out already, the most that"
    with pytest.raises(DataError, match=words):
        source("amazon2018", path, tmp_path, bad_line_limit=2)


def test_the_first_bad_lines_are_those_with_the_lowest_numbers(tmp_path: Path) -> None:
    """Each kind of fault is looked for in a whole block, one kind behind the other."""
    kinds = [bad for bad, _ in bad_lines("amazon2018")]
    good = [line("amazon2018", "B")]
    places = set[str]()
    for number, ordered in enumerate((kinds, kinds[::-1], kinds[4:] + kinds[:4])):
        path = tmp_path / f"reviews{number}.json"
        path.write_bytes(b"\n".join(good + ordered))
        first = source("amazon2018", path, tmp_path).notes["bad_lines"]["first"]
        assert [entry.split(": ")[0] for entry in first] == [
            f"{path.name}:{number}" for number in range(2, 7)
        ]
        places |= {entry.split(": ")[1] for entry in first}
    assert len(places) > 5  # every kind came first once
    both = DataSection(
        format="amazon2018",
        reviews=[str(tmp_path / "reviews1.json"), str(tmp_path / "reviews0.json")],  # type: ignore[arg-type]
        on_bad_line="skip",
    )
    first = read_source(both, Path, tmp_path / "scratch").notes["bad_lines"]["first"]
    assert all(entry.startswith("reviews1.json:") for entry in first)  # in the order of the recipe


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("again", ["user_id,item_id,rating", "\ufeffuser_id , item_id,rating"])
def test_the_header_once_more_is_a_bad_line(again: str, rated: bool, tmp_path: Path) -> None:
    """``cat a.csv b.csv`` repeats it; without times, no cell shows that it is no interaction."""
    path = tmp_path / "joined.csv"
    path.write_text(f"user_id,item_id,rating\nu,a,1\n{again}\nu,b,2\nuser_id,item_id,3\n")
    columns = {"timestamp": False, **({"rating": "rating"} if rated else {})}
    found = source("interactions", path, tmp_path, columns=columns)
    assert items_of(found) == ["a", "b", "item_id"]
    assert found.notes["bad_lines"] == {
        "skipped": 1,
        "first": ["joined.csv:3: the header once more, expected one header per file"],
    }
    strict = DataSection(format="interactions", reviews=[str(path)], columns=columns)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"joined\.csv:3: the header once more"):
        read_source(strict, Path, tmp_path / "scratch")


def test_the_header_once_more_in_quotes_is_a_bad_line_too(tmp_path: Path) -> None:
    path = tmp_path / "joined.csv"
    header = '"user_id","item_id"\n'
    path.write_text(f'{header}"u","a"\n{header}"u","b"\n')
    found = source("interactions", path, tmp_path, columns={"timestamp": False})
    assert items_of(found) == ["a", "b"]
    assert found.notes["bad_lines"]["skipped"] == 1


@pytest.mark.parametrize("skip", [False, True])
def test_a_header_that_is_not_utf8_is_named_as_that(skip: bool, tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("user_id,item_id,timestamp,größe\nu,i,1547589356,1\n".encode("latin-1"))
    keys: dict[str, Any] = {"on_bad_line": "skip"} if skip else {}
    section = DataSection(format="interactions", reviews=[str(path)], **keys)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"latin\.csv:1: byte 29 of the line is 0xf6: not UTF-8"):
        read_source(section, Path, tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(line("amazon2018", "B") * 9)[:-9], "truncated"),
        (b"PAR1" + b"x" * 20, "a parquet file"),
        (b"", "0 bytes"),
        (b"{\n{\n", "has no interactions"),
        (b"\n".join([line("amazon2023", "B")] * 200), "this is an amazon2023 review"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_stops_all_the_same(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "reviews.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words):
        source("amazon2018", path, tmp_path)


def test_bad_lines_of_csv_files_and_of_anybodys_columns(tmp_path: Path) -> None:
    rows = ["user_id,parent_asin,rating,timestamp", "A,B1,5.0,1547589356557", "A,B2,five,1"]
    rows += [
        "A,B3,5.0",
        'A,"B4,5.0,1547589356557',
        "A,B5,4.0,1547589356557",
        "A,,4.0,1547589356557",
    ]
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(rows) + "\n")
    found = source("ratings2023", path, tmp_path)
    assert (items_of(found), found.notes["bad_lines"]["skipped"]) == (["B1", "B5"], 4)
    columns = {"user": "user_id", "item": "parent_asin", "timestamp": "timestamp"}
    found = source("interactions", path, tmp_path, columns={**columns, "rating": "rating"})
    assert items_of(found) == ["B1", "B5"]


def test_bad_metadata_lines_are_counted_with_the_others(tmp_path: Path) -> None:
    reviews, metadata = tmp_path / "reviews.json", tmp_path / "meta.json"
    reviews.write_bytes(line("amazon2018", "B") + b"\n{\n")
    metadata.write_bytes(b'{"asin": "B", "title": "One"}\n{"asin": "C", "title": 5}\n')
    found = source("amazon2018", reviews, tmp_path, metadata=[str(metadata)])
    assert found.notes["bad_lines"]["skipped"] == 2
    assert found.items["title"].to_list() == ["One"]


def test_prepare_tells_and_the_manifest_counts(tmp_path: Path) -> None:
    reviews, lines = tmp_path / "reviews.json", list[str]()
    rows = [
        line("amazon2018", f"B{i}", reviewerID=f"A{u}", time=1500000000 + i)
        for u in range(6)
        for i in range(6)
    ]
    reviews.write_bytes(b"\n".join([*rows, b'{"half": ']) + b"\n")
    words = [f"data.reviews=['{reviews}']", "data.metadata=[]", "data.untitled=id"]
    words += [f"out={tmp_path}", "data.on_bad_line=skip"]
    recipe = read_recipe("quickstart", words)
    prepared = prepare_data(recipe, Path, lines.append)
    assert prepared.manifest["reader"]["bad_lines"]["skipped"] == 1
    assert any(text.startswith("left out: 1 bad line: reviews.json:37:") for text in lines)


def test_formats_that_are_published_whole_have_no_lines_to_leave_out() -> None:
    words = ["data.on_bad_line=skip", "data.format=semantic-ids", "data.index=x.json"]
    with pytest.raises(RecipeError, match='format "semantic-ids" is published whole'):
        read_recipe("quickstart", words)


def test_a_bad_line_among_good_ones_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    section = DataSection(format="amazon2018", reviews=(str(path),))
    good, bad = line("amazon2018", "B"), line("amazon2018", "B", overall="five")
    advice = r'"overall" is \'five\', expected a number 1..5; fix the line or set data.on_bad_line'
    path.write_bytes(b"\n".join([good, bad]))
    with pytest.raises(DataError, match=advice):
        read_source(section, Path, tmp_path)
    path.write_bytes(line("amazon2023", "B"))
    with pytest.raises(
        DataError, match=r"this is an amazon2023 review; expected an amazon2018 review$"
    ):
        read_source(section, Path, tmp_path)


def count_calls(place: object, name: str, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts the calls of a function or method, which still does its work."""
    counted, work = Mock(), getattr(place, name)

    def call(*args: Any, **more: Any) -> Any:
        counted()
        return work(*args, **more)

    monkeypatch.setattr(place, name, call)
    return counted


@pytest.mark.parametrize("form", GOOD)
def test_a_bad_json_line_is_looked_at_once_and_no_good_one_with_it(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [line(form, f"B{n}") if n % 3 else b'{"half": ' for n in range(60)]
    path = tmp_path / "reviews.json"
    path.write_bytes(b"\n".join(rows))
    slow = count_calls(parsing, "_decode_line", monkeypatch)
    assert len(items_of(source(form, path, tmp_path))) == 40
    assert slow.call_count == 20


def test_bad_literals_cost_no_good_one_a_second_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [f"{json.loads(line('amazon2014', f'B{n}')) | {'text': chr(34)}!r}" for n in range(40)]
    rows = [row for pair in zip(good, ["{'half': "] * 40, strict=True) for row in pair]
    path = tmp_path / "reviews.json"
    path.write_text("\n".join(rows))
    slow = count_calls(parsing, "parse_literal", monkeypatch)
    assert len(items_of(source("amazon2014", path, tmp_path))) == 40
    assert slow.call_count == 80


@pytest.mark.parametrize("bad", ["A,B", "A,B,5.0,15475893,x", "A,B,five,1547589356557"])
def test_bad_csv_lines_cost_one_more_reading_of_their_block(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"A,B{n},5.0,1547589356557" if n % 3 else bad for n in range(60)]
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(["user_id,parent_asin,rating,timestamp", *rows]))
    parsed = count_calls(pyarrow.csv, "read_csv", monkeypatch)
    assert len(items_of(source("ratings2023", path, tmp_path))) == 40
    assert parsed.call_count <= 3  # the last line has no newline, and is a block


def test_a_batch_with_wrong_values_is_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: list[dict[str, Any]] = [{"rating": 9}, {"time": -5}, {"reviewerID": ""}]
    rows = [line("amazon2018", f"B{n}", **wrong[n % 3]) for n in range(60)]
    path = tmp_path / "reviews.json"
    path.write_bytes(b"\n".join([*rows, line("amazon2018", "good"), b""]))
    checked = count_calls(base, "check_interactions", monkeypatch)
    assert items_of(source("amazon2018", path, tmp_path)) == ["good"]
    assert checked.call_count == 1


def test_lines_that_are_not_utf8_are_found_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [line("amazon2018", f"B{n}") + (b"" if n % 3 else b"\xff") for n in range(60)]
    path = tmp_path / "reviews.json"
    path.write_bytes(b"\n".join(rows))
    blanked = count_calls(Block, "without", monkeypatch)
    found = source("amazon2018", path, tmp_path)
    assert len(items_of(found)) == 40
    assert blanked.call_count <= 1


def test_metadata_without_ids_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, metadata = tmp_path / "reviews.json", tmp_path / "meta.json"
    path.write_bytes(line("amazon2018", "B"))
    metadata.write_bytes(b'{"title": "no id"}\n' * 50)
    walked = count_calls(Block, "lines", monkeypatch)
    found = source("amazon2018", path, tmp_path, metadata=[str(metadata)])
    assert found.notes["metadata"]["rows_without_id"] == 50
    assert walked.call_count < 10
