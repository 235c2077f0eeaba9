"""Cleaning: which interactions are kept.

Everything here is relational and written once over narwhals lazy frames.  The engine
(``backends/``) changes no row.  Memory does not grow with the interactions, beyond what the engine
may use before it spills.  Only the distinct item ids are in the memory of this process.

The steps run in this order, each counted: time window, rating threshold, repeated pairs, items
without a usable title, k-core.  So an interaction that is dropped (outside the window, badly rated)
never replaces a repeated pair, and an untitled item supports no k-core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree

import narwhals as nw
import polars as pl

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.backends.base import Engine, Log, list_parts
from llmrec_cli.data.catalog import NamedItems
from llmrec_cli.data.schema import ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.errors import DataError

MOMENT = (TIMESTAMP, POSITION)  # ties in time break by input order
PAIR = (USER_ID, ITEM_ID)
_FIRST = "first"  # 1 at one interaction of each pair, 0 at the others


@dataclass(frozen=True, slots=True)
class Step:
    """What is left after a cleaning step."""

    step: str
    users: int
    items: int
    interactions: int


@dataclass(slots=True)
class CleaningSteps:
    """Run steps one after the other, each into a scratch file, and count what remains."""

    engine: Engine
    scratch: Path
    progress: Callable[[str], None] = lambda _: None
    steps: list[Step] = field(default_factory=list)

    def run(self, step: str, log: Log) -> Log:
        """Carry out ``log`` and record it as ``step``; the file of the step before is deleted.

        Raises:
            DataError: nothing is left; the message names the step and what was there before.
        """
        number = len(self.steps)
        log = self.engine.written(log, self.scratch / f"step-{number}.parquet")
        delete_relation(self.scratch / f"step-{number - 1}.parquet")
        return self.record(step, log)

    def record(self, step: str, log: Log) -> Log:
        """Record ``step``, whose result is written already.

        Raises:
            DataError: as ``run``.
        """
        return self.record_count(count_step(step, log), log)

    def record_count(self, left: Step, log: Log) -> Log:
        """Record a step that is counted already.

        Raises:
            DataError: as ``run``.
        """
        self._record(left)
        return log

    def skip(self, step: str) -> None:
        """Record a step that drops nothing."""
        self._record(replace(self.steps[-1], step=step))

    def describe_empty(self, left: Step) -> str:
        """The error of a step after which no interaction is left."""
        before = f" of {self.steps[-1].interactions:,}" if self.steps else ""
        return f"no interaction{before} is left after: {left.step}"

    def _record(self, left: Step) -> None:
        if not left.interactions:
            raise DataError(self.describe_empty(left))
        self.steps.append(left)
        n, users, items = left.interactions, left.users, left.items
        self.progress(f"{left.step}: {n:,} interactions, {users:,} users, {items:,} items")


def filter_interactions(log: Log, section: DataSection, cleaning: CleaningSteps) -> Log:
    """The interactions that pass the time window, the rating threshold and repeated pairs.

    Args:
        log: USER_ID, ITEM_ID, RATING, TIMESTAMP, POSITION.
        cleaning: collects the counts.

    Raises:
        DataError: a step leaves nothing.
    """
    log = cleaning.record("as read", log)
    if section.start is not None or section.end is not None:
        sides = (("start", section.start), ("end", section.end))
        step = ", ".join(f"data.{key} = {date}" for key, date in sides if date is not None)
        log = cleaning.run(step, filter_window(log, section))
    if section.min_rating is not None:
        step = f"data.min_rating = {section.min_rating:g}"
        _require_ratings(step, log, cleaning)
        log = cleaning.run(step, filter_rated(log, section.min_rating))
    if section.duplicates != "keep":
        step = f"data.duplicates = {section.duplicates}"
        log = cleaning.run(step, drop_repeats(log, section.duplicates))
    return log


def _require_ratings(step: str, log: Log, cleaning: CleaningSteps) -> None:
    """Refuse a rating threshold where no interaction is rated: it would drop everything."""
    if not _count_interactions(log.filter(~nw.col(RATING).is_null()).head(1)):
        n = cleaning.steps[-1].interactions
        raise DataError(f"{step}: none of {n:,} interactions has a rating; remove data.min_rating")


def filter_to_core(
    log: Log, named: NamedItems, section: DataSection, cleaning: CleaningSteps
) -> Log:
    """The interactions that have ``named`` items and are inside the k-core.

    Raises:
        DataError: a step leaves nothing.
    """
    step = f"data.untitled = {section.untitled}"
    if named.dropped:
        kept = upload_frame(
            named.items.select(ITEM_ID), cleaning.scratch / "named.parquet", cleaning.engine
        )
        log = cleaning.run(step, log.join(kept, on=ITEM_ID, how="semi"))
    else:
        cleaning.skip(step)
    if section.k_core > 1:
        repeated = section.duplicates == "keep"

        def inside(k: int) -> Log:
            return find_core(log, k, repeated, cleaning.engine, cleaning.scratch)

        whole = inside(section.k_core)
        left = count_step(f"data.k_core = {section.k_core}", whole)
        if not left.interactions:
            raise DataError(
                f"{cleaning.describe_empty(left)}; {_what_is_left(inside, section.k_core)}"
            )
        return cleaning.record_count(left, whole)
    return log


def _what_is_left(inside: Callable[[int], Log], empty: int) -> str:
    """The largest k whose core is not empty, and that core.

    Args:
        inside: the k-core; at ``empty`` there is none.
    """
    low, left = 1, None
    while empty - low > 1:
        k = (low + empty) // 2
        found = count_step(f"k_core = {k}", inside(k))
        if found.interactions:
            low, left = k, found
        else:
            empty = k
    if left is None:
        return "no k_core above 1 leaves any"
    n, users, items = left.interactions, left.users, left.items
    return f"at most {left.step} leaves any: {n:,} interactions, {users:,} users, {items:,} items"


def select_badly_rated(log: Log, lowest: float, section: DataSection) -> Log:
    """Interactions of the time window below the rating threshold, without unrated ones."""
    return filter_window(log, section).filter(nw.col(RATING) < lowest)


def filter_window(log: Log, section: DataSection) -> Log:
    """Interactions from ``section.start`` to before ``section.end``."""
    return filter_between(log, _parse_midnight(section.start), _parse_midnight(section.end))


def filter_between(log: Log, start: int | None, end: int | None) -> Log:
    """Interactions with ``start <= time < end``, milliseconds; ``None`` leaves a side open."""
    if start is not None:
        log = log.filter(nw.col(TIMESTAMP) >= start)
    if end is not None:
        log = log.filter(nw.col(TIMESTAMP) < end)
    return log


def filter_rated(log: Log, lowest: float) -> Log:
    """Interactions rated at least ``lowest``; unrated ones are dropped."""
    return log.filter(nw.col(RATING) >= lowest)


def drop_repeats(log: Log, keep: str) -> Log:
    """One interaction per (user, item): the ``"first"`` or ``"last"`` by time, then position."""
    return log.filter(_number_places(PAIR, reverse=keep == "last") == 1)


def collect_item_ids(log: Log, engine: Engine, scratch: Path) -> pl.Series:
    """The distinct item ids, sorted; through the file ``scratch``, in memory here.

    A group, not ``unique``: Spark shortens one side of it before the shuffle.
    """
    engine.written(log.group_by(ITEM_ID).agg(nw.len()).select(ITEM_ID), scratch)
    found = pl.concat([pl.read_parquet(part, glob=False) for part in list_parts(scratch)])
    delete_relation(scratch)
    return found[ITEM_ID].sort()


def find_core(log: Log, k: int, repeated: bool, engine: Engine, scratch: Path) -> Log:
    """The k-core: every user with >= k items and every item with >= k users, until stable.

    It counts unique (user, item) pairs; all interactions of a pair are kept or dropped together.
    The result is the largest such set and does not depend on the order of removal.

    Args:
        repeated: whether pairs may repeat.
    """
    columns = log.collect_schema().names()
    if repeated:
        log = log.with_columns((_number_places(PAIR) == 1).cast(nw.Int64).alias(_FIRST))
    weight = nw.col(_FIRST).sum() if repeated else nw.len()
    size, smaller, turn = -1, _count_interactions(log), 0
    while smaller != size:
        turn += 1
        file = scratch / f"core-{turn}.parquet"
        log = engine.written(log.filter(*(weight.over(key) >= k for key in PAIR)), file)
        delete_relation(scratch / f"core-{turn - 1}.parquet")
        size, smaller = smaller, _count_interactions(log)
    return log.select(columns)


def count_step(step: str, log: Log) -> Step:
    """Distinct users and items, and interactions, under a name."""
    found = log.select(nw.col(USER_ID).n_unique(), nw.col(ITEM_ID).n_unique(), n=nw.len())
    users, items, interactions = found.collect("polars").row(0)
    return Step(step, int(users), int(items), int(interactions))


def upload_frame(frame: pl.DataFrame, file: Path, engine: Engine) -> Log:
    """A frame of this process as a relation of the engine, through ``file``."""
    frame.write_parquet(file)
    return engine.scan(file)


def delete_relation(relation: Path) -> None:
    """Delete a written relation, if there is one."""
    if relation.is_dir():
        rmtree(relation)
    else:
        relation.unlink(missing_ok=True)


def _number_places(within: tuple[str, ...], reverse: bool = False) -> nw.Expr:
    """Place of each interaction among those that share ``within``, from 1, by its moment."""
    return nw.col(POSITION).cum_count(reverse=reverse).over(*within, order_by=MOMENT)


def _count_interactions(log: Log) -> int:
    return int(log.select(n=nw.len()).collect("polars").item())


def _parse_midnight(date: str | None) -> int | None:
    """Milliseconds of the first moment of an ISO date, UTC; the recipe has checked the date."""
    if date is None:
        return None
    return int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()) * 1000
