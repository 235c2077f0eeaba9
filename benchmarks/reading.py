"""Reading raw review lines to checked, typed interactions on disk, beside ``pandas.read_json``.

The peers end with a frame in memory; ours ends with a parquet file, after checking every value.
What bad lines cost is set against the same file without any: CPU seconds, one process.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
import polars as pl

from benchmarks.table import Row, alternate
from llmrec_cli.config.data import DataFormat, DataSection
from llmrec_cli.data.formats import read_source

LINES = {"ci": 30_000, "full": 1_000_000}
REPEATS = {"ci": 3, "full": 2}
PEAK_BAR = 400  # MB, the reading process as a whole
BAD_EVERY = 100  # lines: 1,000 bad ones of 100,000
BAD_BAR = 0.5  # a file without bad lines over one with them: at most twice as long
_NEEDED = {"reviewerID": "user_id", "asin": "item_id", "overall": "rating"}
_WORDS = (
    "the a gift card great for my friend who loved it easy quick arrived on time perfect".split()
)


def rows(size: Literal["ci", "full"]) -> list[Row]:
    """Plain and gzip review lines; pandas with the bars, polars for information."""
    with tempfile.TemporaryDirectory() as folder:
        plain, zipped = Path(folder) / "reviews.json", Path(folder) / "reviews.json.gz"
        write_reviews(plain, LINES[size])
        zipped.write_bytes(gzip.compress(plain.read_bytes(), 6))
        return [
            _row("plain", plain, "pandas.read_json(lines=True)", _pandas, 10, size),
            _row("gzip", zipped, "pandas.read_json(lines=True)", _pandas, 5, size),
            _row("plain", plain, "polars.read_ndjson", _polars, None, size),
            *(_bad_row(kind, Path(folder), size) for kind in ("JSON", "literal", "CSV")),
        ]


def write_reviews(path: Path, lines: int, seed: int = 0) -> None:
    """Write synthetic reviews in the Amazon 2018 layout, about 600 bytes a line."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(15, 115))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(lines):
            file.write(json.dumps(_review(draw, texts)) + "\n")


def _review(draw: random.Random, texts: list[str]) -> dict[str, object]:
    return {
        "overall": float(draw.randint(1, 5)),
        "verified": draw.random() < 0.9,
        "reviewTime": "06 17, 2018",
        "reviewerID": f"A{draw.randrange(200_000):013d}",
        "asin": f"B{draw.randrange(50_000):09d}",
        "style": {"Gift Amount:": " 50"},
        "reviewerName": "",
        "reviewText": draw.choice(texts),
        "summary": "Five Stars",
        "unixReviewTime": draw.randrange(1_300_000_000, 1_540_000_000, 86_400),
    }


def _row(
    name: str,
    path: Path,
    peer: str,
    read_peer: Callable[[Path], pd.DataFrame],
    bar: float | None,
    size: Literal["ci", "full"],
) -> Row:
    agrees = read_peer(path).equals(_ours(path))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_peak, (path,))
    peer_seconds, our_seconds = alternate(
        lambda: read_peer(path), lambda: _read(path), REPEATS[size]
    )
    rate = LINES[size] / min(our_seconds)
    return Row(
        name=f"reading {LINES[size]:,} review lines, {name}",
        peer=peer,
        peer_seconds=peer_seconds,
        our_seconds=our_seconds,
        agrees=agrees and peak <= PEAK_BAR,
        bar=bar,
        detail=f"{rate / 1000:.0f}k lines/s, peak {peak:.0f} MB (at most {PEAK_BAR})",
    )


def _bad_row(kind: str, folder: Path, size: Literal["ci", "full"]) -> Row:
    """Lines with a bad one in a hundred beside the same lines without, CPU seconds of each."""
    lines = LINES[size] // (30 if kind == "literal" else 3)
    good, bad = folder / f"good.{kind}", folder / f"bad.{kind}"
    _write_lines(good, kind, lines, bad=False)
    _write_lines(bad, kind, lines, bad=True)
    seconds: dict[Path, list[float]] = {good: [], bad: []}
    for path in (good, bad) * (REPEATS[size] + 1):
        start = time.process_time()
        skipped = _read_lines(path, kind, lines)
        seconds[path].append(time.process_time() - start)
    return Row(
        name=f"reading {lines:,} {kind} lines, {lines // BAD_EVERY:,} of them bad",
        peer="none of them bad",
        peer_seconds=seconds[good][1:],
        our_seconds=seconds[bad][1:],
        agrees=skipped == lines // BAD_EVERY,
        bar=BAD_BAR,
        detail="CPU seconds",
    )


def _write_lines(path: Path, kind: str, lines: int, *, bad: bool) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(15, 60))) for _ in range(500)]
    texts += [f'{text}; "don\'t"' for text in texts[:25]]  # what makes literals slow
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            review = _review(draw, texts)
            names = ("reviewerID", "asin", "overall", "unixReviewTime")
            cells = ",".join(str(review[name]) for name in names)
            line = {"JSON": json.dumps(review), "literal": str(review), "CSV": cells}[kind]
            spoilt = bad and number % BAD_EVERY == BAD_EVERY // 2
            file.write((line[: len(line) // 2] if spoilt else line) + "\n")


def _read_lines(path: Path, kind: str, lines: int) -> int:
    forms: dict[str, DataFormat] = {
        "JSON": "amazon2018",
        "literal": "amazon2014",
        "CSV": "ratings2014",
    }
    section = DataSection(
        format=forms[kind], reviews=(path.name,), on_bad_line="skip", bad_line_limit=lines
    )
    with tempfile.TemporaryDirectory() as scratch:
        source = read_source(section, path.with_name, Path(scratch))
    return int(source.notes["bad_lines"]["skipped"])


def _read(path: Path) -> None:
    section = DataSection(format="amazon2018", reviews=(path.name,))
    with tempfile.TemporaryDirectory() as scratch:
        read_source(section, path.with_name, Path(scratch))


def _ours(path: Path) -> pd.DataFrame:
    section = DataSection(format="amazon2018", reviews=(path.name,))
    with tempfile.TemporaryDirectory() as scratch:
        source = read_source(section, path.with_name, Path(scratch))
        frame = pl.read_parquet(source.interactions or "").drop("position")
    return _comparable(frame.to_pandas())


def _peak(path: Path) -> float:
    """Largest resident size in MB of a process that reads the file, and nothing else."""
    _read(path)
    status = Path("/proc/self/status")  # ru_maxrss would count the parent's size before exec
    if status.exists():
        peak = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _pandas(path: Path) -> pd.DataFrame:
    frame = pd.read_json(path, lines=True, convert_dates=False)
    frame["timestamp"] = frame["unixReviewTime"] * 1000
    return _comparable(frame.rename(columns=_NEEDED))


def _polars(path: Path) -> pd.DataFrame:
    schema = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64}
    frame = pl.read_ndjson(path, schema={**schema, "unixReviewTime": pl.Int64})
    frame = frame.rename(_NEEDED).with_columns(timestamp=pl.col("unixReviewTime") * 1000)
    return _comparable(frame.to_pandas())


def _comparable(frame: pd.DataFrame) -> pd.DataFrame:
    types = {"user_id": "object", "item_id": "object", "rating": "float64", "timestamp": "int64"}
    return frame[list(types)].astype(types)
