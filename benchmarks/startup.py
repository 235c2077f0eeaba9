"""What a user waits for before any model runs: the commands' start, and ``llmrec prepare``.

A command's start stands beside a bare import of the libraries that it needs.  In the full size it
stands beside a bar in seconds too: the bar is in the peer's place, the ratio is what is left of it,
and the bar of the ratio is 1.  A slow machine misses a bar in seconds for no fault of ours, so the
CI size has none.  ``prepare`` stands beside a plain pandas script of the same relational work:
read, de-duplicate, 5-core, sort, leave-one-out.  Ours also checks every value, names the items,
writes every row with its history, and audits and hashes the result.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from benchmarks.table import Row, alternate

Size = Literal["ci", "full"]
ROOT = Path(__file__).parents[1]
REVIEWS: dict[Size, int] = {"ci": 20_000, "full": 1_000_000}
REPEATS: dict[Size, int] = {"ci": 3, "full": 3}
HELP, VALIDATE = ("--help",), ("validate", "quickstart")
BARS = {HELP: 0.5, VALIDATE: 2.0}  # seconds, at most
LIBRARIES = {
    HELP: "rich, typer",
    VALIDATE: "pandas, polars, pyarrow.compute, pydantic, rich, typer",
}
K_CORE = 5
RECIPE = """
name = "startup"
out = "."
[data]
format = "amazon2018"
reviews = "./reviews.json"
untitled = "id"
min_history = 0
"""
PANDAS = "import sys; from benchmarks.startup import pandas_prepare; pandas_prepare(sys.argv[1])"
SPLITS = ("train", "valid", "test")


def rows(size: Size) -> list[Row]:
    """Starting, preparing, and preparing what is prepared."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *(start_row(folder, size, words) for words in LIBRARIES),
            *(bar_row(folder, size, words) for words in BARS if size == "full"),
            *prepare_rows(folder, size),
        ]


def write_reviews(path: Path, reviews: int, seed: int = 0) -> None:
    """Reviews in the Amazon 2018 layout, about 300 bytes a line, most of them inside the 5-core.

    Some users and items have far more than others, pairs are repeated, and times are whole days, as
    in the genuine files, so that they are tied.
    """
    import polars as pl  # here, because the pandas script imports this file

    draw = np.random.default_rng(seed)
    texts = np.array([" ".join(["read it again"] * n) for n in range(2, 20)])
    frame = pl.DataFrame(
        {
            "overall": draw.integers(1, 5, reviews, endpoint=True).astype(np.float64),
            "reviewerID": (reviews // 8 * draw.random(reviews) ** 2).astype(np.int64),
            "asin": (reviews // 40 * draw.random(reviews) ** 2).astype(np.int64),
            "reviewText": texts[draw.integers(len(texts), size=reviews)],
            "summary": np.full(reviews, "Five Stars"),
            "unixReviewTime": draw.integers(15_000, 17_800, reviews) * 86_400,
        }
    )
    user, item = pl.format("A{}", "reviewerID"), pl.format("B{}", "asin")
    frame.with_columns(reviewerID=user, asin=item).write_ndjson(path)


def pandas_prepare(name: str) -> None:
    """The peer's script: ``reviews.json`` to one parquet file per split, in the folder ``name``."""
    folder = Path(name)
    log = pd.read_json(folder / "reviews.json", lines=True, convert_dates=False)
    log = log[["reviewerID", "asin", "unixReviewTime"]]
    log = log.sort_values("unixReviewTime", kind="stable").drop_duplicates(["reviewerID", "asin"])
    size = 0
    while size != len(log):
        size = len(log)
        for column in ("reviewerID", "asin"):
            log = log[log.groupby(column)[column].transform("size") >= K_CORE]
    log = log.sort_values("reviewerID", kind="stable")
    from_the_end = log.groupby("reviewerID").cumcount(ascending=False)
    parts = (log[from_the_end >= 2], log[from_the_end == 1], log[from_the_end == 0])
    for split, part in zip(SPLITS, parts, strict=True):
        part.to_parquet(folder / f"pandas-{split}.parquet", index=False)


def same_result(folder: Path) -> tuple[bool, str]:
    """Whether both left the same user, item and time in every row; and how many there are."""
    ours = folder / "startup" / "prepared"
    item_ids = pd.read_parquet(ours / "items.parquet")["item_id"].to_numpy()
    same, interactions, users = True, 0, 0
    for split in SPLITS:
        mine = pd.read_parquet(ours / f"{split}.parquet")
        theirs = pd.read_parquet(folder / f"pandas-{split}.parquet")
        same &= (
            len(mine) == len(theirs)
            and bool((mine["user_id"].to_numpy() == theirs["reviewerID"].to_numpy()).all())
            and bool((item_ids[mine["target"]] == theirs["asin"].to_numpy()).all())
            and bool((mine["timestamp"] == 1000 * theirs["unixReviewTime"]).all())
        )
        interactions, users = interactions + len(mine), len(mine)
    return same, f"{interactions:,} interactions, {users:,} users, {len(item_ids):,} items are left"


def start_row(folder: Path, size: Size, words: tuple[str, ...]) -> Row:
    """A command beside a Python process that imports its libraries and does nothing."""
    libraries = LIBRARIES[words]
    peer = [sys.executable, "-c", f"import {libraries}"]
    peer_seconds, our_seconds = alternate(
        lambda: subprocess.run(peer, check=True),  # noqa: S603 - ourselves
        lambda: _llmrec(folder, *words),
        REPEATS[size],
    )
    name = " ".join(("llmrec", *words))
    return Row(name, f"importing {libraries}", peer_seconds, our_seconds, True, None)


def bar_row(folder: Path, size: Size, words: tuple[str, ...]) -> Row:
    """A command against a bar in seconds."""
    seconds = alternate(lambda: None, lambda: _llmrec(folder, *words), REPEATS[size])[1]
    bar = BARS[words]
    name = " ".join(("llmrec", *words))
    return Row(name, f"at most {bar:g} s", [bar] * len(seconds), seconds, True, 1.0)


def prepare_rows(folder: Path, size: Size) -> list[Row]:
    """``llmrec prepare`` of generated reviews in ``folder``, and once more."""
    write_reviews(folder / "reviews.json", REVIEWS[size])
    (folder / "startup.toml").write_text(RECIPE)

    def prepare() -> None:
        shutil.rmtree(folder / "startup", ignore_errors=True)
        again()

    def again() -> None:
        _llmrec(folder, "prepare", "startup.toml")

    def peer() -> None:
        command = [sys.executable, "-c", PANDAS, str(folder)]
        subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603 - ourselves

    peer_seconds, our_seconds = alternate(peer, prepare, REPEATS[size])
    same, counts = same_result(folder)
    _, again_seconds = alternate(lambda: None, again, REPEATS[size])
    name = f"llmrec prepare, {REVIEWS[size]:,} reviews"
    return [
        Row(name, "pandas script", peer_seconds, our_seconds, same, None, counts),
        Row(f"{name}, again", "the first time", our_seconds, again_seconds, True, None),
    ]


def _llmrec(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "llmrec_cli", *words]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)  # noqa: S603 - ourselves
