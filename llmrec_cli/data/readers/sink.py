"""Interactions on their way to parquet: checked, in milliseconds, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.data.columns import ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.data.readers.block import STRICT, BadLines, fault
from llmrec_cli.data.readers.checks import Fields, Interactions, check, milliseconds
from llmrec_cli.data.readers.source import Notes
from llmrec_cli.errors import LineFault, MachineError

SCHEMA: Final = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (RATING, pa.float64()),
        (TIMESTAMP, pa.int64()),
        (POSITION, pa.int64()),
    ]
)
ROW_GROUP: Final = 1 << 16  # rows


class Sink:
    """Context manager around the parquet file; it appears under its name only when complete."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for writing, under a temporary name beside it."""
        self.path = path
        self.count = 0
        self._part = path.with_name(path.name + ".part")
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        try:
            self._writer = pq.ParquetWriter(
                self._part, SCHEMA, compression="lz4", use_dictionary=False
            )
        except OSError as error:
            raise _unwritable(path, error) from error

    def __enter__(self) -> Sink:
        """Nothing more to do: the file is open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish the file, or leave nothing behind."""
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                os.replace(self._part, self.path)
        except OSError as trouble:
            if kind is None:
                raise _unwritable(self.path, trouble) from trouble
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, batch: Interactions, times: np.ndarray[Any, Any]) -> None:
        """Append checked interactions at ``times`` (ms); positions continue over all files."""
        rows = len(batch.users)
        rating = pa.nulls(rows, pa.float64()) if batch.ratings is None else batch.ratings
        position = np.arange(self.count, self.count + rows)
        columns = [batch.users, batch.items, rating, times, position]
        arrays = [pa.array(c, type_) for c, type_ in zip(columns, SCHEMA.types, strict=True)]
        self._pending.append(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self.count += rows
        self._pending_rows += rows
        if self._pending_rows >= ROW_GROUP:
            try:
                self._flush()
            except OSError as error:
                raise _unwritable(self.path, error) from error

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
        self._pending, self._pending_rows = [], 0


def _unwritable(path: Path, error: OSError) -> MachineError:
    return MachineError(f"{path}: cannot be written: {error.strerror or error}")


def deliver(
    path: Path,
    batches: Iterable[Interactions],
    fields: Fields,
    sink: Sink,
    calendar: bool = True,
    bad: BadLines = STRICT,
) -> Notes:
    """Check one file's interactions, bring their times to milliseconds and write them.

    Args:
        path: the file, for messages.
        batches: its interactions, in order.
        fields: what the file calls its columns.
        sink: where they go.
        calendar: timestamps are dates; False takes them as they are (an order, not a time).
        bad: what becomes of interactions that are wrong.

    Returns:
        Counts and the timestamp unit.

    Raises:
        DataError: empty id, rating outside 1..5, timestamp outside 1990..2100, mixed units, or no
            interactions at all.
    """
    unit, before = None, sink.count
    for raw in batches:
        batch, kept = raw, list[int]()
        while True:
            try:
                checked = check(path, batch, fields)
                unit, times = _times(path, checked, fields, unit, calendar, sink.count)
                break
            except LineFault as error:
                bad.skip(error)
                kept = kept or list(range(len(raw.users)))
                del kept[error.index or 0]
                batch = raw.only(kept)
        sink.write(checked, times)
    if sink.count == before:
        raise fault(path, 1, "the file has no interactions")
    return {"interactions": sink.count - before, "timestamp": unit or "order in the file"}


def _times(
    path: Path, batch: Interactions, fields: Fields, unit: str | None, calendar: bool, position: int
) -> tuple[str | None, np.ndarray[Any, Any]]:
    """Times of a batch in milliseconds, or places in an order; and the unit of the file."""
    if batch.timestamps is None:
        return unit, np.arange(position, position + len(batch.users))
    if calendar:
        return milliseconds(path, batch, fields.timestamp, unit)
    return unit, np.asarray(batch.timestamps)
