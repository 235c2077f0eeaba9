"""Comparison of entries: metrics with intervals, paired differences, comparability."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from llmrec_cli.config.training import Selection
from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.data.schema import BEAM_DIFFERS, ITEMS_FILE, ROW, SPLITS, USER_ID, split_file
from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.auc import (
    METRICS,
    OTHER,
    POOLED,
    auc_figures,
    measure_pooled_auc,
    pooled_by_run,
    score_users,
)
from llmrec_cli.evaluation.metrics import measure_lists, name_metrics, score_rows
from llmrec_cli.evaluation.statistics import (
    Floats,
    UserSums,
    bootstrap_percentiles,
    correct_holm,
    paired_differences,
    seed_differences,
    seed_interval,
    sum_by_user,
)
from llmrec_cli.tasks import find_reported_task
from llmrec_cli.tasks.base import SeenPolicy
from llmrec_cli.utils.text import clean_line

# The result of ``llmrec compare``: entries under one protocol, with intervals, tests and cost.
#
# An entry is one run, or several runs that differ only in their seed. Tables, figures and pages are
# made from these values.


Kind = Literal["language model", "conventional", "external"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of an entry: mean over seeds of the mean over rows."""

    mean: float  # over seeds
    low: float  # 95 % interval, users drawn; NaN: unknown
    high: float  # its upper end
    by_seed: tuple[float, ...]  # of each seed, in order
    seed_low: float  # 95 % interval over seeds (Student's t); NaN with one seed
    seed_high: float  # its upper end


@dataclass(frozen=True, slots=True)
class Contrast:
    """An entry minus the baseline over the same rows, mean over seeds."""

    mean: float  # over seeds
    low: float  # 95 % interval, users drawn
    high: float  # its upper end
    p: float  # two-sided sign-flip test over users
    p_holm: float  # after Holm's correction over all entries compared with the baseline
    detectable: float  # smallest true difference found with 80 % power at the uncorrected 5 % level
    by_seed: tuple[float, ...]  # of each seed, in order
    seed_low: float  # 95 % interval over seeds (Student's t); NaN with one seed
    seed_high: float  # its upper end


@dataclass(frozen=True, slots=True)
class Cost:
    """What an entry cost, mean over its seeds; None: not recorded."""

    train_seconds: float | None  # of the updates, validation apart; of this stage, not its parents
    valid_seconds: float | None  # of this stage's validations
    lineage_seconds: float | None  # of the updates of this stage and every stage that it needed
    device: str | None  # "cpu", or a GPU's name
    processes: int | None  # that trained
    device_seconds: float | None  # lineage_seconds times processes
    tokens: int | None  # padded ones that training passed through the model, of the lineage
    peak_bytes: int | None  # highest memory of training: the device's, on a CPU the process's
    eval_seconds: float | None  # with loading the model
    eval_peak_bytes: int | None  # highest memory of the evaluation
    milliseconds_per_row: float | None  # of decoding


@dataclass(frozen=True, slots=True)
class Standing:
    """One entry."""

    name: str  # of the run; with its experiment's where several are compared
    kind: Kind  # of model
    seeds: tuple[int, ...]  # empty where none is known
    sources: tuple[str, ...]  # one per seed: "EXPERIMENT/RUN", or the name of another tool's file
    n_rows: int  # evaluated rows
    n_users: int  # users of these rows
    why_not: str | None  # what differs from the baseline, headline policy; None: it compares
    metrics: Mapping[SeenPolicy, Mapping[str, Estimate]]  # by policy and metric
    contrasts: Mapping[SeenPolicy, Mapping[str, Contrast]]  # empty: baseline, or not comparable
    lists: Mapping[SeenPolicy, Mapping[str, float]]  # coverage, gini, popularity, long_tail, short
    auc: Mapping[str, Any] | None  # of the generate task, as report.json has it
    beam_error: float | None  # share of rows whose beam list is not the exact one
    cost: Cost  # of training and evaluation


