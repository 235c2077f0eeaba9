"""Cleaning: which interactions count.

Everything here is relational and written once over narwhals lazy frames, so that polars serves by
default and Spark can when data outgrow a machine; :func:`scan` is the one place that names the
engine.  Used of narwhals: ``scan_parquet``, ``sink_parquet``, ``filter``, ``select``, ``unique``,
semi ``join``, ``sort``, ``n_unique``, ``len``, and ``len``, ``min`` and ``max`` with ``over``.

The steps run in this order, each counted: time window, rating threshold, repeated pairs, items
without a usable title, k-core.  What does not count (outside the window, badly rated) cannot stand
in for a repeated pair, and an untitled item cannot hold up a k-core that it will not be part of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import narwhals as nw
import polars as pl

from llmrec_cli.data.columns import ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.errors import DataError
from llmrec_cli.recipe_data import DataSection

Log: TypeAlias = nw.LazyFrame[Any]  # one row per interaction

ORDER = (USER_ID, TIMESTAMP, POSITION)  # ties in time break by input order
PAIR = (USER_ID, ITEM_ID)


@dataclass(frozen=True, slots=True)
class Step:
    """What is left after a cleaning step."""

    step: str
    users: int
    items: int
    interactions: int


@dataclass(slots=True)
class Trail:
    """Runs steps one after the other, each into a scratch file, and counts what each leaves.

    Writing a step out bounds memory and keeps lazy plans short, on any engine.
    """

    scratch: Path
    progress: Callable[[str], None] = lambda _: None
    steps: list[Step] = field(default_factory=list)

    def mark(self, step: str, log: Log) -> Log:
        """Carry out ``log`` and record it as ``step``.

        Raises:
            DataError: nothing is left; the message names the step and what was there before.
        """
        file = self.scratch / f"step-{len(self.steps)}.parquet"
        log.sink_parquet(file)
        left = count(step, scan(file))
        if not left.interactions:
            before = f" of {self.steps[-1].interactions:,}" if self.steps else ""
            raise DataError(f"no interaction{before} is left after: {step}")
        self.steps.append(left)
        n, users, items = left.interactions, left.users, left.items
        self.progress(f"{step}: {n:,} interactions, {users:,} users, {items:,} items")
        return scan(file)


def scan(file: Path) -> Log:
    """A parquet file as a lazy frame of the engine in use."""
    return nw.scan_parquet(file, backend="polars")


def eligible(interactions: Path, section: DataSection, trail: Trail) -> Log:
    """The interactions that count in themselves: time window, rating threshold, repeated pairs.

    Args:
        interactions: parquet file with USER_ID, ITEM_ID, RATING, TIMESTAMP, POSITION.
        trail: collects the counts.

    Raises:
        DataError: a step leaves nothing.
    """
    log = trail.mark("as read", scan(interactions))
    if section.start is not None or section.end is not None:
        step = f"data.start = {section.start}, data.end = {section.end}"
        log = trail.mark(step, in_time(log, section))
    if section.min_rating is not None:
        step = f"data.min_rating = {section.min_rating:g}"
        log = trail.mark(step, rated(log, section.min_rating))
    if section.duplicates != "keep":
        step = f"data.duplicates = {section.duplicates}"
        log = trail.mark(step, unrepeated(log, section.duplicates))
    return log


def settled(log: Log, named: pl.Series, section: DataSection, trail: Trail) -> pl.DataFrame:
    """The interactions that count among the others: with ``named`` items, inside the k-core.

    Returns:
        Them in memory, ordered by user id, time and input position.

    Raises:
        DataError: a step leaves nothing.
    """
    step = f"data.untitled = {section.untitled}"
    log = trail.mark(step, of_items(log, named, trail.scratch / "named.parquet"))
    if section.k_core > 1:
        step = f"data.k_core = {section.k_core}"
        log = trail.mark(step, core(log, section.k_core, trail.scratch))
    native: pl.DataFrame = log.sort(*ORDER).collect("polars").to_native()
    return native


def badly_rated(interactions: Path, lowest: float, section: DataSection) -> Log:
    """What the rating threshold takes out of the time window, the unrated apart."""
    return in_time(scan(interactions), section).filter(nw.col(RATING) < lowest)


def in_time(log: Log, section: DataSection) -> Log:
    """Interactions from ``section.start`` to before ``section.end``."""
    return within(log, _midnight(section.start), _midnight(section.end))


def within(log: Log, start: int | None, end: int | None) -> Log:
    """Interactions with ``start <= time < end``, milliseconds; ``None`` leaves a side open."""
    if start is not None:
        log = log.filter(nw.col(TIMESTAMP) >= start)
    if end is not None:
        log = log.filter(nw.col(TIMESTAMP) < end)
    return log


def rated(log: Log, lowest: float) -> Log:
    """Interactions rated at least ``lowest``; unrated ones go."""
    return log.filter(nw.col(RATING) >= lowest)


def unrepeated(log: Log, keep: str) -> Log:
    """One interaction per (user, item): the ``"first"`` or ``"last"`` by time, then position."""
    for column in (TIMESTAMP, POSITION):
        wanted = nw.col(column).min() if keep == "first" else nw.col(column).max()
        log = log.filter(nw.col(column) == wanted.over(*PAIR))
    return log


def item_ids(log: Log) -> pl.Series:
    """The distinct item ids, sorted."""
    found = log.select(ITEM_ID).unique().sort(ITEM_ID).collect("polars")
    native: pl.DataFrame = found.to_native()
    return native[ITEM_ID]


def of_items(log: Log, kept: pl.Series, scratch: Path) -> Log:
    """Interactions with the items in ``kept``, which goes through the file ``scratch``."""
    pl.DataFrame({ITEM_ID: kept}).write_parquet(scratch)
    return log.join(scan(scratch), on=ITEM_ID, how="semi")


def core(log: Log, k: int, scratch: Path) -> Log:
    """The k-core: every user with >= k items and every item with >= k users, until stable.

    Unique (user, item) pairs are what is counted; repeated interactions of a pair stay together.
    The result is the largest such set and does not depend on the order of removal.
    """
    pairs = _written(log.select(*PAIR).unique(), scratch / "core-0.parquet")
    size, smaller, turn = -1, _size(pairs), 0
    while smaller != size:
        turn += 1
        pairs = pairs.filter(nw.len().over(USER_ID) >= k, nw.len().over(ITEM_ID) >= k)
        pairs = _written(pairs, scratch / f"core-{turn % 2}.parquet")
        size, smaller = smaller, _size(pairs)
    return log.join(pairs, on=list(PAIR), how="semi")


def count(step: str, log: Log) -> Step:
    """Distinct users and items, and interactions, under a name."""
    found = log.select(nw.col(USER_ID).n_unique(), nw.col(ITEM_ID).n_unique(), n=nw.len())
    users, items, interactions = found.collect("polars").row(0)
    return Step(step, int(users), int(items), int(interactions))


def _written(log: Log, file: Path) -> Log:
    log.sink_parquet(file)
    return scan(file)


def _size(log: Log) -> int:
    return int(log.select(n=nw.len()).collect("polars").item())


def _midnight(date: str | None) -> int | None:
    """Milliseconds of the first moment of an ISO date, UTC; the recipe has checked the date."""
    if date is None:
        return None
    return int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()) * 1000
