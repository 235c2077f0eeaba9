"""From entries to figures: estimates of every metric, and paired contrasts with a baseline.

Over the rows that entries share, users are drawn once for all of them.  Seeds of an entry are
averaged row by row first, so that a user is drawn with all rows of all seeds.  Shape suffixes:
R rows, U users, C columns, one for each metric of each policy of each entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from llmrec_cli.data.columns import BEAM_DIFFERS, ROW, USER_ID
from llmrec_cli.errors import ArtefactError
from llmrec_cli.report.comparable import ROWS_OF, why_not
from llmrec_cli.report.comparison import Comparison, Contrast, Estimate, Policy, Standing
from llmrec_cli.report.entries import Entry, Evaluation
from llmrec_cli.report.metrics import beyond_accuracy, score_rows
from llmrec_cli.report.pairs import (
    POOLED,
    auc_figures,
    auc_pooled,
    per_user,
    pooled_by_run,
)
from llmrec_cli.report.question import Question
from llmrec_cli.report.statistics import (
    Floats,
    UserSums,
    holm,
    paired_differences,
    percentiles,
    seed_differences,
    seed_interval,
    user_sums,
)

LISTS: Final = ("coverage", "gini", "popularity", "long_tail", "short")


@dataclass(frozen=True)
class _Scored:
    """One entry under one policy."""

    entry: Entry
    policy: Policy
    users: pd.Series[Any]  # of every row, in order of the row's number
    value_SRM: Floats  # S seeds; M the averaged metrics

    @property
    def by_seed_SM(self) -> Floats:
        mean_SM: Floats = self.value_SRM.mean(axis=1)
        return mean_SM


_At = tuple[str, Policy]  # name of an entry, and a policy


def build_comparison(
    entries: Sequence[Entry], asked: Question, notes: Sequence[str] = ()
) -> Comparison:
    """Score the entries and set them against the baseline.

    Args:
        entries: at least one, of different names and of one task.
        notes: what a reader has to know besides.

    Raises:
        ArtefactError: two entries of one name, an unknown baseline or metric, or lists that do not
            fit the catalogue.
    """
    _check_names(entries, asked)
    base = next((entry for entry in entries if entry.name == asked.baseline), None)
    measure = base or entries[0]  # what others have to agree with
    scored = {
        (entry.name, policy): _score_entry(entry, policy, asked)
        for entry in entries
        for policy in asked.policies
    }
    estimates: dict[_At, dict[str, Estimate]] = {}
    for group in _group_by_rows(entries):
        together = [scored[entry.name, policy] for entry in group for policy in asked.policies]
        estimates |= _estimate_together(together, asked)
    contrasts = _contrast_entries(scored, base, asked) if base else {}
    standings = [
        _make_standing(entry, why_not(entry, measure, asked.headline), estimates, contrasts, asked)
        for entry in entries
    ]
    first = scored[measure.name, asked.headline]
    return Comparison(
        split=asked.split,
        policies=asked.policies,
        headline=asked.headline,
        metrics=asked.metrics,
        compared=asked.compared,
        baseline=asked.baseline,
        candidates=measure.traits["candidates"].words,
        n_rows=_count_rows(measure),
        n_users=int(first.users.nunique()),
        resamples=asked.resamples,
        seed=asked.seed,
        standings=tuple(standings),
        notes=(*notes, *_note_short_lists(standings, first.value_SRM.shape[1], asked)),
    )


def _check_names(entries: Sequence[Entry], asked: Question) -> None:
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ArtefactError(f"a comparison needs entries of different names, not {names}")
    for label, value, known in (
        ("baseline", asked.baseline, names),
        ("metric", asked.compared, asked.averaged),
    ):
        if value is not None and value not in known:
            raise ArtefactError(f"no {label} {value!r}; there is {', '.join(known)}")


def _score_entry(entry: Entry, policy: Policy, asked: Question) -> _Scored:
    frames = [_score_run(entry, run, policy, asked) for run in entry.evaluations]
    values = [frame[list(asked.averaged)].to_numpy(np.float64) for frame in frames]
    return _Scored(entry, policy, frames[0][USER_ID], np.stack(values))


def _score_run(entry: Entry, run: Evaluation, policy: Policy, asked: Question) -> pd.DataFrame:
    """Every row's metrics; of the rank-pair task, every user's."""
    if policy == "pairs" and run.pairs is not None:
        return per_user(run.pairs)
    if policy != "pairs" and run.predictions is not None:
        return score_rows(run.predictions, entry.ground.leaves, asked.cutoffs, policy, "miss")
    raise ArtefactError(f"{run.label}: has no lists of the task that the others are of")


def _group_by_rows(entries: Iterable[Entry]) -> list[list[Entry]]:
    groups = defaultdict(list)
    for entry in entries:
        what = ("items", ROWS_OF[entry.ground.split], "evaluated")
        key = tuple(trait.key for name, trait in entry.traits.items() if name in what)
        groups[key].append(entry)
    return list(groups.values())


def _sum_users(parts: Sequence[_Scored], values: Sequence[Floats]) -> UserSums:
    """Users' sums of [R, M] arrays side by side."""
    return user_sums(parts[0].users, np.concatenate(values, axis=1))


def _estimate_together(
    together: Sequence[_Scored], asked: Question
) -> dict[_At, dict[str, Estimate]]:
    """Estimates of entries over the same rows."""
    sums = _sum_users(together, [part.value_SRM.mean(axis=0) for part in together])
    ends = iter(zip(*percentiles(sums, asked.resamples, asked.seed), strict=True))
    found: dict[_At, dict[str, Estimate]] = {}
    for part in together:
        by_seed = zip(asked.averaged, part.by_seed_SM.T.tolist(), strict=True)
        own = {name: _make_estimate(values, *next(ends)) for name, values in by_seed}
        if POOLED in asked.metrics:
            own[POOLED] = _estimate_pooled(part.entry, asked)
        found[part.entry.name, part.policy] = own
    return found