@dataclass(frozen=True, slots=True)
class Comparison:
    """Entries under one protocol, in the order given."""

    split: str  # "test" or "valid"
    policies: tuple[SeenPolicy, ...]  # the history among the candidates ("keep") or not ("remove")
    headline: SeenPolicy  # the one of them that tables show
    metrics: tuple[str, ...]  # names, such as "ndcg@10"
    compared: str  # the metric that tables show the contrast of
    baseline: str | None  # the entry that the others are set against
    candidates: str  # what was ranked
    n_rows: int  # evaluated rows of the baseline, else of the first entry
    n_users: int  # users of these rows
    resamples: int  # of the bootstrap
    seed: int  # of the bootstrap
    standings: tuple[Standing, ...]  # the entries
    notes: tuple[str, ...]  # what a reader has to know, one line each

    @property
    def has_equal_rows(self) -> bool:
        """Whether all entries were evaluated on equally many rows of equally many users."""
        return len({(standing.n_rows, standing.n_users) for standing in self.standings}) == 1

    def find_estimate(
        self, entry: str, metric: str | None = None, seen: SeenPolicy | None = None
    ) -> Estimate:
        """One figure with its interval.

        Args:
            entry: name of an entry, such as "sft".
            metric: such as "hr@5"; None: the one that is compared (``compared``).
            seen: "keep" or "remove" the history; None: as the runs were evaluated (``headline``).

        Returns:
            Its mean, and the ends of its 95 % interval.

        Raises:
            ArtefactError: the comparison has no such entry, metric or policy.
        """
        found = {standing.name: standing for standing in self.standings}
        metric, policy = metric or self.compared, seen or self.headline
        _require_known("entry", entry, list(found))
        _require_known("metric", metric, self.metrics)
        _require_known("policy", policy, self.policies)
        return found[entry].metrics[policy][metric]

    def to_frame(self, metric: str | None = None, seen: SeenPolicy | None = None) -> pd.DataFrame:
        """The leaderboard as a table of pandas, with the columns of ``compare --out board.csv``.

        Args:
            metric: of this metric alone, a row per entry; None: of all, a row per entry and metric.
            seen: "keep" or "remove" the history; None: as the runs were evaluated (``headline``).

        Returns:
            Columns entry, kind, seeds, split, seen, metric, mean, low, high (ends of the 95 %
            interval), difference_mean, ..., p, p_holm, detectable, comparable, rows, users
            (evaluated), and the cost.

        Raises:
            ArtefactError: the comparison has no such metric or policy.
        """
        policy = seen or self.headline
        _require_known("policy", policy, self.policies)
        _require_known("metric", metric, self.metrics)
        rows = [
            row
            for row in self.list_figures()
            if row["seen"] == policy and metric in (None, row["metric"])
        ]
        return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))

    def list_figures(self) -> Iterator[dict[str, Any]]:
        """Every figure there is.

        Returns:
            A row per entry, policy and metric, with the columns of ``to_frame``; None: unknown.
        """
        for standing in self.standings:
            for policy in self.policies:
                for metric, estimate in standing.metrics[policy].items():
                    contrast = standing.contrasts[policy].get(metric)
                    yield {
                        "entry": clean_line(standing.name),
                        "kind": standing.kind,
                        "seeds": " ".join(map(str, standing.seeds)),
                        "split": self.split,
                        "seen": policy,
                        "metric": metric,
                        **{name: getattr(estimate, name) for name in _ESTIMATE},
                        **{_name_column(name): getattr(contrast, name, None) for name in _CONTRAST},
                        "comparable": standing.why_not or "yes",
                        "rows": standing.n_rows,
                        "users": standing.n_users,
                        **{name: getattr(standing.cost, name) for name in _COST},
                    }


def _name_column(name: str) -> str:
    """The column of a contrast's field."""
    return name if name in ("p", "p_holm", "detectable") else f"difference_{name}"


