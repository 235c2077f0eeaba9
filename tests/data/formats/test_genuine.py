"""The readers on genuine files, with the counts that are known of them."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats import read_source
from llmrec_cli.data.formats.base import Source
from llmrec_cli.errors import DataError

BEAUTY = "amazon2023-all-beauty"


def _read(folder: Path, scratch: Path, **section: Any) -> Source:
    return read_source(DataSection(**section), lambda name: folder / name, scratch)


def _frame(source: Source) -> pl.DataFrame:
    assert source.interactions is not None
    return pl.read_parquet(source.interactions)


def test_gift_cards_2018(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "amazon2018-gift-cards"
    reviews, metadata = "Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz"
    source = _read(folder, tmp_path, format="amazon2018", reviews=reviews, metadata=metadata)
    frame = _frame(source)
    with gzip.open(folder / reviews) as file:  # the slow, obvious way
        expected = [json.loads(line) for line in file]
    assert frame.height == 2972
    assert frame["user_id"].to_list() == [row["reviewerID"] for row in expected]
    assert frame["item_id"].to_list() == [row["asin"] for row in expected]
    assert frame["rating"].to_list() == [row["overall"] for row in expected]
    assert frame["timestamp"].to_list() == [row["unixReviewTime"] * 1000 for row in expected]
    assert frame["position"].to_list() == list(range(2972))
    assert source.items.height == 1547
    titles = dict(source.items.select("item_id", "title").iter_rows())
    assert "Maggiano's Gift Card" in titles.values()
    assert all(title == title.strip() for title in titles.values())
    assert source.notes["reviews"] == {reviews: {"interactions": 2972, "timestamp": "seconds"}}
    json.dumps(source.notes)


def test_digital_music_2014_literals(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "amazon2014-digital-music"
    metadata = "meta_Digital_Music.json.gz"
    source = _read(
        folder,
        tmp_path,
        format="amazon2014",
        reviews="reviews_Digital_Music_5.json.gz",
        metadata=metadata,
    )
    frame = _frame(source)
    assert (frame.height, frame["user_id"].n_unique(), frame["item_id"].n_unique()) == (
        6908,
        2490,
        382,
    )
    assert source.items["item_id"][0] == "5555991584"
    assert source.notes["metadata"]["rows"] == 7419
    assert source.notes["metadata"]["rows_without_title"] == 98
    assert source.items["title"].null_count() == 98
    with gzip.open(folder / metadata) as file:
        some = [ast.literal_eval(line.decode()) for line in list(file)[::50]]
    brands = dict(source.items.select("item_id", "brand").iter_rows())
    assert all((brands[row["asin"]] or "") == row.get("brand", "").strip() for row in some)


def test_all_beauty_2023_raw_pair_equals_rating_only(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / BEAUTY
    raw, csv = tmp_path / "raw", tmp_path / "csv"
    raw.mkdir()
    csv.mkdir()
    metadata = "meta_All_Beauty.jsonl.gz"
    a = _read(folder, raw, format="amazon2023", reviews="All_Beauty.jsonl.gz", metadata=metadata)
    b = _read(
        folder,
        csv,
        format="ratings2023",
        reviews="All_Beauty.rating_only.csv.gz",
        metadata=metadata,
    )
    order = ["user_id", "timestamp", "item_id"]
    left, right = (_frame(s).drop("position").sort(order) for s in (a, b))
    assert left.height == 2535
    assert left.equals(right)
    assert a.items.equals(b.items)
    assert a.items.height == 356
    assert a.items["brand"].count() >= 282


def test_published_splits_2023(shared_data: Path, tmp_path: Path) -> None:
    splits = {name: f"published.{name}.csv.gz" for name in ("train", "valid", "test")}
    source = _read(shared_data / BEAUTY, tmp_path, format="split2023", splits=splits, split="given")
    assert source.rows is not None
    assert {name: rows.height for name, rows in source.rows.items()} == {
        "train": 2029,
        "valid": 253,
        "test": 253,
    }
    train = source.rows["train"]
    assert train.filter(pl.col("history").list.len() == 0).height == 253  # never NaN or [""]
    assert source.rows["test"]["history"][0].to_list()[:2] == ["B07J3GH1W1", "B07W397QG4"]


def test_verbatim_2023_lines_join_on_parent_asin(shared_data: Path, tmp_path: Path) -> None:
    name = "All_Beauty.verbatim_675users.2023.jsonl.gz"
    source = _read(shared_data / "odd-samples", tmp_path, format="amazon2023", reviews=name)
    frame = _frame(source)
    with gzip.open(shared_data / "odd-samples" / name) as file:
        expected = [json.loads(line) for line in file]
    assert frame["item_id"].to_list() == [row["parent_asin"] for row in expected]
    assert sum(row["asin"] != row["parent_asin"] for row in expected) == 204


def test_odd_2014_heads_and_several_files(shared_data: Path, tmp_path: Path) -> None:
    head = "reviews_Musical_Instruments.head100.2014.json"
    source = _read(
        shared_data / "odd-samples",
        tmp_path,
        format="amazon2014",
        reviews=(head, head),
        metadata="meta_Musical_Instruments.head100.2014.json",
    )
    assert _frame(source)["position"].to_list() == list(range(200))
    assert source.items.height == 100


def test_an_array_of_metadata_is_refused(shared_data: Path, tmp_path: Path) -> None:
    name = "meta_Gift_Cards.wrapped_in_array.2018.json"
    with pytest.raises(DataError, match=r"array\.2018\.json:1: a JSON array; expected .*jq -c"):
        _read(
            shared_data,
            tmp_path,
            format="amazon2018",
            reviews="amazon2018-gift-cards/Gift_Cards_5.json.gz",
            metadata=f"odd-samples/{name}",
        )


def test_msl_books_windows(shared_data: Path, tmp_path: Path) -> None:
    source = _read(
        shared_data / "msl-books",
        tmp_path,
        format="msl-windows",
        split="given",
        splits={"train": "train.csv.gz", "test": "test.csv.gz"},
        metadata="id2name4Rec.json.gz",
    )
    assert source.rows is not None
    heights = {name: rows.height for name, rows in source.rows.items()}
    assert heights == {"train": 35060 - 3506, "valid": 3506, "test": 4383}
    train, valid = (source.rows[name]["timestamp"].to_list() for name in ("train", "valid"))
    assert max(train) <= min(valid)
    assert source.rows["test"]["target"][0] == "5056"
    assert source.rows["test"]["history"][0].to_list()[:3] == ["5492", "1101", "3816"]
    assert source.items.height == 6344
    assert source.items["title"].null_count() == 1
    assert "latest tenth" in source.notes["splits"]["valid"]["from"]


def test_instruments_semantic_ids(shared_data: Path, tmp_path: Path) -> None:
    source = _read(
        shared_data / "sid-instruments",
        tmp_path,
        format="semantic-ids",
        reviews="Instruments.inter.json.gz",
        index="Instruments.index.json.gz",
    )
    frame = _frame(source)
    assert (frame.height, frame["user_id"].n_unique()) == (206_153, 24_772)
    assert frame["timestamp"].max() == 217  # the longest history has 218 items
    assert source.items.height == 9922
    assert source.items["tokens"][0].to_list() == ["<a_128>", "<b_241>", "<c_146>", "<d_235>"]
    assert source.notes["index"]["items_beyond_distinct_ids"] == 25
