"""All that a user has: every split, oldest first, the latest row as it stands."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from llmrec_cli.data.matching import items_of_user
from llmrec_cli.data.prepared import (
    Prepared,
    load_prepared,
    write_items,
    write_manifest,
    write_split,
)
from llmrec_cli.data.schema import HISTORY, RATING, TARGET, TIMESTAMP, USER, USER_ID
from llmrec_cli.errors import ArtefactError, DataError

Row = tuple[str, list[int], int, int | None]


def prepared(folder: Path, **splits: list[Row]) -> Prepared:
    for name in ("train", "valid", "test"):
        rows = splits.get(name, [])
        frame = pl.DataFrame(
            {
                USER: [0] * len(rows),
                USER_ID: [user for user, *_ in rows],
                HISTORY: [history for _, history, *_ in rows],
                TARGET: [target for _, _, target, _ in rows],
                TIMESTAMP: [time for *_, time in rows],
                RATING: [None] * len(rows),
            },
            schema={
                USER: pl.Int32,
                USER_ID: pl.String,
                HISTORY: pl.List(pl.Int32),
                TARGET: pl.Int32,
                TIMESTAMP: pl.Int64,
                RATING: pl.Float64,
            },
        )
        write_split(folder, name, frame)
    ids = [f"i{n}" for n in range(10)]
    items = {"item": range(10), "item_id": ids, "title": ids, "brand": None, "tokens": None}
    write_items(folder, pl.DataFrame(items | {"count": 1}))
    write_manifest(folder, ("train", "valid", "test"), {"layout": 1})
    return load_prepared(folder)


def test_leave_one_out_gives_the_whole_sequence(tmp_path: Path) -> None:
    """Histories of at most 2: what the latest row has forgotten stands in earlier ones."""
    rows: dict[str, list[Row]] = {
        "train": [("u", [0], 1, 10), ("v", [9], 8, 5), ("u", [0, 1], 2, 20), ("u", [1, 2], 3, 30)],
        "valid": [("u", [2, 3], 4, 40)],
        "test": [("u", [3, 4], 5, 50)],
    }
    assert items_of_user(prepared(tmp_path, **rows), "u") == [0, 1, 2, 3, 4, 5]


def test_time_decides_and_not_the_split(tmp_path: Path) -> None:
    rows: dict[str, list[Row]] = {"train": [("u", [3], 4, 90)], "test": [("u", [0], 1, 10)]}
    assert items_of_user(prepared(tmp_path, **rows), "u") == [0, 1, 3, 4]


def test_without_times_the_splits_are_in_order(tmp_path: Path) -> None:
    rows: dict[str, list[Row]] = {"train": [("u", [0], 1, None)], "test": [("u", [1], 2, None)]}
    assert items_of_user(prepared(tmp_path, **rows), "u") == [0, 1, 2]


def test_repeats_stay_where_the_latest_row_has_them(tmp_path: Path) -> None:
    rows: dict[str, list[Row]] = {
        "train": [("u", [7, 1], 2, 1), ("u", [1, 2], 1, 2)],
        "test": [("u", [1, 2, 1], 2, 3)],
    }
    assert items_of_user(prepared(tmp_path, **rows), "u") == [7, 1, 2, 1, 2]


def test_an_unknown_user_is_an_error_with_the_nearest_ids(tmp_path: Path) -> None:
    rows: dict[str, list[Row]] = {"train": [("AB12", [0], 1, 1), ("XYZ", [0], 1, 1)]}
    found = prepared(tmp_path, **rows)
    with pytest.raises(DataError, match="user 'AB13': not among the 2 prepared ones; nearest: 'AB"):
        items_of_user(found, "AB13")


def test_rows_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    """Whoever makes a folder makes its hashes, too."""
    found = prepared(tmp_path, train=[("u", [0], 1, 10)])
    (tmp_path / "valid.parquet").write_bytes(b"PAR1 and rubbish")
    with pytest.raises(ArtefactError, match=r"not as it was prepared: .*parquet"):
        items_of_user(found, "u")
