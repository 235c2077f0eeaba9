"""The values that the page shows in addition to the comparison.

Logs, audits and facts are read from the runs' folders (``report.page.gather``).  Groups of rows,
beam errors and the users side by side are computed here.  Shape suffixes: R rows, E entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.audit import Verdict
from llmrec_cli.data.schema import (
    BEAM_DIFFERS,
    HISTORY,
    ITEMS_FILE,
    ROW,
    TARGET,
    TITLE,
    TOKENS,
    USER_ID,
    split_file,
)
from llmrec_cli.evaluation.comparison import Comparison, Entry, EvaluatedData
from llmrec_cli.evaluation.metrics import Seen, cut_top_lists, score_rows
from llmrec_cli.evaluation.statistics import (
    Floats,
    Interval,
    bootstrap_means,
    bootstrap_percentiles,
    sum_by_user,
)

GROUPS = 5  # of rows, at most
USERS, PLACES = 10, 10  # users shown, places of each of their lists
Ints = NDArray[np.int64]


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
class RowGroup:
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
    groups: tuple[RowGroup, ...]  # in rising order
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
class IdUse:
    """How the semantic IDs that llmrec made for some data use their tokens."""

    name: str  # whose data
    codes: int  # values that a quantizer's token may have
    levels: tuple[tuple[int, ...], ...]  # of each place: items of each token in use, most first
    neighbourhood: tuple[tuple[int, float, float], ...]  # (tokens, share of neighbours, chance)


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One recommended title, as found in the data."""

    title: str
    target: bool  # it is the target's entry
    seen: bool  # the user had it already


@dataclass(frozen=True, slots=True)
class TopList:
    """What an entry recommends to one user."""

    entry: str
    items: tuple[ShownItem, ...]
    rank: int  # of the target, from 1; 0: not in the list


@dataclass(frozen=True, slots=True)
class UserCase:
    """One user: the history, the target, and what each entry recommends."""

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
    """Everything that the page is made from; empty parts are left out of the page."""

    maker: str  # the program and its version
    comparison: Comparison
    experiments: tuple[str, ...]  # names, in order
    facts: tuple[Fact, ...]  # the protocol, in words
    logs: tuple[RunLog, ...] = ()
    slicings: tuple[Slicing, ...] = ()
    beam_errors: tuple[BeamError, ...] = ()
    audits: tuple[Audited, ...] = ()
    ids: tuple[IdUse, ...] = ()
    users: tuple[UserCase, ...] = ()


def select_same_rows(entries: Sequence[Entry], baseline: str | None) -> list[Entry]:
    """The entries with lists for the rows that the baseline (else the first entry) ranks."""
    ranked = [entry for entry in entries if sort_frames(entry)]
    base = next((entry for entry in ranked if entry.name == baseline), next(iter(ranked), None))
    return [entry for entry in ranked if base and _rows_key(entry) == _rows_key(base)]


def sort_frames(entry: Entry) -> list[pd.DataFrame]:
    """An entry's lists, one frame per seed, in order of the row's number; none of pairs."""
    frames = [run.predictions for run in entry.evaluations if run.predictions is not None]
    return [frame.sort_values(ROW, kind="stable") for frame in frames]


def _rows_key(entry: Entry) -> tuple[str, ...]:
    files = entry.evaluated_data.manifest["files"]
    names = (ITEMS_FILE, split_file(entry.evaluated_data.split))
    return (*(files[name]["sha256"] for name in names), entry.traits["evaluated"].key)


# Groups of rows.


def slice_rows(
    entries: Sequence[Entry], comparison: Comparison, seen: Seen
) -> tuple[Slicing, Slicing]:
    """The compared metric by popularity of the target, and by length of the history.

    Args:
        entries: over the same rows (``select_same_rows``), at least one.
        seen: the headline's policy.
    """
    rows, evaluated_data = sort_frames(entries[0])[0], entries[0].evaluated_data
    count_R = evaluated_data.leaves.count_L[
        evaluated_data.leaves.leaf_of_item_I[rows[TARGET].to_numpy(np.int64)]
    ]
    length_R = np.array([len(history) for history in rows[HISTORY]], dtype=np.int64)
    value_RE = np.stack([_score_entry(entry, comparison, seen) for entry in entries], axis=1)
    names, metric = [entry.name for entry in entries], comparison.compared

    def cut(figure_R: Ints) -> tuple[tuple[RowGroup, ...], dict[str, tuple[Interval, ...]]]:
        found = list(_score_groups(figure_R, rows[USER_ID], value_RE, comparison))
        groups = tuple(group for group, _ in found)
        of_entries = zip(*(ends for _, ends in found), strict=True)
        return groups, dict(zip(names, of_entries, strict=True))

    longest = evaluated_data.manifest["data"].get("history")
    return (
        Slicing("popularity", metric, *cut(count_R)),
        Slicing("history", metric, *cut(length_R), longest),
    )


def choose_bounds(figure_R: Ints) -> list[tuple[int, int]]:
    """Bounds of up to ``GROUPS`` groups of about equally many rows; 0 is a group of its own.

    Rows of one figure stay together, so groups may differ in size.
    """
    found = [(0, 0)] if (figure_R == 0).any() else []
    rest_R = figure_R[figure_R > 0]
    if len(rest_R) == 0:
        return found
    shares = np.arange(1, GROUPS + 1) / GROUPS
    highs = np.unique(np.quantile(rest_R, shares, method="inverted_cdf"))
    lows = [rest_R.min(), *(highs[:-1] + 1)]
    return found + [(int(low), int(high)) for low, high in zip(lows, highs, strict=True)]


