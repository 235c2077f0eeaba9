"""Every parser of llmrec under pseudo-random input (``make fuzz``): all targets, one list."""

from __future__ import annotations

from typing import Final

from tests.robustness.fuzz import lists, raw, runs, words
from tests.robustness.fuzz.target import Target

TARGETS: Final[list[Target]] = [*raw.TARGETS, *words.TARGETS, *runs.TARGETS, *lists.TARGETS]
