"""Bytes follow from the rows: neither portions nor their makers can be told from a file."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from llmrec_cli.data import table_files
from llmrec_cli.data.schema import DISLIKED, HISTORY, RATING, ROW, TARGET, TIMESTAMP, USER, USER_ID
from llmrec_cli.data.table_files import ROWS_SCHEMA, TableFile, rows_schema

N = 300_000  # so that times, all different, fill pages
ROWS = pl.DataFrame(
    {
        USER: range(N),
        USER_ID: [f"user {n % 97}" for n in range(N)],
        HISTORY: pl.Series([list(range(n % 3)) for n in range(N)], dtype=pl.List(pl.Int32)),
        TARGET: [n % 31 for n in range(N)],
        TIMESTAMP: [10**12 + n * n for n in range(N)],
        RATING: [None if n % 3 else n / 7 for n in range(N)],
    }
)


def written(path: Path, portions: list[int]) -> bytes:
    with TableFile(path, ROWS_SCHEMA) as file:
        first = 0
        for size in portions:
            file.append(ROWS[first : first + size])
            first += size
        file.append(ROWS[first:])
    assert file.rows == N
    return path.read_bytes()


@pytest.mark.parametrize("group", [table_files.ROW_GROUP, 10**6])
def test_portions_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(table_files, "ROW_GROUP", group)
    whole = written(tmp_path / "whole", [])
    assert written(tmp_path / "few", [1, 0, 262_143, 262, 2]) == whole
    assert written(tmp_path / "many", [1009] * 290) == whole
    found = pq.ParquetFile(tmp_path / "whole")
    groups = [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)]
    assert groups == ([N] if group > N else [group, N - group])
    table = pl.read_parquet(tmp_path / "whole")
    assert table[ROW].to_list() == list(range(N))
    assert table.drop(ROW).equals(ROWS)


def test_an_error_is_not_hidden_by_closing(tmp_path: Path) -> None:
    def write() -> None:
        with TableFile(tmp_path / "file", ROWS_SCHEMA) as file:
            file.append(ROWS)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write()


def test_optional_columns_follow_the_others() -> None:
    assert rows_schema([DISLIKED, HISTORY]).names == [*ROWS_SCHEMA.names, DISLIKED]
