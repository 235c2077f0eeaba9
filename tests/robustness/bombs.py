"""``python -m tests.robustness.bombs``: small files that ask for much.

Each is given to the command that reads it, and answered with exit code 2 and one line, within a
minute and 500 MB above what the same command takes for a good file.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import as_line, machine

ROOT = Path(__file__).resolve().parents[2]
GOOD = ROOT / "data/sample/amazon2018/Synthetic_Toys.json.gz"
REVIEW = b'{"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1529193600}\n'
SECONDS, MEGABYTES = 60, 500
USER = 2  # the exit code for input that is wrong


@dataclass(frozen=True)
class Bomb:
    """A file, and the words that read it (``FILE`` stands for it)."""

    name: str
    write: Callable[[Path], None]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Went:
    """How a command ended, and what it took."""

    name: str
    size: int  # bytes of the file on disk
    code: int
    said: str
    left: tuple[str, ...]  # what is new beside the file
    seconds: float
    peak: int  # bytes of memory

    def wrong(self, base: Went) -> str:
        """What is wrong with that beside a good file; empty if nothing is."""
        lines = [line for line in self.said.splitlines() if ": error: " in line]
        checks = {
            f"exit code {self.code}: {self.said[-300:]}": self.code == USER,
            f"{len(lines)} lines: {self.said[-300:]}": len(lines) == 1,
            f"left behind: {', '.join(self.left)}": not self.left,
            f"{self.seconds:.0f} seconds": self.seconds <= SECONDS,
            f"{self.peak >> 20} MB": self.peak - base.peak <= MEGABYTES << 20,
        }
        return "; ".join(problem for problem, right in checks.items() if not right)


def _members(line: bytes, copies: int, times: int) -> Callable[[Path], None]:
    """A gzip file of ``times`` members, each of ``copies`` of a line."""
    return lambda path: _spill(path, gzip.compress(line * copies), times)


def _spill(path: Path, data: bytes, times: int) -> None:
    with path.open("wb") as stream:
        for _ in range(times):
            stream.write(data)


def _holes(size: int, begin: bytes = b"") -> Callable[[Path], None]:
    """One line that goes on with NUL bytes, which take no space on disk."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            stream.write(begin)
            stream.truncate(size)

    return write


def _text(*parts: tuple[bytes, int]) -> Callable[[Path], None]:
    return lambda path: _spill(path, b"".join(part * times for part, times in parts), 1)


def _one_value(path: Path) -> None:
    """A column that is one value, very often: a few kilobytes of parquet."""
    rows = 2_000_000
    table = pa.table({name: pa.array(["x"] * rows) for name in ("user", "item")})
    table = table.append_column("time", pa.array([1529193600] * rows))
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(100):
            writer.write_table(table)


def _prepare(form: str, role: str = "reviews") -> tuple[str, ...]:
    good = () if role == "reviews" else (f"data.reviews={GOOD}",)
    return ("prepare", "recipe.toml", f"data.format={form}", f"data.{role}=FILE", *good)


LITERAL = b"{'asin': 'B', 'title': '"
REVIEWS, RATINGS = _prepare("amazon2018"), _prepare("ratings2023")
LITERALS = _prepare("amazon2014", "metadata")
BOMBS = (
    Bomb("gzip, 10 GB of zeros", _members(b"\0", 100 << 20, 100), REVIEWS),
    Bomb("gzip, 8 GB of one review", _members(REVIEW, 1 << 20, 100), REVIEWS),
    Bomb("line of 1 GB", _holes(1 << 30), REVIEWS),
    Bomb("line of 1 GB, ratings", _holes(1 << 30), RATINGS),
    Bomb("line of 1 GB, literal", _holes(1 << 30, LITERAL), LITERALS),
    Bomb("literal of 1 MB", _text((LITERAL, 1), (b"x", 1 << 20), (b"'}\n", 1)), LITERALS),
    Bomb("literal of numbers", _text((b"{'a': [", 1), (b"1, ", 350_000), (b"]}\n", 1)), LITERALS),
    Bomb("literal, nested", _text((b"{'a': ", 1), (b"[", 500_000), (b"]", 500_000)), LITERALS),
    Bomb("literal of signs", _text((b"{'a': ", 1), (b"-", 1_000_000), (b"1}\n", 1)), LITERALS),
    Bomb("10 MB of brackets", _text((b"[", 10 << 20)), REVIEWS),
    Bomb("number of 1 MB", _text((REVIEW[:-13], 1), (b"9", 1 << 20), (b"}\n", 1)), REVIEWS),
    Bomb("semantic IDs of 1 GB", _holes(1 << 30), (*_prepare("semantic-ids"), "data.index=FILE")),
    Bomb("parquet of 200 million equal rows", _one_value, _prepare("interactions")),
    Bomb("recipe of 1 GB", _holes(1 << 30), ("validate", "FILE")),
    Bomb("recipe, nested", _text((b"a = ", 1), (b"[", 1 << 19)), ("validate", "FILE")),
)
RECIPE = """
name = "bomb"
[data.columns]
user = "user"
item = "item"
timestamp = "time"
"""


