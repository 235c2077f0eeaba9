"""Evaluated runs, found by the folders that a user names, and opened without a model.

A run is known by its content, not by its name; its prepared data lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.data.columns import ROW, TARGET, USER_ID, split_file
from llmrec_cli.data.leakage import with_audit
from llmrec_cli.data.leaves import Leaves, gather_leaves, leaf_of_equal_titles
from llmrec_cli.data.store import load_prepared
from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import MANIFEST_FILE, REPORT_FILE, read_json, sha256
from llmrec_cli.report.entries import Evaluation, Ground
from llmrec_cli.report.metrics import score_rows
from llmrec_cli.report.pairs import read_pairs
from llmrec_cli.report.predictions import read_predictions
from llmrec_cli.runs.run import Experiment, Run


def require_evaluated(run: Run, split: str) -> None:
    """Refuse a folder that is no run's, or of a run without a report on a split.

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
        leaves: a catalogue's entries by tokens, by prepared folder, where a tokenizer is at hand;
            elsewhere items of equal titles are one entry.
    """

    split: str
    leaves: Mapping[Path, Leaves] = field(default_factory=dict)
    _opened: dict[Path, Ground] = field(default_factory=dict)

    def open(self, folder: Path) -> Ground:
        """The ground of a prepared folder.

        Raises:
            ArtefactError: it is not one, or damaged.
        """
        if folder not in self._opened:
            prepared = load_prepared(folder)
            items = prepared.items
            by_tokens = self.leaves.get(folder)
            leaves = by_tokens or gather_leaves(items, leaf_of_equal_titles(items))
            rows = prepared.split(self.split)
            ground = Ground(folder, with_audit(prepared), self.split, items, rows, leaves)
            self._opened[folder] = ground
        return self._opened[folder]

    def find(self, run: Run, report: Mapping[str, Any]) -> Ground:
        """What a run was evaluated on.

        Raises:
            ArtefactError: it does not lie beside the run, or is not what it was.
        """
        beside = Experiment(run.folder.parent, ()).prepared_folders
        for folder in beside:
            manifest = folder / MANIFEST_FILE
            if manifest.is_file() and sha256(manifest) == report["protocol"]["hashes"]["data"]:
                return self.open(folder)
        raise ArtefactError(
            f"{run.folder}: was evaluated on prepared data that {beside[0]} does not hold (any "
            f"more); evaluate it again: llmrec eval RECIPE --run {run} --again"
        )


def load_evaluation(run: Run, folders: PreparedFolders) -> tuple[Evaluation, Ground]:
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
    ground = folders.find(run, report)
    predictions = pairs = None
    if not pair_task:
        predictions = read_predictions(run.predictions_file(split))
        _check_lists(folder, predictions, report, ground)
    if pair_task or "auc" in report:
        pairs = read_pairs(run.pairs_file(split))
        _check_rows(folder, pairs, ground)
    seed = manifest.get("settings", {}).get("seed")
    label = f"{folder.resolve().parent.name}/{run}"
    found = Evaluation(label, run.name, folder, seed, manifest, report, predictions, pairs)
    return found, ground


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
    folder: Path, predictions: pd.DataFrame, report: Mapping[str, Any], ground: Ground
) -> None:
    _check_rows(folder, predictions, ground)
    if len(predictions) != report["rows"]:
        raise ArtefactError(
            f"{folder}: its report has {report['rows']} rows, its predictions {len(predictions)}: "
            "they do not belong together"
        )
    again = f"evaluate it again: llmrec eval RECIPE --run {folder.name} --again"
    if report["entries"] != ground.leaves.n_leaves:
        raise ArtefactError(
            f"{folder}: {report['entries']:,} catalogue entries by its tokens, "
            f"{ground.leaves.n_leaves:,} by title: its tokenizer cannot tell some titles apart; "
            f"its own figures are in {REPORT_FILE}; compare runs of a backbone that can"
        )
    scored = score_rows(predictions, ground.leaves, report["protocol"]["cutoffs"], "keep", "miss")
    for name, recorded in report["keep"]["metrics"].items():
        found = scored[name].mean() if name in scored else np.nan
        if not abs(found - recorded["mean"]) < 1e-9:
            raise ArtefactError(
                f"{folder}: its report has {name} = {recorded['mean']:.6f}, its predictions give "
                f"{found:.6f}: they do not belong together; {again}"
            )


def _check_rows(folder: Path, frame: pd.DataFrame, ground: Ground) -> None:
    """Every row must be the prepared one of its number."""
    row_R = frame[ROW].to_numpy(np.int64)
    known = (row_R >= 0) & (row_R < len(ground.rows))
    if known.all():
        prepared = ground.rows.iloc[row_R]
        for column in (USER_ID, TARGET):
            known &= frame[column].to_numpy() == prepared[column].to_numpy()
    if not known.all():
        raise ArtefactError(
            f"{folder}: row {row_R[int(np.argmin(known))]} of its lists is not that of "
            f"{ground.folder / split_file(ground.split)}; evaluate it again: llmrec eval RECIPE "
            f"--run {folder.name} --again"
        )
