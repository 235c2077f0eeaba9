"""Data of the report page, read from the runs' folders."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from llmrec_cli import __version__
from llmrec_cli.data.index import read_index
from llmrec_cli.evaluation.comparison import Comparison, Entry, Evaluation
from llmrec_cli.pipeline.audit import audit_folder
from llmrec_cli.report.page import Page
from llmrec_cli.report.page.data import (
    Audited,
    Curve,
    Fact,
    IdUse,
    RunLog,
    Slicing,
    UserCase,
    choose_users,
    measure_beam_errors,
    select_same_rows,
    slice_rows,
)
from llmrec_cli.runs.run import run_at
from llmrec_cli.runs.tracking import MetricsLog
from llmrec_cli.training.rows import LEFT_OUT_KEYS
from llmrec_cli.utils.files import REPORT_FILE, hash_file, read_json

POINTS = 200  # of a curve; further updates are averaged
_NOT_CURVES: Final = frozenset(
    "step epoch tokens seconds valid_seconds skipped learning_rate gradient_norm".split()
)
_TRAITS: Final = {
    "Search": "search",
    "Decoding": "decoding",
    "Prompt": "template",
    "Checkpoint": "checkpoint",
}
_SPLITS: Final = {
    "leave-one-out": "leave-one-out: a user's last interaction is tested, the one before it "
    "validates, those before are trained on",
    "global-time": "global in time: what comes last of all is tested",
    "few-shot": "few-shot: the interactions of a few users are trained on",
    "given": "as the source came split",
}


def gather_page(comparison: Comparison, entries: Sequence[Entry]) -> Page:
    """Read everything that the page of a comparison shows; nothing is written.

    Args:
        entries: those that the comparison was made from, in the same order.

    Raises:
        ArtefactError: prepared data that are damaged.
    """
    by_group, users = _gather_rows(comparison, entries)
    return Page(
        maker=f"llmrec {__version__}",
        comparison=comparison,
        experiments=_name_experiments(entries),
        facts=tuple(_describe_protocol(comparison, entries)),
        logs=tuple(_read_logs(entries)),
        slicings=by_group,
        beam_errors=measure_beam_errors(entries, comparison),
        audits=_read_audits(entries),
        ids=tuple(_read_ids(entries)),
        users=users,
    )


def _gather_rows(
    comparison: Comparison, entries: Sequence[Entry]
) -> tuple[tuple[Slicing, ...], tuple[UserCase, ...]]:
    """The parts that need lists over the same rows: groups of rows, and users side by side."""
    seen, same = comparison.headline, select_same_rows(entries, comparison.baseline)
    if seen == "pairs" or not same:
        return (), ()
    return slice_rows(same, comparison, seen), choose_users(same, comparison, seen)


def _name_experiments(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Names of the experiments, each once; another tool's lists belong to none."""
    runs = [run for entry in entries for run in entry.evaluations]
    return _drop_repeats(run.label.rpartition("/")[0] for run in runs if run.folder is not None)


def _read_logs(entries: Iterable[Entry]) -> Iterator[RunLog]:
    """The log of every run; none of those that were counted, or trained elsewhere."""
    for entry in entries:
        for run in entry.evaluations:
            rows = MetricsLog(run_at(run.folder).metrics_file).rows() if run.folder else []
            names = _drop_repeats(name for row in rows for name in row if name not in _NOT_CURVES)
            curves = {name: _read_curve(rows, name) for name in names}
            kept = {name: curve for name, curve in curves.items() if curve.steps}
            if kept:
                best = run.manifest.get("outcome", {}).get("best_step")
                yield RunLog(entry.name, run.label, run.seed, kept, best)


def _read_curve(rows: Iterable[Mapping[str, Any]], name: str) -> Curve:
    """The finite values of one figure, in ``POINTS`` means at most."""
    found = [(row["step"], row[name]) for row in rows if _is_finite(row.get(name))]
    per = max(1, math.ceil(len(found) / POINTS))
    parts = [found[start : start + per] for start in range(0, len(found), per)]
    steps = tuple(part[-1][0] for part in parts)
    values = tuple(sum(value for _, value in part) / len(part) for part in parts)
    return Curve(steps, values, per)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _read_audits(entries: Iterable[Entry]) -> tuple[Audited, ...]:
    """The audit of every prepared folder, each once by its content."""
    folders = {
        str(entry.evaluated_data.manifest["files"]): entry.evaluated_data.folder
        for entry in entries
    }
    found = [(folder, audit_folder(folder)) for folder in folders.values()]
    return tuple(
        Audited(f"{folder.resolve().parent.name}/{folder.name}", audited.verdicts)
        for folder, audited in found
    )