def typed(name: str, words: Sequence[str], file: Path) -> Went:
    """A command line over a file, in a process of its own, beside a recipe."""
    (file.parent / "recipe.toml").write_text(RECIPE)
    words = [word.replace("FILE", str(file)) for word in words]
    before = _names(file.parent)
    begun = time.monotonic()
    command = [sys.executable, "-c", _WATCHED, sys.executable, "-m", "llmrec_cli", *words]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - begun
    said, _, told = done.stderr.replace(f"{file.parent}/", "").rstrip().rpartition("\n")
    code, peak = map(int, told.split())
    left = tuple(sorted(_names(file.parent) - before))
    size = file.stat().st_blocks * 512
    return Went(name, size, code, done.stdout + said, left, seconds, peak << 10)  # Linux tells KiB


# A child's peak begins with its parent's size, so that a small process starts it.
_WATCHED = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
print(f"\\n{os.waitstatus_to_exitcode(status)} {used.ru_maxrss}", file=sys.stderr)
"""


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def went_off(bomb: Bomb) -> Went:
    """Write a bomb and have it read."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "file"
        bomb.write(file)
        return typed(bomb.name, bomb.words, file)


def harmless() -> Went:
    """A good file, for the memory that a command takes anyway."""
    meta = GOOD.with_name(f"meta_{GOOD.name}")
    words = ("prepare", "recipe.toml", "data.format=amazon2018", f"data.metadata={meta}")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "file"
        file.write_bytes(GOOD.read_bytes())
        went = typed("a good file", (*words, "data.reviews=FILE"), file)
    if went.code:
        raise SystemExit(went.said)
    return went


def page(base: Went, found: Sequence[Went]) -> str:
    """All of it as Markdown."""
    facts = machine()
    lines = [
        f"# Small files that ask for much, {facts['date']}",
        "",
        f"`python -m tests.robustness.bombs`: {as_line(facts)}.",
        f"Allowed: {SECONDS} seconds, {MEGABYTES} MB above the {base.peak >> 20} of a good file.",
        "",
        "| file | on disk | exit code | answer | seconds | MB above |",
        "|---|---|---|---|---|---|",
    ]
    for went in found:
        answer = (went.wrong(base) or went.said.splitlines()[-1]).replace("|", "/")
        above = max(went.peak - base.peak, 0) >> 20
        size = f"{went.size >> 10:,} KiB"
        row = (went.name, size, went.code, answer, f"{went.seconds:.1f}", above)
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write every bomb, have it read, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [bomb.name for bomb in BOMBS]
    parser.add_argument("--out", type=Path, help="folder for a page of what was found")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    arguments = parser.parse_args()
    base, found = harmless(), []
    for bomb in BOMBS:
        if bomb.name in arguments.only:
            found.append(went_off(bomb))
            print(f"{bomb.name}: {found[-1].wrong(base) or 'well'}", flush=True)
    wrong = sum(bool(went.wrong(base)) for went in found)
    if arguments.out:
        (arguments.out / f"{machine()['date']}-bombs.md").write_text(page(base, found))
    print(f"{len(found)} tried, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
