"""The entries of a comparison: evaluated runs, read without a model.

    Run --load_evaluation--> Evaluation, EvaluatedData
    Run --load_run--> LoadedRun, with its comparability keys, its cost and its family
    runs of one family --build_entries--> Entry, whose seeds are averaged

A run is identified by its content, not by its name.  Its prepared data and its parents are in the
folder beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.config.names import RunKind, name_run
from llmrec_cli.config.recipe import TOKENS_FOLDER
from llmrec_cli.data.audit import with_audit
from llmrec_cli.data.catalog import CatalogueEntries, gather_entries, leaf_of_equal_titles
from llmrec_cli.data.index import INDEX_FILE, INDEX_HASH, load_catalogue
from llmrec_cli.data.schema import ROW, TARGET, USER_ID, split_file
from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.auc import read_pairs
from llmrec_cli.evaluation.comparison import (
    ComparabilityKey,
    Cost,
    Entry,
    EvaluatedData,
    Evaluation,
    Kind,
    build_comparability_keys,
)
from llmrec_cli.evaluation.metrics import score_rows
from llmrec_cli.evaluation.predictions import read_predictions
from llmrec_cli.runs.run import Experiment, Run, run_at
from llmrec_cli.runs.tracking import MetricsLog
from llmrec_cli.utils.files import MANIFEST_FILE, REPORT_FILE, hash_file, read_json

_WHOLE = ("tokens", "peak_bytes", "eval_peak_bytes")
UNKNOWN = Cost(*[None] * len(fields(Cost)))


def require_evaluated(run: Run, split: str) -> None:
    """Refuse a folder that is no run, and a run without a report on a split.

    Raises:
        ArtefactError: the message says what to run.
    """
    if not run.exists:
        raise ArtefactError(f"{run.folder}: not the folder of a run, such as runs/quickstart/sft")
    if not run.is_evaluated(split):
        raise ArtefactError(
            f"{run.folder}: not evaluated on {split} yet; run first: llmrec eval RECIPE --run "
            f"{run} --split {split}"
        )


@dataclass(frozen=True)
class PreparedFolders:
    """Prepared folders, each opened once.

    Attributes:
        leaves: the catalogue's entries of a prepared folder, where a tokenizer is at hand: items of
            equal tokens are one.  Elsewhere items of equal titles are one entry.
    """

    split: str
    leaves: Mapping[Path, CatalogueEntries] = field(default_factory=dict)
    _opened: dict[Path, EvaluatedData] = field(default_factory=dict)

    def load_data(self, folder: Path) -> EvaluatedData:
        """The evaluated data of a prepared folder.

        Raises:
            ArtefactError: it is no prepared folder, or it is damaged.
        """
        if folder not in self._opened:
            prepared = load_catalogue(folder)
            items = prepared.items
            by_tokens = self.leaves.get(folder)
            leaves = by_tokens or gather_entries(items, leaf_of_equal_titles(items))
            rows = prepared.split(self.split)
            evaluated_data = EvaluatedData(
                folder, with_audit(prepared), self.split, items, rows, leaves, prepared.index
            )
            self._opened[folder] = evaluated_data
        return self._opened[folder]

    def find(self, run: Run, report: Mapping[str, Any]) -> EvaluatedData:
        """What a run was evaluated on.

        Raises:
            ArtefactError: the folder is not beside the run, or its content has changed.
        """
        beside = Experiment(run.folder.parent, ()).prepared_folders
        for folder in beside:
            manifest = folder / MANIFEST_FILE
            hashes = report["protocol"]["hashes"]
            if manifest.is_file() and hash_file(manifest) == hashes["data"]:
                _require_same_index(run, folder, hashes.get(INDEX_HASH))
                return self.load_data(folder)
        raise ArtefactError(
            f"{run.folder}: was evaluated on prepared data that {beside[0]} does not hold (any "
            f"more); evaluate it again: llmrec eval RECIPE --run {run} --again"
        )


def _require_same_index(run: Run, prepared: Path, evaluated: str | None) -> None:
    """Refuse a report on other semantic IDs than lie beside the prepared data; None: on none."""
    index = prepared.parent / TOKENS_FOLDER / INDEX_FILE
    if evaluated != (hash_file(index) if index.is_file() else None):
        raise ArtefactError(
            f"{run.folder}: was evaluated with other semantic IDs than {index.parent} holds; "
            f"evaluate it again: llmrec eval RECIPE --run {run} --again"
        )


def load_evaluation(run: Run, folders: PreparedFolders) -> tuple[Evaluation, EvaluatedData]:
    """Read what a run recommends, and check that it belongs to its report and its data.

    Raises:
        ArtefactError: a file is missing or damaged, or they do not belong together.
    """
    split, folder = folders.split, run.folder
    manifest = run.read_manifest()
    path = run.report_file(split)
    report = read_json(path)
    pair_task = isinstance(report, dict) and "keep" not in report
    _check_report(path, report, pair_task=pair_task)
    evaluated_data = folders.find(run, report)
    predictions = pairs = None
    if not pair_task:
        predictions = read_predictions(run.predictions_file(split))
        _check_lists(folder, predictions, report, evaluated_data)
    if pair_task or "auc" in report:
        pairs = read_pairs(run.pairs_file(split))
        _check_rows(folder, pairs, evaluated_data)
    seed = manifest.get("settings", {}).get("seed")
    label = f"{folder.resolve().parent.name}/{run}"
    found = Evaluation(
        label, run.name, folder, seed, manifest, report, predictions, pairs, _count_validations(run)
    )
    return found, evaluated_data


def _count_validations(run: Run) -> int | None:
    """How many checkpoints a run could choose from; None: it has no log."""
    return sum("valid_loss" in row for row in MetricsLog(run.metrics_file).rows()) or None


_OF_ALL: dict[str, type] = {
    "rows": int,
    "users": int,
    "protocol.split": str,
    "protocol.candidates": str,
    "protocol.hashes.data": str,
    "bootstrap.resamples": int,
    "bootstrap.seed": int,
}
_OF_LISTS: dict[str, type] = {
    "entries": int,
    "protocol.seen": str,
    "protocol.cutoffs": list,
    "protocol.decoder": dict,
    "keep.metrics": dict,
    "remove.metrics": dict,
}


def _check_report(path: Path, report: Any, *, pair_task: bool) -> None:
    wanted = _OF_ALL if pair_task else _OF_ALL | _OF_LISTS
    for dotted, kind in wanted.items():
        value = report
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise ArtefactError(f"{path}: not a report of llmrec eval: no {dotted}")
    if not pair_task and not _are_figures(report["protocol"]["cutoffs"], report["keep"]["metrics"]):
        raise ArtefactError(f"{path}: not a report of llmrec eval: no figures at its cut-offs")


def _are_figures(cutoffs: Sequence[Any], metrics: Mapping[str, Any]) -> bool:
    whole = all(isinstance(k, int) and k >= 1 for k in cutoffs) and len(cutoffs) > 0
    found = [ends.get("mean") if isinstance(ends, dict) else None for ends in metrics.values()]
    return whole and all(isinstance(mean, float) for mean in found)


def _check_lists(
    folder: Path,
    predictions: pd.DataFrame,
    report: Mapping[str, Any],
    evaluated_data: EvaluatedData,
) -> None:
    _check_rows(folder, predictions, evaluated_data)
    if len(predictions) != report["rows"]:
        raise ArtefactError(
            f"{folder}: its report has {report['rows']} rows, its predictions {len(predictions)}: "
            "they do not belong together"
        )
    again = f"evaluate it again: llmrec eval RECIPE --run {folder.name} --again"
    if report["entries"] != evaluated_data.leaves.n_leaves:
        raise ArtefactError(
            f"{folder}: {report['entries']:,} catalogue entries by its tokens, "
            f"{evaluated_data.leaves.n_leaves:,} by title: its tokenizer cannot tell some titles "
            f"apart; its own figures are in {REPORT_FILE}; compare runs of a backbone that can"
        )
    scored = score_rows(
        predictions, evaluated_data.leaves, report["protocol"]["cutoffs"], "keep", "miss"
    )
    for name, recorded in report["keep"]["metrics"].items():
        found = scored[name].mean() if name in scored else np.nan
        if not abs(found - recorded["mean"]) < 1e-9:
            raise ArtefactError(
                f"{folder}: its report has {name} = {recorded['mean']:.6f}, its predictions give "
                f"{found:.6f}: they do not belong together; {again}"
            )


def _check_rows(folder: Path, frame: pd.DataFrame, evaluated_data: EvaluatedData) -> None:
    """Refuse rows that are not the prepared rows of the same numbers."""
    row_R = frame[ROW].to_numpy(np.int64)
    known = (row_R >= 0) & (row_R < len(evaluated_data.rows))
    if known.all():
        prepared = evaluated_data.rows.iloc[row_R]
        for column in (USER_ID, TARGET):
            known &= frame[column].to_numpy() == prepared[column].to_numpy()
    if not known.all():
        raise ArtefactError(
            f"{folder}: row {row_R[int(np.argmin(known))]} of its lists is not that of "
            f"{evaluated_data.folder / split_file(evaluated_data.split)}; evaluate it again: "
            f"llmrec eval RECIPE --run {folder.name} --again"
        )


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """An evaluated run, with what decides to which entry it belongs."""

    run: Evaluation
    evaluated_data: EvaluatedData
    kind: Kind
    traits: Mapping[str, ComparabilityKey]
    cost: Cost
    family: str  # equal for runs that differ in nothing but their seed


def load_run(run: Run, folders: PreparedFolders) -> LoadedRun:
    """Read an evaluated run, with its kind, its comparability keys, its cost and its family.

    Raises:
        ArtefactError: as ``load_evaluation``.
    """
    evaluation, evaluated_data = load_evaluation(run, folders)
    kind: Kind = "language model" if run.is_language_model else "conventional"
    traits = build_comparability_keys(evaluation, evaluated_data, kind)
    cost = measure_cost(run, evaluation.manifest, evaluation.report)
    family = _identify_family(evaluation, traits, run)
    return LoadedRun(evaluation, evaluated_data, kind, traits, cost, family)


def _identify_family(
    evaluation: Evaluation, traits: Mapping[str, ComparabilityKey], run: Run
) -> str:
    """The settings of a run and its ancestors without the seed, and its comparability keys.

    The keys identify the data by their content, so ``[data]`` with its paths is left out.
    """
    ancestors = find_ancestors(run, evaluation.manifest)
    parents = [one.read_manifest() if one.manifest_file.is_file() else {} for one in ancestors]
    made = [_select_settings(manifest) for manifest in (evaluation.manifest, *parents)]
    agree = {what: trait.key for what, trait in traits.items()}
    base = evaluation.manifest.get("facts", {}).get("base")
    return json.dumps([run.name, made, agree, base], sort_keys=True)


def build_entries(opened: Sequence[LoadedRun], notes: list[str]) -> list[Entry]:
    """Join the seeds of each run into one entry, and name the entries.

    Args:
        opened: runs in the order of the table.
        notes: what a reader has to know; lines are appended.
    """
    groups: list[list[LoadedRun]] = []
    for one in opened:
        group = _find_group(one, groups, notes)
        if group is not None:
            group.append(one)
    names = _name_groups([group[0].run for group in groups])
    return [_build_entry(name, group) for name, group in zip(names, groups, strict=True)]


def _find_group(
    one: LoadedRun, groups: list[list[LoadedRun]], notes: list[str]
) -> list[LoadedRun] | None:
    """The group that a run belongs to, perhaps a new one; None: the run is in a group already."""
    for group in groups:
        if group[0].family != one.family:
            continue
        if one.run.seed is None:  # counted, or the untouched backbone
            same = "counted on" if one.kind == "conventional" else "the same backbone on"
            notes.append(f"{one.run.label} is {group[0].run.label}: {same} the same data")
            return None
        if one.run.seed not in [other.run.seed for other in group]:
            return group
    groups.append([])
    return groups[-1]


def _build_entry(name: str, group: Sequence[LoadedRun]) -> Entry:
    first, runs = group[0], sorted(group, key=lambda one: one.run.seed or 0)
    return Entry(
        name=name,
        kind=first.kind,
        evaluated_data=first.evaluated_data,
        evaluations=tuple(one.run for one in runs),
        traits=first.traits,
        cost=average_costs([one.cost for one in runs]),
    )


def _name_groups(runs: Sequence[Evaluation]) -> list[str]:
    """Names of groups: the run's name, with as much of its path as makes it unique."""
    parts = [_path_parts(run) for run in runs]
    names = []
    for own in parts:
        rivals = [other for other in parts if other is not own and other[-1] == own[-1]]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in rivals):
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _path_parts(run: Evaluation) -> tuple[str, ...]:
    return run.folder.resolve().parts[1:] if run.folder is not None else (run.run,)


