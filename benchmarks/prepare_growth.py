"""``python -m benchmarks.prepare_growth --out FILE``: ``llmrec prepare`` of more and more lines.

Each size is prepared in a fresh process by polars and, with ``--spark MASTER``, by Spark.  The
table shows seconds and the largest resident set (Spark's: of Python or its JVM, the larger one).
The exit code is 1 when the two engines leave different bytes.  Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.machine import as_line, machine
from benchmarks.startup import RECIPE, ROOT

LINES = (1_000_000, 3_000_000, 10_000_000)
WRITE = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from benchmarks.startup import write_reviews
write_reviews(Path(sys.argv[1]), int(sys.argv[2]))
"""  # in a process of its own: a child's peak is never less than its parent's size when it began
SETTINGS = '"spark.driver.memory" = "3g", "spark.ui.enabled" = "false"'
SPLITS = ("train", "valid", "test")
HEAD = (
    "| lines | file, GB | engine | seconds | lines/s | peak, MB | rows | same bytes |\n"
    + "|---" * 8
    + "|"
)


def main() -> int:
    """Prepare every size by every engine; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prepare_growth", description=__doc__
    )
    parser.add_argument("--lines", type=int, nargs="+", default=LINES)
    parser.add_argument("--memory", type=int, default=1024, help="MiB for polars ([data] memory)")
    parser.add_argument("--spark", metavar="MASTER", help='also on Spark, e.g. "local[2]"')
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    engines = {"polars": [f"data.memory={arguments.memory}"]}
    if arguments.spark:
        master = f"data.spark.master={arguments.spark}"
        engines["spark"] = ["data.engine=spark", master, f"data.spark.options={{ {SETTINGS} }}"]
    lines, same = [], True
    for reviews in arguments.lines:
        with tempfile.TemporaryDirectory(prefix="prepare-") as name:
            folder = Path(name)
            _run([sys.executable, "-c", WRITE, "reviews.json", str(reviews)], folder)
            (folder / "startup.toml").write_text(RECIPE)
            found = {engine: _prepared(folder, words) for engine, words in engines.items()}
            alike = len({digest for _, _, _, digest in found.values()}) == 1
            same &= alike
            size = (folder / "reviews.json").stat().st_size / 1e9
        for engine, (seconds, peak, rows, _) in found.items():
            said = ("yes" if alike else "no") if len(found) > 1 else ""
            speed = f"{seconds:.1f} | {reviews / seconds:,.0f}"
            kept = f"{peak:,.0f} | {rows:,} | {said}"
            lines.append(f"| {reviews:,} | {size:.2f} | {engine} | {speed} | {kept} |")
            print(lines[-1], flush=True)
    title = "# `llmrec prepare` of more and more lines"
    where = f"{as_line(machine())}; {arguments.memory} MiB for polars"
    arguments.out.write_text("\n".join([title, "", where, "", HEAD, *lines]) + "\n")
    return 0 if same else 1


def _prepared(folder: Path, words: list[str]) -> tuple[float, float, int, str]:
    """Seconds, peak in MB, rows of all splits, and a digest of everything that was written."""
    shutil.rmtree(folder / "startup", ignore_errors=True)
    command = [sys.executable, "-m", "llmrec_cli", "prepare", "startup.toml", *words]
    seconds, peak = _run(command, folder)
    made = sorted((folder / "startup" / "prepared").iterdir())
    digest = hashlib.sha256()
    for file in made:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in made if file.stem in SPLITS)
    return seconds, peak, rows, digest.hexdigest()


def _run(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds, and peak in MB, of a command and those that it started."""
    begun = time.monotonic()
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:  # noqa: S603 - ourselves
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[1:]} ended with {process.returncode}")
    return time.monotonic() - begun, used.ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
