"""``metrics.jsonl``: one JSON object per update, cut back to the checkpoint on resume."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrec_cli.engine.trackers import Trackers
from llmrec_cli.files import machine_errors, sync_file, write_atomically


class MetricsLog:
    """Append-only JSON lines, each with its ``step``; trackers get the same rows."""

    def __init__(
        self, path: Path, *, writes: bool = True, trackers: Trackers | None = None
    ) -> None:
        self.path = path
        self.writes = writes  # one process does
        self.trackers = trackers or Trackers()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        if self.writes:
            with machine_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(row), allow_nan=False) + "\n")
            self.trackers.log(row)

    def sync(self) -> None:
        """Make the rows so far durable, before a checkpoint that stands on them is."""
        if self.writes and self.path.exists():
            with machine_errors(self.path):
                sync_file(self.path)

    def keep_until(self, step: int) -> None:
        """Drop rows after ``step``: a resumed run writes them again."""
        if not self.writes:
            return
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        if self.path.exists():
            text = "".join(json.dumps(row) + "\n" for row in kept)
            write_atomically(self.path, text.encode())
        self.trackers.start(kept, seen=max((row["step"] for row in rows), default=0))

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows; a line torn by a crash, or that is no row, is ignored."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and type(row.get("step")) is int:
                    rows.append(row)
        return rows
