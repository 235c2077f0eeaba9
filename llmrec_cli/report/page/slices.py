"""A metric by groups of rows: how often the target was seen in training, how long the history is.

Shape suffixes: R rows, E entries, U users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.columns import (
    BEAM_DIFFERS,
    HISTORY,
    ITEMS_FILE,
    ROW,
    TARGET,
    USER_ID,
    split_file,
)
from llmrec_cli.report.comparison import Comparison
from llmrec_cli.report.entries import Entry
from llmrec_cli.report.lists import Seen
from llmrec_cli.report.metrics import score_rows
from llmrec_cli.report.page.material import BeamError, Group, Slicing
from llmrec_cli.report.statistics import (
    Floats,
    Interval,
    bootstrap_means,
    percentiles,
    user_sums,
)

GROUPS = 5
Ints = NDArray[np.int64]


def on_same_rows(entries: Sequence[Entry], baseline: str | None) -> list[Entry]:
    """The entries with lists for the rows that the baseline (else the first entry) ranks."""
    ranked = [entry for entry in entries if frames_of(entry)]
    base = next((entry for entry in ranked if entry.name == baseline), next(iter(ranked), None))
    return [entry for entry in ranked if base and _rows_key(entry) == _rows_key(base)]


def frames_of(entry: Entry) -> list[pd.DataFrame]:
    """An entry's lists, one frame per seed, in order of the row's number; none of pairs."""
    frames = [run.predictions for run in entry.evaluations if run.predictions is not None]
    return [frame.sort_values(ROW, kind="stable") for frame in frames]


def slicings(
    entries: Sequence[Entry], comparison: Comparison, seen: Seen
) -> tuple[Slicing, Slicing]:
    """The compared metric by popularity of the target, and by length of the history.

    Args:
        entries: over the same rows (``on_same_rows``), at least one.
        seen: the headline's policy.
    """
    rows, ground = frames_of(entries[0])[0], entries[0].ground
    count_R = ground.leaves.count_L[ground.leaves.leaf_of_item_I[rows[TARGET].to_numpy(np.int64)]]
    length_R = np.array([len(history) for history in rows[HISTORY]], dtype=np.int64)
    value_RE = np.stack([_values(entry, comparison, seen) for entry in entries], axis=1)
    names, metric = [entry.name for entry in entries], comparison.compared

    def cut(figure_R: Ints) -> tuple[tuple[Group, ...], dict[str, tuple[Interval, ...]]]:
        found = list(_groups(figure_R, rows[USER_ID], value_RE, comparison))
        groups = tuple(group for group, _ in found)
        of_entries = zip(*(ends for _, ends in found), strict=True)
        return groups, dict(zip(names, of_entries, strict=True))

    longest = ground.manifest["data"].get("history")
    return (
        Slicing("popularity", metric, *cut(count_R)),
        Slicing("history", metric, *cut(length_R), longest),
    )


def bounds_of(figure_R: Ints) -> list[tuple[int, int]]:
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


def beam_errors(entries: Sequence[Entry], comparison: Comparison) -> tuple[BeamError, ...]:
    """Of the entries that counted them: how many beam lists are not the exact ones."""
    found = []
    for entry in entries:
        frames = frames_of(entry)
        if frames and all(BEAM_DIFFERS in frame.columns for frame in frames):
            mean_R = np.mean([frame[BEAM_DIFFERS].to_numpy(np.float64) for frame in frames], axis=0)
            rows = frames[0][[USER_ID]].assign(**{BEAM_DIFFERS: mean_R})
            share = bootstrap_means(rows, [BEAM_DIFFERS], comparison.resamples, comparison.seed)
            found.append(BeamError(entry.name, len(rows), share[BEAM_DIFFERS]))
    return tuple(found)


def _rows_key(entry: Entry) -> tuple[str, ...]:
    files = entry.ground.manifest["files"]
    names = (ITEMS_FILE, split_file(entry.ground.split))
    return (*(files[name]["sha256"] for name in names), entry.traits["evaluated"].key)


def _values(entry: Entry, comparison: Comparison, seen: Seen) -> Floats:
    """The compared metric of every row, mean over seeds."""
    cutoffs = sorted({int(name.partition("@")[2]) for name in comparison.metrics})
    scored = [
        score_rows(frame, entry.ground.leaves, cutoffs, seen, "miss") for frame in frames_of(entry)
    ]
    by_seed = [rows[comparison.compared].to_numpy(np.float64) for rows in scored]
    mean_R: Floats = np.mean(by_seed, axis=0)
    return mean_R


def _groups(
    figure_R: Ints, users: pd.Series[str], value_RE: Floats, comparison: Comparison
) -> Iterator[tuple[Group, list[Interval]]]:
    """Each group, with every entry's mean and its 95 % interval, users of the group drawn."""
    for low, high in bounds_of(figure_R):
        inside_R = (figure_R >= low) & (figure_R <= high)
        sums = user_sums(users[inside_R], value_RE[inside_R])
        lows, highs = percentiles(sums, comparison.resamples, comparison.seed)
        ends = zip(sums.means(), lows, highs, strict=True)
        group = Group(low, high, int(inside_R.sum()), len(sums.count_U))
        yield group, [Interval(*map(float, own)) for own in ends]
