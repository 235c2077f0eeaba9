"""Run folders: what lies in them, and the rules for writing them."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w

from llmrec_cli import __version__
from llmrec_cli.claims import claimed, claimed_to_evaluate, taken_back
from llmrec_cli.engine.trackers import Trackers, tracked
from llmrec_cli.engine.variables import recorded_variables
from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import (
    check_folder,
    machine_errors,
    write_atomically,
    write_json,
)
from llmrec_cli.manifest import read_run_manifest
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.baseline import UNTRAINED
from llmrec_cli.recipe.problems import did_you_mean
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.redaction import redacted, redacted_in

if TYPE_CHECKING:
    from llmrec_cli.engine.ranks import Ranks

RECIPE_FILE, MANIFEST_FILE, METRICS_FILE = "recipe.toml", "manifest.json", "metrics.jsonl"
PREDICTIONS_FILE, PAIRS_FILE, REPORT_FILE = "predictions.parquet", "pairs.parquet", "report.json"
BASE_FILES = "base_files"  # hashes of a base's files, among the facts of a language model's run
Existing = Literal["refuse", "again", "keep"]
"""What an evaluation does where a report is: an error, evaluate anew, or leave the run alone."""
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "numpy",
    "pandas",
    "polars",
)


def open_run(recipe: Recipe, run: str, facts: Mapping[str, Any], *, resume: bool) -> Path:
    """Create the folder of a run, or go on in it.

    Args:
        facts: what the run depends on besides the recipe (hashes of data, catalogue, parent); on
            ``resume`` they must be what they were.

    Raises:
        ArtefactError: it exists and ``resume`` is off; or recipe or facts changed since.
    """
    folder = recipe.run_folder(run)
    if is_done(folder) and not resume:
        raise ArtefactError(
            f"{folder}: is finished and is never overwritten; choose another name (name=...)"
        )
    if folder.exists() and not resume:
        raise ArtefactError(
            f"{folder}: exists already and is never overwritten; add --resume to go on with it, "
            "or choose another name (name=...)"
        )
    described = {"run": run, "settings": settings(recipe, run), "facts": dict(facts)}
    if (folder / MANIFEST_FILE).is_file():
        recorded = _recorded(folder)
        if BASE_FILES not in recorded["facts"]:  # begun by an older version
            described["facts"] = {k: v for k, v in facts.items() if k != BASE_FILES}
        _check_same(folder, recorded, described)
        if recorded.get("variables") not in (None, now := _variables()):
            write_json(folder / MANIFEST_FILE, {**recorded, "variables_resumed": now})
        return folder
    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECIPE_FILE, tomli_w.dumps(redacted_in(recipe.resolved())).encode())
    write_json(folder / MANIFEST_FILE, {**described, **circumstances(), "status": "running"})
    return folder


@dataclass
class Opened:
    """A run folder that this run has for itself."""

    folder: Path
    trackers: Trackers
    finished: bool = False  # by another process, while this one waited: nothing is left to do
    outcome: Mapping[str, Any] = field(default_factory=dict)  # for the manifest, set at the end


@contextmanager
def opened(
    recipe: Recipe,
    run: str,
    facts: Mapping[str, Any],
    ranks: Ranks,
    progress: Progress,
    *,
    resume: bool,
) -> Iterator[Opened]:
    """``open_run`` by the first process; without an exception, the run is done at the end.

    What it took of the machine is measured on the way (of a resumed run: since it was resumed).

    Raises:
        ArtefactError: as ``open_run``; or another run of llmrec works in the folder.
        MachineError, RecipeError: a tracker of the recipe cannot work here.
    """
    from llmrec_cli.engine.usage import measured  # torch, which reading a run does not need

    folder = recipe.run_folder(run)
    with (
        tracked(recipe.track, folder, writes=ranks.is_first, say=progress.say) as trackers,
        claimed(folder) if ranks.is_first else nullcontext(),
    ):
        made, existed = Opened(folder, trackers), folder.exists()
        ranks.first(lambda: open_run(recipe, run, facts, resume=resume))
        if ranks.most(int(ranks.is_first and is_done(folder))):
            made.finished = True
            yield made
            return
        with measured(ranks.device) as usage, taken_back(folder, existed or not ranks.is_first):
            yield made
        cost = usage.recorded(ranks)
        ranks.first(lambda: finish(made.folder, made.outcome, cost))


def settings(recipe: Recipe, run: str) -> dict[str, Any]:
    """The part of a recipe that a training run depends on."""
    plain: dict[str, Any] = redacted_in(recipe.every_value())
    kind, _, name = run.partition("-")
    if kind == "baseline":
        return _baseline_settings(plain, name)
    stage = plain["sft"] if run == "sft" else plain[kind][name]
    shared = {key: plain[key] for key in ("seed", "data", "prompt", "model")}
    chosen_by = {key: plain["eval"][key] for key in ("cutoffs", "decode")}
    return {**shared, "stage": stage, "eval": chosen_by}


def _baseline_settings(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A conventional model knows no prompt and no decoder; one without training, nothing but data.

    (What it knows of the language model is the catalogue's entries, a fact of the run.)
    """
    stage = dict(plain["baseline"][name])
    if stage["model"] in UNTRAINED:
        del stage["train"]
        return {"data": plain["data"], "stage": stage}
    cutoffs = {"cutoffs": plain["eval"]["cutoffs"]}
    return {"seed": plain["seed"], "data": plain["data"], "stage": stage, "eval": cutoffs}


def circumstances() -> dict[str, Any]:
    """Command, versions, source state and machine, for the manifest."""
    return {
        "command": ["llmrec", *map(redacted, sys.argv[1:])],
        "llmrec": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": _git_state(),
        "variables": _variables(),
    }


