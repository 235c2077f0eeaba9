"""Records of CSV files: line breaks in quotes, and what becomes of broken ones."""

from __future__ import annotations

import csv
import io
import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats import parsing, read_source
from llmrec_cli.data.formats.base import Source
from llmrec_cli.errors import DataError

Row = tuple[str, ...]
REVIEWS = "user_id,item_id,timestamp\nu,i,1547589356557\n"


def read_files(folder: Path, reviews: str, metadata: str = "", **keys: Any) -> Source:
    (folder / "scratch").mkdir(exist_ok=True)
    (folder / "reviews.csv").write_bytes(reviews.encode())
    (folder / "items.csv").write_bytes(metadata.encode())
    named = {"metadata": "items.csv"} if metadata else {}
    section: dict[str, Any] = {"format": "interactions", "reviews": "reviews.csv", **named, **keys}
    columns = {"title": "title", **section.pop("columns", {})}
    return read_source(
        DataSection.model_validate(section | {"columns": columns}),
        folder.joinpath,
        folder / "scratch",
    )


def read_items(folder: Path, text: str, **keys: Any) -> tuple[list[Row], int]:
    """Items and titles of a metadata file, and how many lines were left out."""
    source = read_files(folder, REVIEWS, text, on_bad_line="skip", **keys)
    return source.items.select("item_id", "title").rows(), source.notes["bad_lines"]["skipped"]


def read_interactions(folder: Path, text: str, **keys: Any) -> tuple[list[Row], int]:
    """Users, items, ratings and times, and how many lines were left out."""
    source = read_files(folder, text, on_bad_line="skip", columns={"rating": "rating"}, **keys)
    assert source.interactions is not None
    rows = pl.read_parquet(source.interactions).drop("position").rows()
    return rows, source.notes["bad_lines"]["skipped"]


def test_a_cell_in_quotes_may_hold_line_breaks(tmp_path: Path) -> None:
    text = 'item_id,title\ni1,"Title, first\n\nsecond,half"\r\ni2,"say ""hi""\n"\ni3,plain\n'
    assert read_items(tmp_path, text) == (
        [("i1", "Title, first second,half"), ("i2", 'say "hi"'), ("i3", "plain")],
        0,
    )


@pytest.mark.parametrize("block", [16, 50, 1000])
def test_a_record_may_go_on_in_the_next_block(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "BLOCK", block)
    rows = [(f"i{n}", f"one\ntwo,{n}\n\nthree" if n % 3 else f"plain {n}") for n in range(40)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("item_id", "title"), *rows])
    found, skipped = read_items(tmp_path, text.getvalue())
    assert (found, skipped) == ([(item, " ".join(title.split())) for item, title in rows], 0)


