"""All targets, one list."""

from __future__ import annotations

from typing import Final

from benchmarks.fuzz import lists, raw, runs, words
from benchmarks.fuzz.target import Target

TARGETS: Final[list[Target]] = [*raw.TARGETS, *words.TARGETS, *runs.TARGETS, *lists.TARGETS]