def _select_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    settings = manifest.get("settings", {})
    return {key: value for key, value in settings.items() if key not in ("seed", "data")}


def measure_cost(run: Run, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> Cost:
    """The cost of one evaluated run; older versions recorded less.

    Args:
        run: its parents are in the folder beside it.
        manifest: its manifest.json.
        report: its report.json.
    """
    own, took = _measure_training(run, manifest), _read_measured(manifest)
    lineage = [own, *map(_measure_ancestor, find_ancestors(run, manifest))]
    asked = report.get("cost", {})
    per_second = asked.get("rows_per_second")
    return Cost(
        train_seconds=own.seconds,
        lineage_seconds=_total([stage.seconds for stage in lineage]),
        valid_seconds=own.valid_seconds,
        device=took.get("device"),
        processes=took.get("processes"),
        device_seconds=_total([stage.device_seconds for stage in lineage]),
        tokens=_total([stage.tokens for stage in lineage]),
        peak_bytes=took.get("peak_bytes"),
        eval_seconds=asked.get("seconds"),
        eval_peak_bytes=asked.get("peak_bytes"),
        milliseconds_per_row=1000 / per_second if per_second else None,
    )


def find_ancestors(run: Run, manifest: Mapping[str, Any]) -> list[Run]:
    """The runs that a run was made from: its parents, and models that score items for it.

    Of a guided run its parts, each with what it was made from.
    """
    if run.is_guided:
        found = dict[str, Run]()
        for part in run.parts:
            above = part.read_manifest() if part.manifest_file.is_file() else {}
            found |= {one.name: one for one in (*find_ancestors(part, above), part)}
        return list(found.values())
    facts = manifest.get("facts", {})
    scores = (name_run(RunKind.BASELINE, table) for table in facts.get("scores", {}))
    return [run_at(run.folder.parent / name) for name in (*facts.get("lineage", [])[1:], *scores)]


def average_costs(costs: Sequence[Cost]) -> Cost:
    """Means over seeds; unknown where one of them is, or where devices or processes differ."""
    found: dict[str, Any] = {}
    for one in fields(Cost):
        values = [getattr(cost, one.name) for cost in costs]
        if one.name in ("device", "processes"):
            found[one.name] = values[0] if len(set(values)) == 1 else None
        elif None in values:
            found[one.name] = None
        else:
            mean = sum(values) / len(values)
            found[one.name] = round(mean) if one.name in _WHOLE else mean
    return Cost(**found)


@dataclass(frozen=True, slots=True)
class _Training:
    """What the updates of one stage cost; None: not recorded."""

    seconds: float | None = None
    valid_seconds: float | None = None
    device_seconds: float | None = None
    tokens: int | None = None


def _measure_ancestor(run: Run) -> _Training:
    """The training of a run that another one was made from; unknown where its folder is gone."""
    there = run.manifest_file.is_file()
    return _measure_training(run, run.read_manifest()) if there else _Training()


def _read_measured(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of a stage; older versions recorded its processes alone."""
    return {**manifest.get("outcome", {}), **manifest.get("cost", {})}


def _measure_training(run: Run, manifest: Mapping[str, Any]) -> _Training:
    took = _read_measured(manifest)
    if run.is_untouched:  # what it took was to look at it
        return _Training(0.0, 0.0, 0.0, 0)
    if run.is_guided:  # what it took was to choose its weight
        return _Training(0.0, took.get("seconds"), 0.0, 0)
    if "train" not in manifest.get("settings", {}).get("stage", {}):
        return _Training(took.get("seconds"), 0.0, took.get("seconds"), 0)  # counted, not trained
    logged = MetricsLog(run.metrics_file).rows()
    rows = [row for row in logged if {"seconds", "tokens"} <= row.keys()]
    if not rows:
        return _Training()
    seconds, processes = sum(row["seconds"] for row in rows), took.get("processes")
    validations = [row.get("valid_seconds") for row in rows if "valid_loss" in row]
    return _Training(
        seconds=seconds,
        valid_seconds=_total(validations),
        device_seconds=seconds * processes if processes else None,
        tokens=sum(row["tokens"] for row in rows),
    )


def _total(values: Sequence[Any]) -> Any:
    return None if None in values else sum(values)
