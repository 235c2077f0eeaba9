"""``llmrec runs``: the runs under ``runs/``, and the state of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from llmrec_cli.config.training import Selection, TrainSection
from llmrec_cli.data.schema import ITEMS_FILE
from llmrec_cli.errors import ArtefactError
from llmrec_cli.runs.run import Experiment, Run, experiment_at, list_runs, run_at, suggest_folder
from llmrec_cli.runs.tracking import MetricsLog
from llmrec_cli.utils.files import read_json

State = Literal["evaluated", "done", "running", "stopped", "damaged"]


@dataclass(frozen=True, slots=True)
class RunState:
    """One run, from its files alone."""

    folder: Path
    experiment: str
    run: str
    state: State
    step: int | None  # of the newest update; None: nothing is updated
    steps: int | None  # of all, about; None: cannot be told
    best: float | None  # validation figure or loss of the chosen checkpoint, or of the best so far
    best_step: int | None
    best_metric: str | None  # what ``best`` is: "ndcg@10", "loss", "auc"
    metric: str | None  # the headline of its test report, e.g. "ndcg@10 (keep)"
    score: float | None
    bytes: int  # on disk
    changed: float  # newest change of a file, seconds since 1970
    problem: str | None = None  # why it is damaged

    @property
    def progress(self) -> str:
        """``stopped at step 40 of 155``."""
        if self.state not in ("running", "stopped"):
            return self.state
        of = f" of {self.steps:,}" if self.steps else ""
        return f"{self.state} at step {self.step or 0:,}{of}"


def find_states(folder: Path) -> list[RunState]:
    """Every run of every experiment in ``folder``; of one experiment, if that is what it is.

    Raises:
        ArtefactError: it does not exist, or nothing in it is an experiment.
    """
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; llmrec run RECIPE makes one (out = ...)")
    experiments = [folder] if _is_experiment(folder) else sorted(folder.iterdir())
    experiments = [path for path in experiments if path.is_dir() and _is_experiment(path)]
    if not experiments:
        raise ArtefactError(f"{folder}: holds no experiment of llmrec")
    return [read_run_state(run) for experiment in experiments for run in _order_runs(experiment)]


def describe_run(folder: Path) -> dict[str, Any]:
    """One run: its state, and what its manifest tells.

    Raises:
        ArtefactError: it is not a run, or its manifest is damaged.
    """
    run = run_at(folder)
    if not run.exists:
        inside = ", ".join(map(str, _order_runs(folder))) if folder.is_dir() else ""
        hint = f"; it holds the runs {inside}" if inside else "; see llmrec runs ls"
        if not folder.is_dir() and (near := suggest_folder(folder)):
            hint = f".{near}"
        raise ArtefactError(f"{folder}: not the folder of a run{hint}")
    manifest = run.read_manifest()
    shown = ("facts", "outcome", "opened", "command", "git", "llmrec", "python", "machine")
    found = read_run_state(run)
    state = state_to_json(found)
    if found.problem is None:
        del state["problem"]
    return {
        **state,
        "progress": found.progress,
        **{key: manifest[key] for key in shown if key in manifest},
        "packages": manifest.get("packages", {}),
    }


def state_to_json(found: RunState) -> dict[str, Any]:
    """Plain values; the time as ISO 8601, UTC."""
    changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.changed))
    return {**asdict(found), "folder": str(found.folder), "changed": changed}


def read_run_state(run: Run) -> RunState:
    """How far a run has come; a damaged one is told, not raised."""
    folder = run.folder
    files = [path for path in folder.rglob("*") if path.is_file()]
    stats = [path.stat() for path in files]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime for s in stats), default=0.0)
    facts: dict[str, Any] = {}
    problem = None
    try:
        facts = _read_facts(run)
    except (ArtefactError, LookupError, TypeError, AttributeError, ValueError) as error:
        problem = str(error)
    return RunState(
        folder=folder,
        experiment=folder.resolve().parent.name,
        run=folder.name,
        **(_NOTHING | facts),
        bytes=size,
        changed=changed,
        problem=problem,
    )


_NOTHING: dict[str, Any] = {
    "state": "damaged",
    **dict.fromkeys(("step", "steps", "best", "best_step", "best_metric", "metric", "score")),
}


def _read_facts(run: Run) -> dict[str, Any]:
    manifest = run.read_manifest()
    rows = MetricsLog(run.metrics_file).rows()
    found = {"step": rows[-1]["step"] if rows else None, **_find_best(manifest, rows)}
    found["steps"] = _count_steps(manifest, rows)
    if run.is_evaluated("test"):
        metric, score = find_headline(read_json(run.report_file("test")))
        return {**found, "state": "evaluated", "metric": metric, "score": score}
    done = manifest.get("status") == "done"
    return {
        **found,
        "state": "done" if done else "running" if run.is_locked else "stopped",
    }


def find_headline(report: Mapping[str, Any]) -> tuple[str, float]:
    """The figure that stands for a report: NDCG at the largest cut-off, or the paired AUC."""
    protocol = report["protocol"]
    if "seen" not in protocol:
        return "auc_paired", float(report["metrics"]["auc_paired"]["mean"])
    name = f"ndcg@{max(protocol['cutoffs'])}"
    policy = protocol["seen"]
    return f"{name} ({policy})", float(report[policy]["metrics"][name]["mean"])


def _find_best(manifest: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    outcome, settings = manifest.get("outcome") or {}, manifest.get("settings", {})
    train = settings.get("stage", {}).get("train", {})
    selection = Selection(train.get("select", TrainSection.model_fields["select"].default))
    if outcome.get("best_step") is not None:
        step, score = outcome["best_step"], outcome["best_score"]
    else:
        scored = [
            (selection.turn(value), row["step"])
            for row in rows
            if (value := selection.find_value(row)) is not None
        ]
        if not scored:
            return {}
        score, step = max(scored, key=itemgetter(0))  # of equal ones the first, as in training
    name = selection.describe(settings.get("eval", {}).get("cutoffs", ()))
    return {"best": selection.turn(score), "best_step": step, "best_metric": name}


def _count_steps(manifest: Mapping[str, Any], rows: list[dict[str, Any]]) -> int | None:
    """Updates of the whole run: passes over the rows times the updates of one, or max_steps."""
    train = manifest.get("settings", {}).get("stage", {}).get("train")
    if not train or not rows or not rows[-1].get("epoch"):
        return None
    of_all: int = round(rows[-1]["step"] / rows[-1]["epoch"] * train["epochs"])
    return min(of_all, train.get("max_steps") or of_all)


def _order_runs(experiment: Path) -> Sequence[Run]:
    """As the recipe orders them; by name where the recipe is damaged."""
    try:
        return experiment_at(experiment).runs
    except ArtefactError:
        return list_runs(experiment)


def _is_experiment(folder: Path) -> bool:
    prepared = Experiment(folder, ()).prepared_folders
    return any((path / ITEMS_FILE).is_file() for path in prepared) or bool(list_runs(folder))


def format_size(size: int) -> str:
    """``2.4 MB``."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def state_to_cells(found: RunState) -> tuple[str, ...]:
    """A run as the cells of a table."""
    best = f"{found.best_metric} {found.best:.4f} at {found.best_step:,}" if found.best_step else ""
    score = "" if found.score is None else f"{found.metric} {found.score:.4f}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.changed))
    return (
        f"{found.experiment}/{found.run}",
        found.problem or found.progress,
        best,
        score,
        format_size(found.bytes),
        when,
    )


HEADINGS = ("run", "state", "best validation", "test", "size", "changed")
