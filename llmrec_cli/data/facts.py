"""What a prepared folder's manifest tells about how it came to be; nothing about the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl

from llmrec_cli.data.audit import Finding, Rows, count_findings, tell_percent
from llmrec_cli.data.catalog import EXAMPLES, NamedItems, disambiguate
from llmrec_cli.data.columns import (
    AS_READ,
    DISLIKED,
    ITEM_ID,
    NEGATIVES,
    NO_TARGET,
    NO_TITLE,
    SHORT_HISTORY,
    TARGET,
    TITLE,
    USER,
    split_file,
)
from llmrec_cli.data.rows import SplitCounts
from llmrec_cli.recipe.data import DataSection

Facts: TypeAlias = dict[str, Any]

RULES = {
    "order": "by time within a user; ties in time keep input order",
    "cleaning": "time window, rating, repeated pairs, untitled items, k-core on unique pairs",
    "indices": "items in order of item_id, users in order of user_id",
    "count": "training interactions of an item, each once; of given rows: distinct user-item pairs",
    "leave-one-out": "users with fewer than 3 interactions are training only",
    "given": "rows stay as delivered: only untitled, history, min_history and sample apply",
}
PAIR_RULES = {
    "items": "every distinct title is an item, as it stands in the prompt",
    "users": "named by their history; pairs of one history and one liked title are one row",
    "valid": "absent: a tenth of the training users, drawn with the seed, who leave training",
    "count": "pairs are not counted: a candidate that was not liked is no interaction",
}
DISLIKED_RULE = (
    "catalogue items that the user rated below data.min_rating and had not rated higher by then; "
    "of a valid or test row: before its target; of a train row: before the user's first valid or "
    "test target, and with global-time before everybody's first"
)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What stands in a prepared folder beside the rows, which are written by now."""

    named: NamedItems
    items: pl.DataFrame  # the catalogue with COUNT
    splits: tuple[str, ...]  # in the order in which they are written
    tied: Finding | None  # see ``audit``; None for a source that comes split
    clock: bool  # times compare across users
    cleaning: Any  # JSON-able: what each step left, or for given rows what went
    counts: Mapping[str, SplitCounts]  # by split: what data.sample and data.history took


def describe_preparation(
    made: Preparation, folder: Path, notes: Mapping[str, Any], files: Sequence[str]
) -> Facts:
    """The manifest's account, JSON-able: reader's notes, cleaning, catalogue, splits, audit.

    Args:
        folder: where the split files of ``made`` are.
        files: paths of the sources; where the notes name one, its base name takes its place.
    """
    names = disambiguate([Path(file).name for file in files], [None] * len(files))
    splits = {name: pl.scan_parquet(folder / split_file(name), glob=False) for name in made.splits}
    columns = splits["test"].collect_schema()
    further: Facts = {"rank-pairs": PAIR_RULES} if NEGATIVES in columns else {}
    further |= {"disliked": DISLIKED_RULE} if DISLIKED in columns else {}
    return {
        "rules": RULES | further,
        "reader": _rename_files(notes, dict(zip(files, names, strict=True))),
        "cleaning": made.cleaning,
        "catalogue": _describe_catalogue(made),
        "splits": {
            name: _count_split(rows) | made.counts[name].facts() for name, rows in splits.items()
        },
        "audit": count_findings(Rows(made.items, splits, made.tied, made.clock)),
    }


def describe_lost_rows(
    cleaning: Mapping[str, Mapping[str, int]], section: DataSection
) -> list[str]:
    """What to say of rows and history items that a source that comes split lost; by split."""
    reasons = {
        NO_TARGET: "the target has no usable title",
        SHORT_HISTORY: f"the history is shorter than data.min_history = {section.min_history}",
    }
    lines = []
    for name, counts in cleaning.items():
        read = counts[AS_READ]
        for key, reason in reasons.items():
            if lost := counts[key]:
                rows = f"{lost:,} of {read:,} rows ({tell_percent(lost / read)})"
                lines.append(f"{name}: left out {rows}: {reason}")
        if lost := counts[NO_TITLE]:
            lines.append(f"{name}: left out {lost:,} history items without a usable title")
    return lines


def describe_cuts(made: Preparation, section: DataSection) -> list[str]:
    """What to say of rows that were not sampled, and of histories that were cut; by split."""
    lines = []
    for name, counts in made.counts.items():
        total = counts.unsampled
        size: int | None = getattr(section.sample, name, None)
        kept = total if size is None else min(size, total)
        if kept < total:
            lines.append(f"{name}: kept {kept:,} of {total:,} rows (data.sample)")
        if counts.cut_rows:
            lines.append(
                f"{name}: {counts.cut_rows:,} of {kept:,} rows have a history of more than "
                f"data.history = {section.history} items: the oldest {counts.cut_items:,} items "
                "are left out"
            )
    return lines


def _describe_catalogue(made: Preparation) -> Facts:
    named = made.named
    before = made.items.join(named.items, on=ITEM_ID, how="left", maintain_order="left")
    renamed = before.filter(pl.col(TITLE) != pl.col(f"{TITLE}_right"))
    return {
        "items": len(made.items),
        "items without a usable title": len(named.untitled),
        "of these without a name, dropped": len(named.dropped),
        "examples": named.untitled[:EXAMPLES],
        "titles made distinct": len(renamed),
    }


def _rename_files(notes: Any, names: Mapping[str, str]) -> Any:
    if isinstance(notes, Mapping):
        return {names.get(key, key): _rename_files(value, names) for key, value in notes.items()}
    if isinstance(notes, list):
        return [_rename_files(value, names) for value in notes]
    return names.get(notes, notes) if isinstance(notes, str) else notes


def _count_split(rows: pl.LazyFrame) -> Facts:
    columns = rows.collect_schema()
    counts = {
        "rows": pl.len(),
        "users": pl.col(USER).n_unique(),
        "targets": pl.col(TARGET).n_unique(),
    }
    if NEGATIVES in columns:
        counts["pairs"] = pl.col(NEGATIVES).list.len().sum()
    if DISLIKED in columns:
        some = pl.col(DISLIKED).list.len() > 0
        counts["rows with disliked items"] = some.sum()
        counts["users with disliked items"] = pl.col(USER).filter(some).n_unique()
    found: Facts = rows.select(**counts).collect().row(0, named=True)
    return found