def _variables() -> dict[str, str]:
    found: dict[str, str] = redacted_in(recorded_variables())
    return found


def finish(folder: Path, outcome: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
    """Mark a run as done, and record how it ended and what it took."""
    manifest = read_run_manifest(folder / MANIFEST_FILE)
    ended = {"outcome": dict(outcome), "cost": dict(cost), "status": "done"}
    write_json(folder / MANIFEST_FILE, {**manifest, **ended})


def record(folder: Path, key: str, value: Mapping[str, Any]) -> None:
    """Put a table beside the others in a run's manifest."""
    manifest = read_run_manifest(folder / MANIFEST_FILE)
    write_json(folder / MANIFEST_FILE, {**manifest, key: dict(value)})


def is_done(folder: Path) -> bool:
    """Whether a run came to its end."""
    path = folder / MANIFEST_FILE
    return path.is_file() and read_run_manifest(path).get("status") == "done"


def has_settings(recipe: Recipe, run: str) -> bool:
    """Whether a run's manifest says what it was made with (Pop's, which eval fits, may not)."""
    return "settings" in read_run_manifest(recipe.run_folder(run) / MANIFEST_FILE)


def require_same_settings(recipe: Recipe, run: str) -> None:
    """Refuse a recipe that a run was not made with.

    Raises:
        ArtefactError: names the first key that differs, with both values.
    """
    folder = recipe.run_folder(run)
    recorded = {"settings": _recorded(folder)["settings"], "facts": {}}
    _check_same(folder, recorded, {"settings": settings(recipe, run), "facts": {}})


def require_fit(recipe: Recipe, run: str, facts: Mapping[str, Any]) -> None:
    """Refuse a finished run of another stage table, or one that stands on other facts.

    What only chose among its checkpoints (``[eval]``) may differ.

    Raises:
        ArtefactError: names the first key that differs, with both values.
    """
    folder = recipe.run_folder(run)
    recorded = _recorded(folder)
    before = {"settings": {"stage": recorded["settings"].get("stage")}, "facts": recorded["facts"]}
    now = {"settings": {"stage": settings(recipe, run)["stage"]}, "facts": dict(facts)}
    _check_same(folder, before, now)


def require_done(recipe: Recipe, run: str) -> Path:
    """Folder of a finished run; a language model's result is intact.

    Raises:
        ArtefactError: it is not there or not finished, the message says what to run; or damaged.
    """
    folder = recipe.run_folder(run)
    kind, _, name = run.partition("-")
    if is_done(folder):
        if kind != "baseline":
            check_folder(folder / ("model" if recipe.model.tuning == "full" else "adapter"))
        return folder
    flag = {"sft": "", "align": f" --method {name}", "baseline": f" --model {name}"}[kind]
    state = "is not finished" if folder.exists() else "does not exist"
    hint = " --resume" if folder.exists() else ""
    raise ArtefactError(f"{folder}: {state}; run first: llmrec {kind}{flag} RECIPE{hint}")


def named(name: str, split: str) -> str:
    """``report.json`` for the test split, ``report-valid.json`` for validation."""
    stem, dot, ending = name.partition(".")
    return name if split == "test" else f"{stem}-{split}{dot}{ending}"


def nearest_beside(folder: Path) -> str:
    """The folder called most like a missing one, as a sentence to append; empty if none is near."""
    return did_you_mean(folder.name, [p.name for p in folder.parent.glob("[!.]*") if p.is_dir()])


def log_opening(folder: Path, split: str) -> None:
    """Count in the run's manifest how often a split was opened for it.

    Raises:
        ArtefactError: another llmrec works in the folder.
    """
    path = folder / MANIFEST_FILE
    with claimed(folder):  # evaluations on two splits count in one file
        manifest = read_run_manifest(path) if path.is_file() else dict[str, Any](status="done")
        opened = manifest.setdefault("opened", {})
        opened[split] = opened.get(split, 0) + 1
        write_json(path, manifest)


def is_evaluated(folder: Path, split: str) -> bool:
    """Whether a run has a report on a split."""
    return (folder / named(REPORT_FILE, split)).is_file()


@contextmanager
def opened_to_evaluate(
    folder: Path, split: str, ranks: Ranks, existing: Existing
) -> Iterator[bool]:
    """A run that this process evaluates alone; whether there is anything to do.

    Args:
        existing: what to do with a report that another process has written meanwhile.

    Raises:
        ArtefactError: another llmrec is evaluating it; or a report is there, to be refused.
    """
    with claimed_to_evaluate(folder, split) if ranks.is_first else nullcontext():
        there = ranks.most(int(ranks.is_first and is_evaluated(folder, split)))
        if there and existing == "refuse":
            raise already_evaluated(folder, split)
        yield not there or existing == "again"


def already_evaluated(folder: Path, split: str) -> ArtefactError:
    """What to say of a report that is there."""
    return ArtefactError(
        f"{folder}: was evaluated on {split} before, and {split} is opened once per run; "
        "add --again to repeat it (the manifest counts it)"
    )


def _recorded(folder: Path) -> dict[str, Any]:
    return read_run_manifest(folder / MANIFEST_FILE, ("settings", "facts"))


def _check_same(folder: Path, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for group in ("settings", "facts"):
        for key, before, after in differences(recorded[group], now[group]):
            raise ArtefactError(
                f"{folder}: started with {key} = {before!r}, now {after!r}; "
                "use the same recipe or choose another name (name=...)"
            )


def differences(before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of tables differ: dotted key, and both values; None: not there."""
    old, new = _flat(before), _flat(now)
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def _git_state() -> str | None:
    """``git describe`` of the folder that llmrec runs from its source; None elsewhere."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)  # nosec B603 # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()
