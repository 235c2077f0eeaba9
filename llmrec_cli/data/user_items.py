"""All that a user of the prepared data has, over every split."""

from __future__ import annotations

import polars as pl

from llmrec_cli.data.columns import HISTORY, TARGET, TIMESTAMP, USER_ID, split_file
from llmrec_cli.data.matching import nearest
from llmrec_cli.data.store import Prepared, readable
from llmrec_cli.errors import DataError


def items_of_user(prepared: Prepared, user_id: str) -> list[int]:
    """Catalogue indices of a user's items, oldest first.

    The last ones are exactly the history and target of the user's latest row; what only earlier
    rows show stands before them, each item once.

    Raises:
        DataError: no such user; the message names the nearest ids.
        ArtefactError: a split cannot be read.
    """
    files = [prepared.folder / split_file(name) for name in prepared.splits]
    parts = [
        pl.scan_parquet(file, glob=False)
        .filter(pl.col(USER_ID) == user_id)
        .select(HISTORY, TARGET, TIMESTAMP)
        for file in files
    ]
    # Times may be missing (given rows): then the order of splits and rows is that of time.
    with readable(prepared.folder):
        rows = pl.concat(parts).collect().sort(TIMESTAMP, maintain_order=True)
    if rows.is_empty():
        raise DataError(_describe_unknown(prepared, user_id))
    *before, latest = [
        [*history, target] for history, target in rows.select(HISTORY, TARGET).iter_rows()
    ]
    older = dict.fromkeys(item for row in before for item in row)
    return [item for item in older if item not in set(latest)] + latest


def _describe_unknown(prepared: Prepared, user_id: str) -> str:
    files = [prepared.folder / split_file(name) for name in prepared.splits]
    parts = [pl.scan_parquet(file, glob=False).select(USER_ID) for file in files]
    known = pl.concat(parts).unique().collect()[USER_ID].sort().to_list()
    near = ", ".join(map(repr, nearest(user_id, known)))
    return f"user {user_id!r}: not among the {len(known):,} prepared ones; nearest: {near}"
