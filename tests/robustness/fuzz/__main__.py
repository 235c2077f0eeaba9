"""``python -m tests.robustness.fuzz``: each parser for some seconds, or for some inputs.

Every input follows from the target's name, the seed and a number, so ``--target NAME --seed S
--only N`` gives the same again.  What breaks the property is kept: its files, and what happened.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.robustness.fuzz.target import Target, Tried, attempt, lay_out
from tests.robustness.fuzz.targets import TARGETS

MOST = 20  # findings of a target before it is left


def main() -> int:
    """Run the targets; returns 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9, help="of all inputs")
    parser.add_argument("--target", action="append", default=[], help="part of a target's name")
    parser.add_argument("--only", type=int, help="one input, by its number")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="for the findings")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = [t for t in TARGETS if not asked.target or any(w in t.name for w in asked.target)]
    print(f"seed {asked.seed}, Python {platform.python_version()}, {len(chosen)} targets")
    done = [_worked(target, asked) for target in chosen]
    print(f"{sum(tried.inputs for tried in done):,} inputs, ", end="")
    print(f"{sum(len(tried.found) for tried in done)} findings")
    return 1 if any(tried.found for tried in done) else 0


def _worked(target: Target, asked: argparse.Namespace) -> Tried:
    tried = Tried(target.name)
    ends = time.monotonic() + asked.seconds
    number = asked.only or 0
    while len(tried.found) < MOST:
        before = len(tried.found)
        files = attempt(target, asked.seed, number, tried)
        for _, story in tried.found[before:]:
            folder = asked.keep / f"{target.name}-{asked.seed}-{number}"
            lay_out({**files, "what-happened.txt": story.encode(errors="replace")}, folder)
            print(f"{folder}: {_last_line(story)}")
        number += 1
        if asked.only is not None or time.monotonic() > ends:
            break
    refused = ", ".join(f"{n:,} {kind}" for kind, n in sorted(tried.refused.items())) or "none"
    print(f"{target.name}: {tried.inputs:,} inputs, {tried.read:,} read, refused: {refused}")
    sys.stdout.flush()
    return tried


def _last_line(story: str) -> str:
    lines: Sequence[str] = story.strip().splitlines()
    return lines[-1][:150] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