BROKEN = {
    "the closing quote is lost": 'i1,"Title, first\nsecond,half\ni2,"B, b"\ni3,C\n',
    "the closing quote is lost, three lines": 'i1,"A, a\nmid,dle\nlast,line\ni2,"B, b"\ni3,C\n',
    "the opening quote is lost": 'i1,Title\nsecond,half"\ni2,"B, b"\ni3,C\n',
    "the first line is lost": 'second,half"\ni2,"B, b"\ni3,C\n',
    "a quote too much": 'i1,"Ti"tle, first\nsecond,half"\ni2,"B, b"\ni3,C\n',
    "a comma is lost": 'i1"Title, first\nsecond,mid\nlast,half"\ni2,"B, b"\ni3,C\n',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_the_second_half_of_a_broken_record_is_no_item(text: str, tmp_path: Path) -> None:
    found, skipped = read_items(tmp_path, f"item_id,title\ni0,Good\n{text}")
    items = [item for item, _ in found]
    assert items[0] == "i0"
    assert items[-2:] == ["i2", "i3"]
    assert set(items) <= {"i0", "i1", "i2", "i3"}
    assert skipped == text.count("\n") + 1 - len(items)  # every line is an item or counted
    with pytest.raises(DataError, match=r"items\.csv:[34]: "):
        read_files(tmp_path, REVIEWS, f"item_id,title\ni0,Good\n{text}")


def test_with_numbers_a_line_behind_a_broken_record_shows_what_it_is(tmp_path: Path) -> None:
    head = "user_id,item_id,rating,timestamp,text\n"
    rows = ['u1,i1,5,1547589356557,"nice,', "but, not, really, so", 'u2,i2,4,1547589356558,"x, y"']
    text = head + "\n".join([*rows, "u3,i3,3,1547589356559,"]) + "\n"
    found, skipped = read_interactions(tmp_path, text)
    assert [row[:2] for row in found] == [("u2", "i2"), ("u3", "i3")]
    assert skipped == 2


def test_an_id_does_not_span_lines(tmp_path: Path) -> None:
    text = "user_id,item_id,rating,timestamp\n" + "".join(
        f"u{n},{quote}i{n}{end},5,1547589356557\n"
        for n, quote, end in ((0, "", ""), (1, '"', ""), (2, "", ""), (3, "", '"'), (4, "", ""))
    )
    found, skipped = read_interactions(tmp_path, text)
    assert ([row[1] for row in found], skipped) == (["i0", "i2", "i4"], 2)
    with pytest.raises(DataError, match=r'reviews\.csv:3: no valid CSV \("item_id" has a line br'):
        read_files(tmp_path, text)


def test_a_quote_that_never_closes_does_not_take_the_file_with_it(tmp_path: Path) -> None:
    head = "user_id,item_id,rating,timestamp\n"
    rows = [f"u,i{n},5,1547589356557\n" for n in range(2000)]
    rows[7] = 'u,"i7,5,1547589356557\n'
    found, skipped = read_interactions(tmp_path, head + "".join(rows))
    assert (len(found), skipped) == (1999, 1)


WORDS = st.lists(st.sampled_from(["a", "b c", "9", ",", "\n", 'd"e']), min_size=1, max_size=8)
# A title that begins with a line break is left out: its opening quote may as well close another.
TITLES = WORDS.map("".join).filter(lambda t: bool(t.strip("\n ,")) and not t.startswith("\n"))
CELL = r'(?:[^",\n]*|"(?:[^"]|"")*")'
RECORD = re.compile(rf"{CELL},{CELL}\n")
ACTS = ("none", "cut", "insert a quote", "lose a closing quote")


@given(
    titles=st.lists(TITLES, min_size=2, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    act=st.sampled_from(ACTS),
    where=st.integers(0, 10**6),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_has_no_row_that_it_did_not_have(
    titles: list[str], quoting: Any, act: str, where: int, tmp_path: Path
) -> None:
    """Of one damage: what is read was a row before, or is the row that was damaged.

    One damage is left out: a quote that makes a record of a title's second line.  Nobody can tell
    such a line from a record behind a broken one.
    """
    records = []
    for number, title in enumerate(titles):
        record = io.StringIO()
        writer = csv.writer(record, lineterminator="\n", quoting=quoting)
        writer.writerow((f"id{number}", title))
        records.append(record.getvalue())
    whole, ends = "".join(records), list(accumulate(map(len, records)))
    at = where % (len(whole) + 1)
    damaged = whole
    if act == "cut":
        damaged = whole[:at]
    elif act == "insert a quote":
        damaged = whole[:at] + '"' + whole[at:]
        lines = {damaged.rfind("\n", 0, at) + 1, damaged.find("\n", at) + 1}  # its own, the next
        lines -= {0, *(end + (end > at) for end in ends)}
        assume(not any(RECORD.match(damaged, line) for line in lines))
    elif act == "lose a closing quote":
        closing = [end - 2 for end in ends if whole[end - 2] == '"']
        at = closing[where % len(closing)] if closing else 0
        damaged = whole[:at] + whole[at + 1 :] if closing else whole
    found, skipped = read_items(tmp_path, f"item_id,title\n{damaged}", bad_line_limit=1000)
    touched = {f"id{n}" for n, end in enumerate(ends) if end - len(records[n]) <= at <= end}
    right = {f"id{n}": " ".join(title.split()) for n, title in enumerate(titles)}
    for item, title in found:
        name = item.replace('"', "")
        assert title == right.get(name) or name.startswith(tuple(touched))
    if act == "none":
        assert ({row[0]: row[1] for row in found}, skipped) == (right, 0)