def _score_entry(entry: Entry, comparison: Comparison, seen: Seen) -> Floats:
    """The compared metric of every row, mean over seeds, [R]."""
    cutoffs = sorted({int(name.partition("@")[2]) for name in comparison.metrics})
    leaves, metric = entry.evaluated_data.leaves, comparison.compared
    scored = [score_rows(frame, leaves, cutoffs, seen, "miss") for frame in sort_frames(entry)]
    mean_R: Floats = np.mean([rows[metric].to_numpy(np.float64) for rows in scored], axis=0)
    return mean_R


def _score_groups(
    figure_R: Ints, users: pd.Series[str], value_RE: Floats, comparison: Comparison
) -> Iterator[tuple[RowGroup, list[Interval]]]:
    """Each group, with every entry's mean and its 95 % interval, users of the group drawn."""
    for low, high in choose_bounds(figure_R):
        inside_R = (figure_R >= low) & (figure_R <= high)
        sums = sum_by_user(users[inside_R], value_RE[inside_R])
        lows, highs = bootstrap_percentiles(sums, comparison.resamples, comparison.seed)
        ends = zip(sums.means(), lows, highs, strict=True)
        group = RowGroup(low, high, int(inside_R.sum()), len(sums.count_U))
        yield group, [Interval(*map(float, own)) for own in ends]


def measure_beam_errors(entries: Sequence[Entry], comparison: Comparison) -> tuple[BeamError, ...]:
    """How many beam lists are not the exact ones, of the entries that counted them."""
    found = []
    for entry in entries:
        frames = sort_frames(entry)
        if frames and all(BEAM_DIFFERS in frame.columns for frame in frames):
            mean_R = np.mean([frame[BEAM_DIFFERS].to_numpy(np.float64) for frame in frames], axis=0)
            rows = frames[0][[USER_ID]].assign(**{BEAM_DIFFERS: mean_R})
            share = bootstrap_means(rows, [BEAM_DIFFERS], comparison.resamples, comparison.seed)
            found.append(BeamError(entry.name, len(rows), share[BEAM_DIFFERS]))
    return tuple(found)


# Users side by side.


def choose_users(
    entries: Sequence[Entry], comparison: Comparison, seen: Seen
) -> tuple[UserCase, ...]:
    """The ten users whose id has the smallest SHA-256, each with their first row.

    No result affects this order: nobody chose these users for their lists.

    Args:
        entries: over the same rows, at least one; where there are several seeds, the first one's
            lists are shown.
        seen: the headline's policy.
    """
    rows = choose_page_rows(sort_frames(entries[0])[0])
    depth = max(int(name.partition("@")[2]) for name in comparison.metrics)
    lists = [_list_titles(entry, rows[ROW].tolist(), depth, seen) for entry in entries]
    figures = zip(rows[ROW], rows[USER_ID], rows[HISTORY], rows[TARGET], strict=True)
    return tuple(
        _build_case(entries[0].evaluated_data, row, tuple(own[place] for own in lists))
        for place, row in enumerate(figures)
    )


def choose_page_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows shown, users in order of the SHA-256 of their id.

    Args:
        predictions: in order of the row's number.
    """
    first = predictions.drop_duplicates(USER_ID)
    hashes = [
        sha256(str(user).encode("utf-8", "surrogatepass")).digest() for user in first[USER_ID]
    ]
    order = sorted(range(len(first)), key=hashes.__getitem__)
    return first.iloc[order[:USERS]]


def find_title(items: pd.DataFrame, item: int) -> str:
    """An item's title, else its semantic ID."""
    title, tokens = items[TITLE].iloc[item], items[TOKENS].iloc[item]
    if isinstance(title, str):
        return title
    return "".join(tokens) if isinstance(tokens, list) else "?"


def _list_titles(entry: Entry, numbers: Sequence[int], depth: int, seen: Seen) -> list[TopList]:
    leaves, items = entry.evaluated_data.leaves, entry.evaluated_data.items
    rows = sort_frames(entry)[0].set_index(ROW, drop=False).loc[list(numbers)]
    top = cut_top_lists(rows, leaves, depth, seen)
    found = []
    for leaf_K, target, history in zip(top.leaf_RK, top.target_R, rows[HISTORY], strict=True):
        had = set(leaves.leaf_of_item_I[np.asarray(history, dtype=np.int64)].tolist())
        listed = [
            ShownItem(
                find_title(items, int(leaves.item_of_leaf_L[leaf])), leaf == target, leaf in had
            )
            for leaf in leaf_K[:PLACES].tolist()
            if leaf >= 0
        ]
        hits = np.flatnonzero(leaf_K == target)
        found.append(TopList(entry.name, tuple(listed), int(hits[0]) + 1 if len(hits) else 0))
    return found


def _build_case(
    evaluated_data: EvaluatedData,
    row: tuple[int, str, Sequence[int], int],
    lists: tuple[TopList, ...],
) -> UserCase:
    number, user, history, target = row
    leaves = evaluated_data.leaves
    return UserCase(
        user=str(user),
        row=int(number),
        history=tuple(find_title(evaluated_data.items, int(item)) for item in history),
        target=find_title(evaluated_data.items, int(target)),
        target_count=int(leaves.count_L[leaves.leaf_of_item_I[target]]),
        lists=lists,
    )
