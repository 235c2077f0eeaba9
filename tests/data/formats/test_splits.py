"""Sources that come split: what is read, what is cut, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_cli.config.data import DataSection, Splits
from llmrec_cli.data.formats import read_source
from llmrec_cli.data.formats.msl_windows import cut_tail
from llmrec_cli.errors import DataError, RecipeError

HEAD23 = "user_id,parent_asin,rating,timestamp"
CSV23 = "A1,B1,5.0,1547589356557"


def _text(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


WINDOWS = "user_id,item_ids,timestamp"
SPLIT = f"{HEAD23},history"
SPLIT_CASES = {
    "ids are no list": (
        "msl-windows",
        _text(WINDOWS, "1,7,1519603200"),
        2,
        "expected a list such as",
    ),
    "list is empty": (
        "msl-windows",
        _text(WINDOWS, "1,[],1519603200"),
        2,
        "expected a list such as",
    ),
    "list has a hole": (
        "msl-windows",
        _text(WINDOWS, '1,"[1,,2]",1519603200'),
        2,
        "expected a list",
    ),
    "other header": ("msl-windows", _text("user,items,time"), 1, "expected the header"),
    "no windows": ("msl-windows", _text(WINDOWS), 1, "a header and no rows"),
    "window at time 5": ("msl-windows", _text(WINDOWS, '1,"[1, 2]",5'), 2, '"timestamp" is 5'),
    "ratings as splits": ("split2023", _text(HEAD23, CSV23), 1, 'this is format "ratings2023"'),
    "split without rows": ("split2023", _text(SPLIT), 1, "a header and no rows"),
    "split rating 7": ("split2023", _text(SPLIT, "A,B,7,1547589356557,B2 B3"), 2, '"rating" is 7'),
    "split without target": ("split2023", _text(SPLIT, "A,,5,1547589356557,B2"), 2, "is empty"),
}


@pytest.mark.parametrize(("form", "data", "line", "words"), SPLIT_CASES.values(), ids=SPLIT_CASES)
def test_bad_split_files(tmp_path: Path, form: str, data: bytes, line: int, words: str) -> None:
    (tmp_path / "bad").write_bytes(data)
    splits = {"train": "bad", "valid": "bad", "test": "bad"}
    sources: dict[str, Any] = {"format": form, "split": "given", "splits": splits}
    metadata = ("bad",) if form == "msl-windows" else ()
    section = DataSection(**sources, metadata=metadata)
    with pytest.raises(DataError) as caught:
        read_source(section, lambda name: tmp_path / name, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'bad'}:{line}: ")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40))
def test_the_tail_is_the_latest_tenth_and_ties_break_by_line(times: list[int]) -> None:
    train = pl.DataFrame({"timestamp": times, "line": range(len(times))})
    early, late = cut_tail(train)
    order = sorted(range(len(times)), key=lambda line: (times[line], line))
    count = int(np.ceil(len(times) / 10))
    assert late["line"].to_list() == sorted(order[-count:])
    assert early["line"].to_list() == sorted(order[:-count])


def test_windows_end_with_the_target(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(_text(WINDOWS, '007,"[12, 7, 31]",1519603200', "8,[5],1519603201"))
    (tmp_path / "n").write_bytes(b'{"12": " A &amp; B ", "7": "", "31": null}')
    splits = Splits(train=("w", "w"), valid=("w",), test=("w",))
    section = DataSection(format="msl-windows", split="given", splits=splits, metadata=("n",))
    source = read_source(section, lambda name: tmp_path / name, tmp_path)
    assert source.interactions is None
    assert source.rows is not None
    assert source.rows["valid"].rows() == [
        ("007", ["12", "7"], "31", 1519603200000, None),
        ("8", [], "5", 1519603201000, None),
    ]
    assert source.rows["train"].height == 4
    assert source.items["title"].to_list() == ["A & B", None, None]


def test_a_first_purchase_has_an_empty_history(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(_text(SPLIT, f"{CSV23},", f"{CSV23},B2 B3"))
    splits = Splits(train=("s",), valid=("s",), test=("s",))
    section = DataSection(format="split2023", split="given", splits=splits)
    rows = read_source(section, lambda name: tmp_path / name, tmp_path).rows
    assert rows is not None
    assert rows["test"]["history"].to_list() == [[], ["B2", "B3"]]
    assert rows["test"]["rating"].to_list() == [5.0, 5.0]


def test_split2023_needs_all_three(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(_text(SPLIT, f"{CSV23},"))
    splits = Splits(train=("s",), test=("s",))
    section = DataSection(format="split2023", split="given", splits=splits)
    with pytest.raises(RecipeError, match=r"\[data.splits\] valid is empty"):
        read_source(section, lambda name: tmp_path / name, tmp_path)


def test_ids_that_tables_write_for_no_value_are_noted_by_file(tmp_path: Path) -> None:
    parts = {}
    for name, row in {
        "train": "nan,B2,5,{},B1 NA",
        "valid": "A,B2,5,{},B1",
        "test": "A,null,5,{},",
    }.items():
        file = tmp_path / f"{name}.csv"
        file.write_bytes(_text(SPLIT, row.format("1547589356557")))
        parts[name] = str(file)
    section = DataSection(format="split2023", splits=Splits.model_validate(parts), split="given")
    notes = read_source(section, Path, tmp_path).notes["splits"]
    found = {name: notes[name][parts[name]].get("ids_that_may_be_missing") for name in parts}
    assert found == {
        "train": {"user id": {"nan": 1}, "item id": {"NA": 1}},
        "valid": None,
        "test": {"item id": {"null": 1}},
    }
