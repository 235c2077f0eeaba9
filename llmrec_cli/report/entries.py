"""What a comparison is made from: evaluated runs and other tools' lists, opened.

``Entry`` is the raw material behind a ``comparison.Standing`` of the same name and place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llmrec_cli.data.leaves import Leaves
from llmrec_cli.report.comparison import Cost, Kind


@dataclass(frozen=True, eq=False)
class Ground:
    """The prepared data that an evaluation stands on, and its catalogue."""

    folder: Path  # the prepared folder
    manifest: Mapping[str, Any]  # of it, its audit whole
    split: str
    items: pd.DataFrame  # as ``store.Prepared`` has them
    rows: pd.DataFrame  # of the split: ROW, USER_ID, HISTORY, TARGET, ...
    leaves: Leaves


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluated run, or one file of another tool."""

    label: str  # "EXPERIMENT/RUN", or the file's name
    run: str  # name of the run: "sft", "align-msl", ...; of another tool: as the user calls it
    folder: Path | None  # of the run: metrics.jsonl, manifest.json, ...; None: of another tool
    seed: int | None
    manifest: Mapping[str, Any]  # empty: of another tool
    report: Mapping[str, Any]  # report.json; empty: of another tool
    predictions: pd.DataFrame | None  # ``report.predictions.SCHEMA``; None: the rank-pair task
    pairs: pd.DataFrame | None  # ``report.pairs.SCHEMA``, where pairs were scored


@dataclass(frozen=True)
class Trait:
    """What has to agree with the baseline's: compared by ``key``, told in ``words``."""

    key: str
    words: str


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of a comparison: a run, or runs that differ in nothing but their seed."""

    name: str
    kind: Kind
    ground: Ground
    evaluations: tuple[Evaluation, ...]  # one per seed, over the same rows
    traits: Mapping[str, Trait]  # by what they are of; one that is absent agrees with any other
    cost: Cost
    without_history: bool = False  # another tool's lists, from which it left the history out
