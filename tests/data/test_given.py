"""Rows that come split: encoded as they are."""

from __future__ import annotations

import polars as pl
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.base import ROW_SCHEMA
from llmrec_cli.data.rows import SplitCounts, collect_items, count_pairs, encode_given_rows
from llmrec_cli.data.schema import HISTORY, ITEM, ITEM_ID, TARGET, USER, USER_ID
from llmrec_cli.errors import DataError

ITEMS = pl.DataFrame({ITEM_ID: ["a", "b", "c", "d"], ITEM: pl.Series(range(4), dtype=pl.Int32)})


def section(**keys: object) -> DataSection:
    files = {"train": ("t",), "test": ("e",), "valid": ("v",)}
    base = {"format": "split2023", "split": "given", "splits": files, "min_history": 0}
    return DataSection.model_validate(base | keys)


def rows(*given: tuple[str, str, str]) -> pl.DataFrame:
    """Rows (user, history joined, target)."""
    plain = [(user, list(past), target, 1, None) for user, past, target in given]
    return pl.DataFrame(plain, schema=ROW_SCHEMA, orient="row")


SOURCE = {
    "train": rows(("z", "", "a"), ("z", "axb", "c"), ("y", "a", "x"), ("z", "abca", "b")),
    "valid": rows(("z", "x", "d")),
    "test": rows(("x", "ab", "d"), ("y", "a", "b")),
}


def test_rows_keep_their_order_and_lose_only_unnamed_items() -> None:
    made, counts, cuts = encode_given_rows(SOURCE, ITEMS, section(history=3), seed=0)
    got = {name: part[[USER, HISTORY, TARGET]].rows() for name, part in made.items()}
    assert got == {
        "train": [(2, [], 0), (2, [0, 1], 2), (2, [1, 2, 0], 1)],
        "valid": [(2, [], 3)],
        "test": [(0, [0, 1], 3), (1, [0], 1)],  # users in order of user_id: x, y, z
    }
    assert list(counts["train"].values()) == [4, 1, 0, 1]
    assert list(counts["valid"].values()) == [1, 0, 0, 1]
    assert cuts["train"] == SplitCounts(unsampled=3, cut_rows=1, cut_items=1)  # "abca" to "bca"
    assert cuts["test"] == SplitCounts(unsampled=2)


def test_min_history_counts_what_is_left_and_sample_keeps_order() -> None:
    with pytest.raises(DataError, match=r"no valid row of 1 is left with data\.min_history = 1"):
        encode_given_rows(SOURCE, ITEMS, section(min_history=1), seed=0)
    made, _, cuts = encode_given_rows(SOURCE, ITEMS, section(sample={"train": 2}), seed=0)
    assert made["train"].height == 2
    assert cuts["train"].unsampled == 3
    assert made["train"][USER_ID].to_list() == ["z", "z"]


def test_occurring_items_are_those_of_rows_and_of_the_list() -> None:
    assert collect_items(SOURCE).to_list() == ["a", "b", "c", "d", "x"]
    assert collect_items(SOURCE, pl.Series(ITEM_ID, ["m", "a"])).to_list() == [*"abcdmx"]


def test_pairs_count_once_however_many_rows_show_them() -> None:
    made, _, _ = encode_given_rows(SOURCE, ITEMS, section(), seed=0)
    assert count_pairs(made["train"], 4).tolist() == [1, 1, 1, 0]
    assert count_pairs(made["test"], 4).tolist() == [2, 2, 0, 1]
