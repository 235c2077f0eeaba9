"""What a prepared folder's manifest tells about how it came to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl

from llmrec_cli.data.audit import audit
from llmrec_cli.data.catalog import EXAMPLES, Named, disambiguate
from llmrec_cli.data.columns import DISLIKED, ITEM_ID, NEGATIVES, TARGET, TITLE, USER

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
class Made:
    """Everything that goes into a prepared folder."""

    named: Named
    items: pl.DataFrame  # the catalogue with COUNT
    splits: Mapping[str, pl.DataFrame]
    log: pl.DataFrame | None  # the cleaned interactions; None for a source that comes split
    clock: bool  # times compare across users
    cleaning: Any  # JSON-able: what each step left, or for given rows what went


def facts(made: Made, notes: Mapping[str, Any], files: Sequence[str]) -> Facts:
    """The manifest's account, JSON-able: reader's notes, cleaning, catalogue, splits, audit.

    Args:
        files: paths of the sources; where the notes name one, its base name takes its place.
    """
    names = disambiguate([Path(file).name for file in files], [None] * len(files))
    further: Facts = {"rank-pairs": PAIR_RULES} if _have(made, NEGATIVES) else {}
    further |= {"disliked": DISLIKED_RULE} if _have(made, DISLIKED) else {}
    return {
        "rules": RULES | further,
        "reader": _renamed(notes, dict(zip(files, names, strict=True))),
        "cleaning": made.cleaning,
        "catalogue": _catalogue(made),
        "splits": {name: _split(rows) for name, rows in made.splits.items()},
        "audit": audit(made.items, made.splits, made.log, made.clock),
    }


def _catalogue(made: Made) -> Facts:
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


def _renamed(notes: Any, names: Mapping[str, str]) -> Any:
    if isinstance(notes, Mapping):
        return {names.get(key, key): _renamed(value, names) for key, value in notes.items()}
    return notes


def _split(rows: pl.DataFrame) -> Facts:
    users, targets = rows[USER].n_unique(), rows[TARGET].n_unique()
    counts = {"rows": len(rows), "users": users, "targets": targets}
    if NEGATIVES in rows.columns:
        counts["pairs"] = int(rows[NEGATIVES].list.len().sum())
    if DISLIKED in rows.columns:
        some = rows.filter(pl.col(DISLIKED).list.len() > 0)
        counts["rows with disliked items"] = len(some)
        counts["users with disliked items"] = some[USER].n_unique()
    return counts


def _have(made: Made, column: str) -> bool:
    return column in made.splits["test"].columns
