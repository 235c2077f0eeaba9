"""Ordered relations: by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec_cli.data import splitting
from llmrec_cli.data.backends import POLARS
from llmrec_cli.data.backends.base import Log, list_parts
from llmrec_cli.data.schema import ITEM, ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID

LOG = pl.DataFrame(
    {
        USER_ID: ["b", "a", "b", "a", "b"],
        ITEM_ID: ["y", "x", "x", "gone", "y"],
        RATING: [1.0, None, 2.0, 3.0, 4.0],
        TIMESTAMP: [5, 7, 5, 1, 3],
        POSITION: [4, 3, 2, 1, 0],
    }
)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    LOG.write_parquet(tmp_path / "log.parquet")
    return POLARS.scan(tmp_path / "log.parquet")


def test_the_log_is_ordered_and_has_the_catalogues_indices(log: Log, tmp_path: Path) -> None:
    items = pl.DataFrame({ITEM_ID: ["x", "y"], ITEM: pl.Series([0, 1], dtype=pl.Int32)})
    path = splitting.sort_by_user(log, items, POLARS, tmp_path / "by-user")
    rows = pl.concat(splitting.read_batches(path)).rows()
    assert rows == [
        ("a", 0, None, 7, 3),
        ("b", 1, 4.0, 3, 0),
        ("b", 0, 2.0, 5, 2),
        ("b", 1, 1.0, 5, 4),
    ]


def test_sizes_and_moments(log: Log, tmp_path: Path) -> None:
    sizes = splitting.count_sizes(log)
    assert (sizes.size_S.tolist(), sizes.users_S.tolist()) == ([2, 3], [1, 1])
    assert sizes.total(sizes.size_S) == 5
    every = splitting.sort_moments(log, 0, POLARS, tmp_path / "every")
    assert pl.read_parquet(every).rows() == [(1, 1), (3, 0), (5, 2), (5, 4), (7, 3)]
    later = splitting.sort_moments(log, 2, POLARS, tmp_path / "later")
    assert pl.read_parquet(later).rows() == [(5, 4)]


def test_rows_at_ranks_are_found_across_batches_and_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "BATCH", 3)
    folder = tmp_path / "relation"
    folder.mkdir()
    for number, values in {99_999: [7], 0: range(5), 100_000: [8, 9], 1: [5, 6], 3: []}.items():
        frame = pl.DataFrame({POSITION: pl.Series(values, dtype=pl.Int64)})
        frame.write_parquet(folder / f"part-{number:05d}-x.c000.snappy.parquet")
    (folder / "_SUCCESS").touch()
    assert [len(batch) for batch in splitting.read_batches(folder)] == [3, 2, 2, 1, 2]
    for ranks in ([], [0], [2, 3, 5, 9], list(range(10))):
        found = splitting.read_rows_at(folder, np.array(ranks, np.int64))
        assert found[POSITION].to_list() == ranks
    assert len(list_parts(folder)) == 5
