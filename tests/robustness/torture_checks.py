"""What must be true of a run's folder whenever the run is killed, and when it has ended."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrec_cli.errors import ArtefactError, MachineError
from llmrec_cli.training.checkpoint import STATE, all_of
from llmrec_cli.utils.files import check_folder

RESUMED = re.compile(r"^resumed from .*step-(\d+)$", re.MULTILINE)
RIGHT_CODES = {0, -signal.SIGKILL, MachineError.exit_code}  # the last: left alone, or refused
CHANGING = {
    "metrics.jsonl": ("seconds", "valid_seconds"),
    # "probe" says how long it took, "variables" what a launcher sets for its ranks.
    "manifest.json": ("command", "cost", "git", "probe", "variables"),
}


@dataclass
class Watch:
    """The promises about one run, over all attempts at it.

    Args:
        folder: the run's.
        keep: checkpoints that are kept.
    """

    folder: Path
    keep: int
    newest: int = 0
    most: int = 0  # checkpoints that were there at once, ``min(keep, 2)`` at most
    problems: list[str] = field(default_factory=list)

    def killed(self) -> None:
        """Look at what a kill left."""
        valid = self._valid()
        self._require(len(valid) >= self.most, f"{len(valid)} valid checkpoints after {self.most}")
        newest = max(valid, default=0)
        self._require(newest >= self.newest, f"newest is step {newest}, was {self.newest}")
        self.most = max(self.most, min(len(valid), self.keep, 2))
        self.newest = max(newest, self.newest)
        best = json.loads((valid[newest] / STATE).read_bytes())["best_step"] if newest else None
        self._require(best is None or best in valid, f"the best, step {best}, is gone")
        steps = [row["step"] for row in _complete_rows(self.folder) if row["step"] <= newest]
        self._require(steps == list(range(1, newest + 1)), f"metrics rows {steps} up to {newest}")

    def attempted(self, said: str, codes: list[int], *, hung: bool, refused: int) -> None:
        """Look at how an attempt ended, and what it said about that and about its beginning."""
        self._require(not hung, f"it hung; {codes}")
        self._require(set(codes) <= RIGHT_CODES, f"exit codes {codes}")
        if refused and any(codes):
            lines = [line for line in said.splitlines() if ": error: " in line]
            named = [line for line in lines if os.strerror(refused) in line and "/torture" in line]
            right = len(named) == 1 and len(lines) == len(codes) and "Traceback" not in said
            self._require(right, f"a refusal was worded {lines}")
        self._require("damaged" not in said, "a damaged checkpoint was met")
        begun = [int(step) for step in RESUMED.findall(said)]
        self._require(all(step == self.newest for step in begun), f"{begun}, not {self.newest}")

    def finished(self, uninterrupted: Path) -> None:
        """Compare the whole experiment's folder with that of an uninterrupted run."""
        ours, theirs = contents(self.folder.parent), contents(uninterrupted)
        for name in sorted(set(ours) | set(theirs)):
            if name not in theirs:
                self.problems.append(f"{name}: left over")
            elif name not in ours:
                self.problems.append(f"{name}: missing")
            elif ours[name] != theirs[name]:
                self.problems.append(f"{name}: differs from the uninterrupted run's")

    def _valid(self) -> dict[int, Path]:
        valid = {}
        for folder in all_of(self.folder / "checkpoints"):
            try:
                check_folder(folder)
                valid[int(folder.name.removeprefix("step-"))] = folder
            except ArtefactError as error:
                self.problems.append(f"unreadable: {error}")
        return valid

    def _require(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without what differs between any two runs (clock, command).

    Lock files name the process that held them last.
    """
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): _content(path) for path in files}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name not in CHANGING or path.parent.name == "prepared":
        return content
    changing = CHANGING[path.name]
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    kept = [{k: v for k, v in json.loads(x).items() if k not in changing} for x in lines]
    return json.dumps(kept, sort_keys=True).encode()


def _complete_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    return [json.loads(line) for line in whole.split(b"\n") if line]
