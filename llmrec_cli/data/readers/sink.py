"""Interactions on their way to parquet: checked, in milliseconds, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.data.columns import FINER, ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.data.readers.block import STRICT, BadLines, fault
from llmrec_cli.data.readers.checks import Checked, Fields, Interactions, check
from llmrec_cli.data.readers.source import Notes
from llmrec_cli.errors import MachineError

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
            raise _write_error(path, error) from error

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
                raise _write_error(self.path, trouble) from trouble
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, batch: Checked) -> None:
        """Append interactions; positions continue over all files, behind what is finer than ms."""
        rows = len(batch.users)
        position_N = np.arange(self.count, self.count + rows)
        time_N = position_N if batch.millisecond_N is None else batch.millisecond_N
        if batch.finer_N is not None:
            position_N = position_N + batch.finer_N * FINER
        if batch.rating_N is None:
            rating = pa.nulls(rows, pa.float64())
        else:  # NaN would count as the highest of all ratings
            rating = pa.array(batch.rating_N, from_pandas=True)
        columns = [batch.users, batch.items, rating, time_N, position_N]
        arrays = [pa.array(c, type_) for c, type_ in zip(columns, SCHEMA.types, strict=True)]
        self._pending.append(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self.count += rows
        self._pending_rows += rows
        if self._pending_rows >= ROW_GROUP:
            try:
                self._flush()
            except OSError as error:
                raise _write_error(self.path, error) from error

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
        self._pending, self._pending_rows = [], 0


def _write_error(path: Path, error: OSError) -> MachineError:
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
        fields: what the file calls its columns, and the scale of its ratings.
        sink: where they go.
        calendar: timestamps are dates; False takes them as they are (an order, not a time).
        bad: what becomes of interactions that are wrong.

    Returns:
        Counts, the timestamp unit, and of ratings without a promised scale what was found.

    Raises:
        DataError: as ``check``, or no interactions at all.
    """
    clock, before, ratings = None, sink.count, _Ratings()
    for raw in batches:
        batch = raw if calendar else replace(raw, timestamps=None)
        checked = check(path, batch, fields, clock, bad)
        if not calendar:
            checked = replace(checked, millisecond_N=np.asarray(raw.timestamps, np.int64))
        clock = checked.clock
        ratings.add(checked)
        sink.write(checked)
    if sink.count == before:
        raise fault(path, 1, "the file has no interactions")
    notes: Notes = {
        "interactions": sink.count - before,
        "timestamp": clock.name if clock else "order in the file",
    }
    if fields.scale is None and ratings.seen:
        notes["ratings"] = ratings.notes()
    return notes


@dataclass
class _Ratings:
    """What is known of the ratings of a file."""

    seen: bool = False  # whether there is a column of them
    lowest: float = math.inf
    highest: float = -math.inf
    absent: int = 0

    def add(self, batch: Checked) -> None:
        if batch.rating_N is None:
            return
        self.seen = True
        rated_N = batch.rating_N[~np.isnan(batch.rating_N)]
        self.absent += len(batch.rating_N) - len(rated_N)
        self.lowest = float(rated_N.min(initial=self.lowest))
        self.highest = float(rated_N.max(initial=self.highest))

    def notes(self) -> Notes:
        rated = self.lowest <= self.highest
        return {
            "lowest": self.lowest if rated else None,
            "highest": self.highest if rated else None,
            "absent": self.absent,
        }
