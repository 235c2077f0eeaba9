"""Users' items in order, one user a line, as SASRec, P5 and TIGER exchange them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats import parsing, read_source
from llmrec_cli.data.formats.base import Source
from llmrec_cli.errors import DataError
from tests.data.formats.small_sources import read_small

LOG = b"u1 B2 7806397051 B2\n\n  007\tB2  B1 \nu3 B1\n"
TITLES = b"B1 a red  kite\n7806397051 &amp; more\nB2\n\n"


def read(folder: Path, log: bytes = LOG, titles: bytes = TITLES, **more: Any) -> Source:
    named = {"format": "sequences", "reviews": "log", "metadata": "titles"}
    return read_small(folder, {"log": log, "titles": titles}, **named, **more)


def rows_of(source: Source) -> list[tuple[str, str, int]]:
    assert source.interactions is not None
    frame = pl.read_parquet(source.interactions)
    assert frame["rating"].null_count() == frame.height
    assert frame["position"].to_list() == list(range(frame.height))
    return frame.select("user_id", "item_id", "timestamp").rows()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_line_is_a_user_and_the_items_in_order(tmp_path: Path, packed: bool) -> None:
    source = read(tmp_path, gzip.compress(LOG, mtime=0) if packed else LOG)
    assert rows_of(source) == [
        ("u1", "B2", 0),
        ("u1", "7806397051", 1),
        ("u1", "B2", 2),
        ("007", "B2", 0),
        ("007", "B1", 1),
        ("u3", "B1", 0),
    ]
    titles = dict(source.items.select("item_id", "title").rows())
    assert titles == {"B1": "a red kite", "7806397051": "& more", "B2": None}
    assert source.notes["reviews"]["log"]["timestamp"] == "position in the user's line"
    assert source.notes["metadata"]["rows_without_title"] == 1


def test_blocks_of_lines_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = b"".join(b"user%d i%d j k\n" % (n, n) for n in range(500))
    whole = rows_of(read(tmp_path, log))
    monkeypatch.setattr(parsing, "BLOCK", 300)
    assert rows_of(read(tmp_path, log)) == whole
    assert len(whole) == 1500


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"u1 B1\nu2\n", "log:2: the line is 'u2'; expected a user and the user's items"),
        (b"user_id,item_id\n1,2\n", "log:1: the line is 'user_id,item_id'; expected a user"),
        (b"[1, 2]\n", "log:1: the file begins with '[1,', which is JSON; expected a user"),
        (b"u1 B1\nu2 B1\nu1 B2\n", "log:3: user 'u1' has an earlier line, too"),
        (b"u1 \xff\n", "log:1: "),
        (b"\n\n", "log"),
    ],
)
def test_a_bad_line_is_one_line(tmp_path: Path, log: bytes, said: str) -> None:
    with pytest.raises(DataError, match=r"^[^\n]+$") as caught:
        read(tmp_path, log)
    assert said in str(caught.value)


def test_bad_lines_can_be_left_out_but_no_user_is_there_twice(tmp_path: Path) -> None:
    source = read(tmp_path, b"u1 B1\nu2\nu3 B2\n", on_bad_line="skip")
    assert [user for user, _, _ in rows_of(source)] == ["u1", "u3"]
    assert source.notes["bad_lines"]["skipped"] == 1
    with pytest.raises(DataError, match="earlier line"):
        read(tmp_path, b"u1 B1\nu1 B2\n", on_bad_line="skip")


def test_a_user_in_two_files_is_refused(tmp_path: Path) -> None:
    files = {"log": b"u1 B1\n", "more": b"u2 B1\nu1 B2\n"}
    with pytest.raises(DataError, match="more:2: user 'u1' has an earlier line"):
        read_small(tmp_path, files, format="sequences", reviews=("log", "more"))


def test_beauty_2014_is_five_core_already(shared_data: Path, tmp_path: Path) -> None:
    section = DataSection(
        format="sequences", reviews=("user_sequence.txt.gz",), metadata=("item_text.txt.gz",)
    )
    folder = shared_data / "amazon2014-beauty"
    source = read_source(section, lambda name: folder / name, tmp_path)
    with gzip.open(folder / "user_sequence.txt.gz", "rt") as lines:
        expected = [line.split() for line in lines]
    assert [len(words) - 1 for words in expected][:3] == [
        sum(user == words[0] for user, _, _ in rows_of(source)) for words in expected[:3]
    ]
    found = pl.DataFrame(rows_of(source), schema=["user", "item", "place"], orient="row")
    assert (found.height, found["user"].n_unique(), found["item"].n_unique()) == (
        198_502,
        22_363,
        12_101,
    )
    assert found["item"].to_list() == [item for _, *items in expected for item in items]