def _require_known(what: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise ArtefactError(f"no {what} {value!r}; there is {', '.join(known)}")


_ESTIMATE = ("mean", "low", "high", "seed_low", "seed_high")
_CONTRAST = ("mean", "low", "high", "p", "p_holm", "detectable", "seed_low", "seed_high")
_COST = tuple(field.name for field in fields(Cost))
FIGURE_COLUMNS: Final = (
    *("entry", "kind", "seeds", "split", "seen", "metric"),
    *_ESTIMATE,
    *map(_name_column, _CONTRAST),
    *("comparable", "rows", "users"),
    *_COST,
)


# The input of a comparison: evaluated runs and external lists.
#
# An ``Entry`` becomes a ``Standing`` with the same name and position.


@dataclass(frozen=True, eq=False)
class EvaluatedData:
    """The prepared data of an evaluation, and its catalogue."""

    folder: Path  # the prepared folder
    manifest: Mapping[str, Any]  # of it, with the whole audit
    split: str
    items: pd.DataFrame  # as ``Prepared`` has them
    rows: pd.DataFrame  # of the split: ROW, USER_ID, HISTORY, TARGET, ...
    leaves: CatalogueEntries
    index: Path | None = None  # file of the semantic IDs that llmrec made


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluated run, or one file of another tool."""

    label: str  # "EXPERIMENT/RUN", or the file's name
    run: str  # name of the run: "sft", "align-msl", ...; of another tool: as the user calls it
    folder: Path | None  # of the run: metrics.jsonl, manifest.json, ...; None: of another tool
    seed: int | None
    manifest: Mapping[str, Any]  # empty: of another tool
    report: Mapping[str, Any]  # report.json; empty: of another tool
    predictions: pd.DataFrame | None  # ``evaluation.predictions.SCHEMA``; None: the rank-pair task
    pairs: pd.DataFrame | None  # ``evaluation.auc.SCHEMA``, where pairs were scored
    validations: int | None = None  # of its training; None: unknown


@dataclass(frozen=True)
class ComparabilityKey:
    """A property that has to agree with the baseline's.

    ``key`` is what is compared; ``words`` say it in a message.
    """

    key: str
    words: str


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of a comparison: a run, or runs that differ in nothing but their seed."""

    name: str
    kind: Kind
    evaluated_data: EvaluatedData
    evaluations: tuple[Evaluation, ...]  # one per seed, over the same rows
    traits: Mapping[str, ComparabilityKey]  # by property; an absent one agrees with any other
    cost: Cost
    without_history: bool = False  # another tool's lists, from which it left the history out


@dataclass(frozen=True)
class ComparisonConfig:
    """What is asked of entries of one task on one split."""

    split: str
    policies: tuple[SeenPolicy, ...]
    headline: SeenPolicy
    cutoffs: tuple[int, ...]  # of metrics per row; empty: the rank-pair task
    compared: str  # metric whose contrast tables show
    baseline: str | None  # name of an entry; None: no contrasts, the first one sets the protocol
    resamples: int
    seed: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, in order."""
        return tuple(name_metrics(self.cutoffs)) if self.cutoffs else METRICS

    @property
    def averaged_names(self) -> tuple[str, ...]:
        """The metrics that are a mean over rows or users."""
        return tuple(name for name in self.metrics if name != POOLED)


# Comparability: the properties that two entries must share.
#
# They must share data, rows, catalogue, candidates, decoder and choice of a checkpoint. A property
# that an entry does not have agrees with every value: a conventional model has no decoder, and
# another tool's training is unknown.


ROWS_OF = {"train": "training rows", "valid": "validation rows", "test": "test rows"}
WHOLE = "whole catalogue"
EXACT = ("exact", "all")  # ways of searching that give one list, the model's own first K


def build_comparability_keys(
    evaluation: Evaluation, evaluated_data: EvaluatedData, kind: Kind
) -> dict[str, ComparabilityKey]:
    """Every property that has to agree, by its name.

    Args:
        evaluation: its report is one that ``load_evaluation`` has checked, or empty.
    """
    protocol = evaluation.report.get("protocol", {})
    task = find_reported_task(protocol)
    traits = {"task": _plain(protocol.get("task", task.name))}
    traits |= _of_data(
        evaluated_data, known=SPLITS if evaluation.report else (evaluated_data.split,)
    )
    traits["evaluated"] = _rows(evaluation, len(evaluated_data.rows))
    traits["catalogue"] = _plain(f"{evaluated_data.leaves.n_leaves:,} entries")
    traits["candidates"] = _plain(task.candidates.format(protocol.get("candidates", WHOLE)))
    if "template" in protocol:
        traits["template"] = _plain(protocol["template"])
    if "decoder" in protocol:
        traits |= _of_decoder(protocol["decoder"], kind)
    return traits | _of_selection(evaluation, evaluated_data)


def explain_difference(entry: Entry, base: Entry, policy: SeenPolicy) -> str | None:
    """What differs between an entry and the baseline, in words; None where everything agrees."""
    differ = {
        what: (ours, base.traits[what])
        for what, ours in entry.traits.items()
        if what in base.traits and ours.key != base.traits[what].key
    }
    hashed = [what for what, (ours, _) in differ.items() if not ours.words]
    reasons = [f"other {_join_listed(hashed)}"] if hashed else []
    for what, (ours, theirs) in differ.items():
        if ours.words and not (hashed and what in ("evaluated", "catalogue")):
            reasons.append(_describe_difference(what, ours.words, theirs.words))
    if policy == "keep" and entry.without_history != base.without_history:
        whose = "its" if entry.without_history else "the baseline's"
        reasons.append(f"{whose} lists leave the history out: compare with --seen remove")
    return "; ".join(reasons) or None


def _describe_difference(what: str, ours: str, theirs: str) -> str:
    if ours == theirs:
        return f"{what}: {ours}, but not the baseline's"
    return f"{what}: {ours}, baseline {theirs}"


def _join_listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _plain(words: str) -> ComparabilityKey:
    return ComparabilityKey(words, words)


def _of_data(evaluated_data: EvaluatedData, known: tuple[str, ...]) -> dict[str, ComparabilityKey]:
    """The content of the prepared files; the manifest's own hash would differ with the seed."""
    files = evaluated_data.manifest["files"]
    names = {"items": ITEMS_FILE, **{ROWS_OF[split]: split_file(split) for split in known}}
    return {what: ComparabilityKey(files[name]["sha256"], "") for what, name in names.items()}


def _rows(evaluation: Evaluation, n_rows: int) -> ComparabilityKey:
    if evaluation.predictions is not None:
        row_R = np.sort(evaluation.predictions[ROW].to_numpy(np.int64))
        return ComparabilityKey(hash_numbers(row_R), f"{len(row_R):,} of {n_rows:,} rows")
    pairs = evaluation.pairs if evaluation.pairs is not None else pd.DataFrame({ROW: [], OTHER: []})
    return ComparabilityKey(
        hash_numbers(pairs[[ROW, OTHER]].to_numpy(np.int64)), f"{len(pairs):,} pairs"
    )


def hash_numbers(values: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """SHA-256 of whole numbers in their order."""
    return hashlib.sha256(values.astype("<i8").tobytes()).hexdigest()


def _of_decoder(decoder: Mapping[str, Any], kind: Kind) -> dict[str, ComparabilityKey]:
    search = decoder.get("search", "all")
    words = "exact" if search in EXACT else f"{search} of {decoder.get('beams', '?')}"
    if kind != "language model":  # scores of its own: nothing to mask or to divide
        return {"search": _plain(words)}
    scores = (
        f'mask "{decoder.get("mask", "before")}", temperature {decoder.get("temperature", 1):g}'
    )
    penalty = decoder.get("length_penalty", 0)
    scores += f", length penalty {penalty:g}" if penalty else ""
    return {"search": _plain(words), "decoding": _plain(scores)}


def _of_selection(
    evaluation: Evaluation, evaluated_data: EvaluatedData
) -> dict[str, ComparabilityKey]:
    """How the checkpoint was chosen; nothing for what was counted, or trained elsewhere.

    A rule that has one checkpoint to choose from chooses nothing, whatever it is.
    """
    settings = evaluation.manifest.get("settings", {})
    train = settings.get("stage", {}).get("train", {})
    select, n_rows = train.get("select"), train.get("validate_rows")
    if select is None or n_rows is None or evaluation.validations == 1:
        return {}
    n_rows = min(n_rows, evaluated_data.manifest["files"][split_file("valid")]["rows"])
    cutoffs = settings.get("eval", {}).get("cutoffs")
    name = Selection(select).describe(cutoffs or ())
    return {"checkpoint": _plain(f"best {name} on {n_rows:,} validation rows")}


# From entries to figures: estimates of every metric, and paired contrasts with a baseline.
#
# Over the rows that entries share, users are drawn once for all of them.  Seeds of an entry are
# averaged row by row first, so that a user is drawn with all rows of all seeds.  Shape suffixes:
# R rows, U users, C columns, one for each metric of each policy of each entry.


LISTS: Final = ("coverage", "gini", "popularity", "long_tail", "short")


@dataclass(frozen=True)
class _Scored:
    """One entry under one policy."""

    entry: Entry
    policy: SeenPolicy
    users: pd.Series[Any]  # of every row, in order of the row's number
    value_SRM: Floats  # S seeds; M the averaged metrics

    @property
    def by_seed_SM(self) -> Floats:
        mean_SM: Floats = self.value_SRM.mean(axis=1)
        return mean_SM


_At = tuple[str, SeenPolicy]  # name of an entry, and a policy


def build_comparison(
    entries: Sequence[Entry], asked: ComparisonConfig, notes: Sequence[str] = ()
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
        _make_standing(
            entry, explain_difference(entry, measure, asked.headline), estimates, contrasts, asked
        )
        for entry in entries
    ]
    return Comparison(
        split=asked.split,
        policies=asked.policies,
        headline=asked.headline,
        metrics=asked.metrics,
        compared=asked.compared,
        baseline=asked.baseline,
        candidates=measure.traits["candidates"].words,
        n_rows=_count_values(measure, ROW),
        n_users=_count_values(measure, USER_ID),
        resamples=asked.resamples,
        seed=asked.seed,
        standings=tuple(standings),
        notes=(*notes, *_note_short_lists(standings, asked)),
    )


def _check_names(entries: Sequence[Entry], asked: ComparisonConfig) -> None:
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ArtefactError(f"a comparison needs entries of different names, not {names}")
    _require_known("baseline", asked.baseline, names)
    _require_known("metric", asked.compared, asked.averaged_names)


def _score_entry(entry: Entry, policy: SeenPolicy, asked: ComparisonConfig) -> _Scored:
    frames = [_score_run(entry, run, policy, asked) for run in entry.evaluations]
    values = [frame[list(asked.averaged_names)].to_numpy(np.float64) for frame in frames]
    return _Scored(entry, policy, frames[0][USER_ID], np.stack(values))


def _score_run(
    entry: Entry, run: Evaluation, policy: SeenPolicy, asked: ComparisonConfig
) -> pd.DataFrame:
    """Every row's metrics; of the rank-pair task, every user's."""
    if policy == "pairs" and run.pairs is not None:
        return score_users(run.pairs)
    if policy != "pairs" and run.predictions is not None:
        return score_rows(
            run.predictions, entry.evaluated_data.leaves, asked.cutoffs, policy, "miss"
        )
    raise ArtefactError(f"{run.label}: has no lists of the task that the others are of")


def _group_by_rows(entries: Iterable[Entry]) -> list[list[Entry]]:
    groups = defaultdict(list)
    for entry in entries:
        what = ("items", ROWS_OF[entry.evaluated_data.split], "evaluated")
        key = tuple(trait.key for name, trait in entry.traits.items() if name in what)
        groups[key].append(entry)
    return list(groups.values())


def _sum_users(parts: Sequence[_Scored], values: Sequence[Floats]) -> UserSums:
    """Users' sums of [R, M] arrays side by side."""
    return sum_by_user(parts[0].users, np.concatenate(values, axis=1))


def _estimate_together(
    together: Sequence[_Scored], asked: ComparisonConfig
) -> dict[_At, dict[str, Estimate]]:
    """Estimates of entries over the same rows."""
    sums = _sum_users(together, [part.value_SRM.mean(axis=0) for part in together])
    ends = iter(zip(*bootstrap_percentiles(sums, asked.resamples, asked.seed), strict=True))
    found: dict[_At, dict[str, Estimate]] = {}
    for part in together:
        by_seed = zip(asked.averaged_names, part.by_seed_SM.T.tolist(), strict=True)
        own = {name: _make_estimate(values, *next(ends)) for name, values in by_seed}
        if POOLED in asked.metrics:
            own[POOLED] = _estimate_pooled(part.entry, asked)
        found[part.entry.name, part.policy] = own
    return found


def _make_estimate(by_seed: Sequence[float], low: float, high: float) -> Estimate:
    mean = float(np.mean(by_seed))
    return Estimate(mean, float(low), float(high), tuple(by_seed), *seed_interval(by_seed))


def _estimate_pooled(entry: Entry, asked: ComparisonConfig) -> Estimate:
    runs = [run.pairs for run in entry.evaluations if run.pairs is not None]
    found = measure_pooled_auc(runs, asked.resamples, asked.seed)
    return _make_estimate(pooled_by_run(runs, asked.seed), found.low, found.high)


def _contrast_entries(
    scored: Mapping[_At, _Scored], base: Entry, asked: ComparisonConfig
) -> dict[_At, dict[str, Contrast]]:
    """Contrasts of every entry that compares with the baseline, under the policies where it does.

    (The pooled AUC, which is no mean over users, has none.)
    """
    parts = [
        part
        for part in scored.values()
        if part.entry is not base and explain_difference(part.entry, base, part.policy) is None
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
        for name, of_seeds in zip(asked.averaged_names, seeds, strict=True):
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
    found: Mapping[_At, Mapping[str, Contrast]], asked: ComparisonConfig
) -> dict[_At, dict[str, Contrast]]:
    """With Holm's correction over the entries of one metric and policy."""
    corrected: dict[_At, dict[str, Contrast]] = {at: dict(own) for at, own in found.items()}
    for policy in asked.policies:
        family = [at for at in found if at[1] == policy]
        for name in asked.averaged_names:
            values = correct_holm([found[at][name].p for at in family])
            for at, value in zip(family, values, strict=True):
                corrected[at][name] = replace(found[at][name], p_holm=value)
    return corrected


def _make_standing(
    entry: Entry,
    reason: str | None,
    estimates: Mapping[_At, Mapping[str, Estimate]],
    contrasts: Mapping[_At, Mapping[str, Contrast]],
    asked: ComparisonConfig,
) -> Standing:
    policies, runs = asked.policies, entry.evaluations
    frames = [run.predictions for run in runs if run.predictions is not None]
    errors = [frame[BEAM_DIFFERS].mean() for frame in frames if BEAM_DIFFERS in frame.columns]
    return Standing(
        name=entry.name,
        kind=entry.kind,
        seeds=tuple(run.seed for run in runs if run.seed is not None),
        sources=tuple(run.label for run in runs),
        n_rows=_count_values(entry, ROW),
        n_users=_count_values(entry, USER_ID),
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


def _describe_lists(entry: Entry, policy: SeenPolicy, asked: ComparisonConfig) -> dict[str, float]:
    """Means over seeds of what the lists look like as a whole."""
    depth, found = max(asked.cutoffs), []
    for run in entry.evaluations:
        if run.predictions is not None and policy != "pairs":
            found.append(measure_lists(run.predictions, entry.evaluated_data.leaves, depth, policy))
    values = [asdict(lists) for lists in found]
    return {name: float(np.mean([own[name] for own in values])) for name in LISTS}


def _note_short_lists(standings: Sequence[Standing], asked: ComparisonConfig) -> Iterator[str]:
    for standing in standings:
        short = standing.lists.get(asked.headline, {}).get("short", 0)
        if short:
            yield (
                f"{standing.name}: {short:,.0f} of {standing.n_rows:,} lists end before "
                f"{max(asked.cutoffs)} entries; past its end is a miss"
            )


def _measure_auc(entry: Entry, asked: ComparisonConfig) -> dict[str, Any] | None:
    """AUC of the generate task, where every run has scored its pairs."""
    runs = [run.pairs for run in entry.evaluations if run.pairs is not None]
    if not asked.cutoffs or len(runs) < len(entry.evaluations):
        return None
    return auc_figures(runs, asked.resamples, asked.seed)


def _count_values(entry: Entry, column: str) -> int:
    run = entry.evaluations[0]
    frame = run.predictions if run.predictions is not None else run.pairs
    return 0 if frame is None else int(frame[column].nunique())
