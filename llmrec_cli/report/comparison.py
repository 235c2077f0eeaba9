"""What ``llmrec compare`` finds: entries under one protocol, with intervals, tests and cost.

An entry is one way to recommend: one run, or runs that differ in nothing but their seed.  These
values are all that tables, pictures and pages are made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Policy = Literal["keep", "remove", "pairs"]
"""The history among the candidates, or not; ``pairs``: the rank-pair task, which knows neither."""

Kind = Literal["language model", "conventional", "external"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of an entry: mean over seeds of the mean over rows."""

    mean: float
    low: float  # 95 % interval, users drawn; NaN: unknown
    high: float
    by_seed: tuple[float, ...]
    seed_low: float  # 95 % interval over seeds (Student's t); NaN with one seed
    seed_high: float


@dataclass(frozen=True, slots=True)
class Contrast:
    """An entry minus the baseline over the same rows, mean over seeds."""

    mean: float
    low: float  # 95 % interval, users drawn
    high: float
    p: float  # two-sided sign-flip test over users
    p_holm: float  # after Holm's correction over all entries compared with the baseline
    detectable: float  # smallest true difference found with 80 % power at the uncorrected 5 % level
    by_seed: tuple[float, ...]
    seed_low: float
    seed_high: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What an entry took, mean over its seeds; None: not recorded."""

    train_seconds: float | None  # of the updates, validation apart; of this stage, not its parents
    valid_seconds: float | None  # of this stage's validations
    lineage_seconds: float | None  # of the updates of this stage and every stage it stands on
    device: str | None  # "cpu", or a GPU's name
    processes: int | None
    device_seconds: float | None  # lineage_seconds times processes
    tokens: int | None  # padded ones that training passed through the model, of the lineage
    peak_bytes: int | None  # highest memory of training: the device's, on a CPU the process's
    eval_seconds: float | None  # with loading the model
    eval_peak_bytes: int | None
    milliseconds_per_row: float | None  # of decoding


@dataclass(frozen=True, slots=True)
class Standing:
    """One entry."""

    name: str
    kind: Kind
    seeds: tuple[int, ...]  # empty where none is known
    sources: tuple[str, ...]  # one per seed: "EXPERIMENT/RUN", or the name of another tool's file
    why_not: str | None  # what differs from the baseline, headline policy; None: it compares
    metrics: Mapping[Policy, Mapping[str, Estimate]]
    contrasts: Mapping[Policy, Mapping[str, Contrast]]  # empty: baseline, or it does not compare
    lists: Mapping[Policy, Mapping[str, float]]  # coverage, gini, popularity, long_tail, short
    auc: Mapping[str, Any] | None  # of the generate task, as report.json has it
    beam_error: float | None  # share of rows whose beam list is not the exact one
    cost: Cost


@dataclass(frozen=True, slots=True)
class Comparison:
    """Entries under one protocol, in the order given."""

    split: str
    policies: tuple[Policy, ...]
    headline: Policy
    metrics: tuple[str, ...]
    compared: str  # the metric that tables show the contrast of
    baseline: str | None
    candidates: str
    n_rows: int
    n_users: int
    resamples: int
    seed: int
    standings: tuple[Standing, ...]
    notes: tuple[str, ...]  # what a reader has to know, one line each
