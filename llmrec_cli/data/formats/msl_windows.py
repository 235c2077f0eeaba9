"""MSL's prepared windows: ``user_id,item_ids,timestamp``, where the last id is the target."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.formats.base import ROW_SCHEMA, Locate, Source, read_names
from llmrec_cli.data.formats.checks import Clock, Fields, Interactions, check_interactions
from llmrec_cli.data.formats.delimited import Cells, Kinds, read_cells, read_header
from llmrec_cli.data.formats.parsing import make_fault, show_text
from llmrec_cli.data.formats.split2023 import read_splits
from llmrec_cli.data.schema import HISTORY, RATING, TARGET, TIMESTAMP, USER_ID

HEADER: Final = ["user_id", "item_ids", "timestamp"]
FIELDS: Final = Fields(user="user_id", item="item_ids", rating="", timestamp="timestamp")
_IDS: Final = re.compile(r"\[\s*[^\s,\[\]'\"]+(?:\s*,\s*[^\s,\[\]'\"]+)*\s*\]")


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read windows, and titles from ``id2name4Rec.json`` files (item id -> title) as metadata.

    Without validation files the latest tenth of the training windows becomes the validation
    split, as a global chronological split would have cut it.

    Raises:
        DataError: anything wrong in a file.
        RecipeError: no training or test windows are named.
    """
    del scratch  # these sources fit in memory
    rows, notes = read_splits(section, locate, read_window_file, ("train", "test"))
    if "valid" not in rows:
        rows["train"], rows["valid"] = cut_tail(rows["train"])
        notes["valid"] = {
            "rows": rows["valid"].height,
            "from": "the latest tenth of train by timestamp; ties by line, later lines first",
        }
    items, metadata = read_names(section.metadata, locate, section.item_fields)
    notes_of_all = {"splits": notes, "metadata": metadata}
    return Source(None, items, rows, notes_of_all, lists_catalogue=True)


def cut_tail(train: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the latest tenth of the rows (rounded up); both parts stay in file order."""
    order = np.argsort(train[TIMESTAMP].to_numpy(), kind="stable")
    late = np.zeros(train.height, dtype=bool)
    late[order[train.height - -(-train.height // 10) :]] = True
    return train.filter(pl.Series(~late)), train.filter(pl.Series(late))


def read_window_file(path: Path) -> tuple[pl.DataFrame, str]:
    """Rows of one windows file (``ROW_SCHEMA``), and the unit that its timestamps came in."""
    found = read_header(path)
    if found != HEADER:
        problem = f"expected the header {','.join(HEADER)}, found {show_text(','.join(found))}"
        raise make_fault(path, 1, problem)
    clock, frames = None, []
    for cells in read_cells(path, kinds=Kinds(times=("timestamp",))):
        clock, frame = _parse_windows(path, cells, clock)
        frames.append(frame)
    if not sum(frame.height for frame in frames):
        raise make_fault(path, 1, "the file has a header and no rows")
    return pl.concat(frames), clock.name if clock else ""


def _parse_windows(
    path: Path, cells: Cells, clock: Clock | None
) -> tuple[Clock | None, pl.DataFrame]:
    lists = enumerate(cells.strings("item_ids"))
    windows = [_parse_window(path, cells, index, cell) for index, cell in lists]
    batch = Interactions(
        users=cells.columns["user_id"],
        items=[window[-1] for window in windows],
        ratings=None,
        timestamps=cells.numbers["timestamp"],
        line_of=cells.line_of,
        clock=cells.clock,
    )
    checked = check_interactions(path, batch, FIELDS, clock)
    columns = {
        USER_ID: cells.strings("user_id"),
        HISTORY: [window[:-1] for window in windows],
        TARGET: [window[-1] for window in windows],
        TIMESTAMP: checked.millisecond_N,
        RATING: [None] * len(windows),
    }
    return checked.clock, pl.DataFrame(columns, schema=ROW_SCHEMA)


def _parse_window(path: Path, cells: Cells, index: int, cell: str) -> list[str]:
    if not _IDS.fullmatch(cell.strip()):
        problem = f'"item_ids" is {show_text(cell)}, expected a list such as [12, 7, 31]'
        raise make_fault(path, cells.line_of(index), problem)
    return [item.strip() for item in cell.strip()[1:-1].split(",")]