def _read_ids(entries: Iterable[Entry]) -> Iterator[IdUse]:
    """The use of each index of semantic IDs that llmrec made, each once by its content."""
    files = {
        hash_file(entry.evaluated_data.index): entry.evaluated_data.index
        for entry in entries
        if entry.evaluated_data.index is not None
    }
    for file in files.values():
        index, quality = read_index(file.parent), read_json(file.parent / REPORT_FILE)["quality"]
        places = itertools.zip_longest(*index.tokens.values())
        yield IdUse(
            file.parent.resolve().parent.name,
            index.settings["codes"],
            tuple(
                tuple(sorted(Counter(filter(None, tokens)).values(), reverse=True))
                for tokens in places
            ),
            tuple((one["depth"], one["share"], one["chance"]) for one in quality["neighbourhood"]),
        )


def _describe_protocol(comparison: Comparison, entries: Sequence[Entry]) -> Iterator[Fact]:
    """The protocol in words, one line each."""
    runs = [run for entry in entries for run in entry.evaluations]
    yield from _describe_data(comparison, entries)
    for term, trait in _TRAITS.items():
        words = _drop_repeats(e.traits[trait].words for e in entries if trait in e.traits)
        if words:
            yield Fact(term, "; ".join(words))
    yield Fact(
        "Intervals",
        f"95 %, percentile bootstrap over users, {comparison.resamples:,} resamples, seed "
        f"{comparison.seed}",
    )
    cut = _drop_repeats(filter(None, map(_describe_cut_histories, runs)))
    if cut:
        yield Fact("Histories in prompts", "; ".join(cut))
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    if seeds:
        yield Fact("Seeds", ", ".join(map(str, seeds)))
    versions = _drop_repeats(
        _describe_software(run) for run in runs if run.manifest.get("packages")
    )
    if versions:
        yield Fact("Software", "; ".join(versions))


def _describe_data(comparison: Comparison, entries: Sequence[Entry]) -> Iterator[Fact]:
    evaluated_data = entries[0].evaluated_data
    manifest, leaves = evaluated_data.manifest, evaluated_data.leaves
    sources = ", ".join(source["name"] for source in manifest["sources"])
    yield Fact("Data", f"{manifest['data']['format']}: {sources}")
    split = manifest["data"]["split"]
    yield Fact("Split", _SPLITS.get(split, split))
    yield from _describe_rows(comparison, entries)
    catalogue = f"{comparison.candidates}: {leaves.n_leaves:,} entries"
    if leaves.n_items != leaves.n_leaves:
        catalogue += f" ({leaves.n_items:,} items, of which equal ones count as one)"
    yield Fact("Candidates", catalogue)


def _describe_rows(comparison: Comparison, entries: Sequence[Entry]) -> Iterator[Fact]:
    """How many rows were evaluated; where that differs, a line for each number and its entries."""
    standings = {standing.name: standing for standing in comparison.standings}
    names_of = dict[str, list[str]]()
    for entry in entries:
        standing, split = standings[entry.name], entry.evaluated_data.split
        rows = entry.evaluated_data.manifest["splits"][split]["rows"]
        words = f"{standing.n_rows:,} of {rows:,} {split} rows, {standing.n_users:,} users"
        names_of.setdefault(words, []).append(entry.name)
    for words, names in names_of.items():
        yield Fact("Evaluated", words if len(names_of) == 1 else f"{words} ({', '.join(names)})")


def _describe_cut_histories(run: Evaluation) -> str | None:
    """How much of the histories a run's prompts left out; None: nothing, or not recorded."""
    found = run.report.get("histories")
    counts = [found.get(key) for key in LEFT_OUT_KEYS] if isinstance(found, Mapping) else []
    if not counts or not all(isinstance(n, int) for n in counts) or not counts[-1]:
        return None
    rows, cut_rows, items, left_out = counts
    return (
        f"{run.label}: {cut_rows:,} of {rows:,} rows do not see their whole history; {left_out:,} "
        f"of {items:,} items are left out"
    )


def _describe_software(run: Evaluation) -> str:
    packages = run.manifest["packages"]
    names = [name for name in ("torch", "transformers") if name in packages]
    found = [f"{name} {packages[name]}" for name in names]
    return ", ".join([f"llmrec {run.manifest.get('llmrec', '?')}", *found])


def _drop_repeats(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