def _make_estimate(by_seed: Sequence[float], low: float, high: float) -> Estimate:
    mean = float(np.mean(by_seed))
    return Estimate(mean, float(low), float(high), tuple(by_seed), *seed_interval(by_seed))


def _estimate_pooled(entry: Entry, asked: Question) -> Estimate:
    runs = [run.pairs for run in entry.evaluations if run.pairs is not None]
    found = auc_pooled(runs, asked.resamples, asked.seed)
    return _make_estimate(pooled_by_run(runs, asked.seed), found.low, found.high)


def _contrast_entries(
    scored: Mapping[_At, _Scored], base: Entry, asked: Question
) -> dict[_At, dict[str, Contrast]]:
    """Contrasts of every entry that compares with the baseline, under the policies where it does.

    (The pooled AUC, which is no mean over users, has none.)
    """
    parts = [
        part
        for part in scored.values()
        if part.entry is not base and why_not(part.entry, base, part.policy) is None
    ]
    if not parts:
        return {}
    against = [scored[base.name, part.policy] for part in parts]
    pairs = list(zip(parts, against, strict=True))
    deltas = [ours.value_SRM.mean(axis=0) - theirs.value_SRM.mean(axis=0) for ours, theirs in pairs]
    tested = paired_differences(_sum_users(parts, deltas), asked.resamples, asked.seed)
    columns = zip(*tested, strict=True)
    found: dict[_At, dict[str, Contrast]] = {}
    for ours, theirs in pairs:
        seeds = _contrast_seeds(ours, theirs)
        own = {}
        for name, of_seeds in zip(asked.averaged, seeds, strict=True):
            mean, low, high, p, detectable = map(float, next(columns))
            own[name] = Contrast(mean, low, high, p, p, detectable, *of_seeds)
        found[ours.entry.name, ours.policy] = own
    return _correct_p_values(found, asked)


def _contrast_seeds(ours: _Scored, theirs: _Scored) -> list[tuple[tuple[float, ...], float, float]]:
    """Of every metric: differences by seed, and their interval."""
    seeds = [[run.seed for run in part.entry.evaluations] for part in (ours, theirs)]
    matched = seeds[0] == seeds[1] and None not in seeds[0]
    columns = zip(ours.by_seed_SM.T.tolist(), theirs.by_seed_SM.T.tolist(), strict=True)
    return [seed_differences(a, b, matched=matched) for a, b in columns]


def _correct_p_values(
    found: Mapping[_At, Mapping[str, Contrast]], asked: Question
) -> dict[_At, dict[str, Contrast]]:
    """With Holm's correction over the entries of one metric and policy."""
    corrected: dict[_At, dict[str, Contrast]] = {at: dict(own) for at, own in found.items()}
    for policy in asked.policies:
        family = [at for at in found if at[1] == policy]
        for name in asked.averaged:
            values = holm([found[at][name].p for at in family])
            for at, value in zip(family, values, strict=True):
                corrected[at][name] = replace(found[at][name], p_holm=value)
    return corrected


def _make_standing(
    entry: Entry,
    reason: str | None,
    estimates: Mapping[_At, Mapping[str, Estimate]],
    contrasts: Mapping[_At, Mapping[str, Contrast]],
    asked: Question,
) -> Standing:
    policies, runs = asked.policies, entry.evaluations
    frames = [run.predictions for run in runs if run.predictions is not None]
    errors = [frame[BEAM_DIFFERS].mean() for frame in frames if BEAM_DIFFERS in frame.columns]
    return Standing(
        name=entry.name,
        kind=entry.kind,
        seeds=tuple(run.seed for run in runs if run.seed is not None),
        sources=tuple(run.label for run in runs),
        why_not=reason,
        metrics={policy: estimates[entry.name, policy] for policy in policies},
        contrasts={policy: contrasts.get((entry.name, policy), {}) for policy in policies},
        lists={
            policy: _describe_lists(entry, policy, asked) for policy in policies if asked.cutoffs
        },
        auc=_measure_auc(entry, asked),
        beam_error=float(np.mean(errors)) if errors else None,
        cost=entry.cost,
    )


def _describe_lists(entry: Entry, policy: Policy, asked: Question) -> dict[str, float]:
    """Means over seeds of what the lists look like as a whole."""
    depth, found = max(asked.cutoffs), []
    for run in entry.evaluations:
        if run.predictions is not None and policy != "pairs":
            found.append(beyond_accuracy(run.predictions, entry.ground.leaves, depth, policy))
    values = [asdict(lists) for lists in found]
    return {name: float(np.mean([own[name] for own in values])) for name in LISTS}


def _note_short_lists(standings: Sequence[Standing], n_rows: int, asked: Question) -> Iterator[str]:
    for standing in standings:
        short = standing.lists.get(asked.headline, {}).get("short", 0)
        if short:
            yield (
                f"{standing.name}: {short:,.0f} of {n_rows:,} lists end before "
                f"{max(asked.cutoffs)} entries; past its end is a miss"
            )


def _measure_auc(entry: Entry, asked: Question) -> dict[str, Any] | None:
    """AUC of the generate task, where every run has scored its pairs."""
    runs = [run.pairs for run in entry.evaluations if run.pairs is not None]
    if not asked.cutoffs or len(runs) < len(entry.evaluations):
        return None
    return auc_figures(runs, asked.resamples, asked.seed)


def _count_rows(entry: Entry) -> int:
    run = entry.evaluations[0]
    frame = run.predictions if run.predictions is not None else run.pairs
    return 0 if frame is None else int(frame[ROW].nunique())
