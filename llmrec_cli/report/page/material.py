"""What the report page shows beside the comparison, as values read from the runs' folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmrec_cli.data.audit import Verdict
from llmrec_cli.report.comparison import Comparison
from llmrec_cli.report.statistics import Interval


@dataclass(frozen=True, slots=True)
class Curve:
    """One logged figure of one run; where updates are many, means over equally many of them."""

    steps: tuple[int, ...]  # updates, rising; the last one of each mean
    values: tuple[float, ...]  # finite
    per: int = 1  # updates that a value is the mean of


@dataclass(frozen=True, slots=True)
class RunLog:
    """What one run logged while it trained."""

    entry: str  # name of its standing
    label: str  # "EXPERIMENT/RUN"
    seed: int | None
    curves: Mapping[str, Curve]  # by logged name: "loss", "valid_ndcg@10", "tau", ...
    best_step: int | None  # update of the checkpoint that was kept


@dataclass(frozen=True, slots=True)
class Group:
    """Rows with a figure between two bounds, both inclusive."""

    low: int
    high: int
    rows: int
    users: int


@dataclass(frozen=True, slots=True)
class Slicing:
    """A metric by groups of rows, of the entries that rank these rows."""

    by: Literal["popularity", "history"]
    metric: str
    groups: tuple[Group, ...]  # in rising order
    estimates: Mapping[str, tuple[Interval, ...]]  # entry -> one for each group
    longest: int | None = None  # history: where the data were cut


@dataclass(frozen=True, slots=True)
class BeamError:
    """How often an entry's beam list is not the exact one."""

    entry: str
    rows: int
    share: Interval


@dataclass(frozen=True, slots=True)
class Audited:
    """The verdicts on one prepared folder."""

    name: str  # whose data
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """One recommended title, as found in the data."""

    title: str
    target: bool  # it is the target's entry
    seen: bool  # the user had it already


@dataclass(frozen=True, slots=True)
class TopList:
    """What an entry recommends to one user."""

    entry: str
    items: tuple[Listed, ...]
    rank: int  # of the target, from 1; 0: not in the list


@dataclass(frozen=True, slots=True)
class UserCase:
    """One user: what is known, what was to be found, what each entry recommends."""

    user: str
    row: int
    history: tuple[str, ...]  # titles, oldest first
    target: str
    target_count: int  # training interactions of the target's entry
    lists: tuple[TopList, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the page's heading."""

    term: str
    words: str


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page is made from; what is empty is left out."""

    maker: str  # the program and its version
    comparison: Comparison
    experiments: tuple[str, ...]  # names, in order
    facts: tuple[Fact, ...]  # the protocol, in words
    logs: tuple[RunLog, ...] = ()
    slicings: tuple[Slicing, ...] = ()
    beam_errors: tuple[BeamError, ...] = ()
    audits: tuple[Audited, ...] = ()
    users: tuple[UserCase, ...] = ()
