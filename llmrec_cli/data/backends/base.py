"""The interface of an engine: what polars and Spark have to provide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import narwhals as nw

Log: TypeAlias = nw.LazyFrame[Any]  # one row per interaction


@dataclass(frozen=True, slots=True)
class Engine:
    """Reads relations from parquet and writes them there; everything between is lazy.

    Attributes:
        backend: narwhals' name of it.
        address: how it calls a path of this machine.
        reading: what its parquet reader wants to be given.
    """

    backend: Literal["polars", "pyspark"]
    address: Callable[[Path], str] = str
    reading: Mapping[str, Any] = field(default_factory=dict)

    def scan(self, path: Path) -> Log:
        """A parquet file, or a relation that was written at a path, as a lazy frame."""
        return nw.scan_parquet(self.address(path), backend=self.backend, **self.reading)

    def written(self, log: Log, path: Path) -> Log:
        """Carry out ``log`` into ``path``, which does not exist yet, and scan that.

        Writing each step bounds memory and keeps lazy plans short.  A sorted relation stays sorted:
        polars writes one file, Spark a folder of parts in order (``parts``).
        """
        log.sink_parquet(self.address(path))
        return self.scan(path)


def list_parts(path: Path) -> list[Path]:
    """The parquet files behind a written relation, in the order of its rows."""
    if path.is_file():
        return [path]
    return sorted(path.glob("part-*.parquet"), key=lambda file: (_part_number(file), file.name))


def _part_number(part: Path) -> int:
    """Of Spark's ``part-00012-....parquet``; above 99,999 the names alone no longer sort."""
    return int(part.name.split("-")[1])
