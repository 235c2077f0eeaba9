"""The study behind a sweep: optuna chooses points and remembers what they gave.

Several processes, also of several machines, may work on one study.  Each marks its trials with a
name of its own and shows that it lives: by a lock in the study's folder, which the system releases
when the process ends, and by a time in the storage for those that do not share that folder.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.distributions import FloatDistribution as Floats
from optuna.distributions import IntDistribution as Ints
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from llmrec_cli.claims import is_held, wait_for_lock
from llmrec_cli.errors import ArtefactError, MachineError, RecipeError
from llmrec_cli.files import machine_errors
from llmrec_cli.recipe.sweep import Range
from llmrec_cli.report.trials import State, Tried
from llmrec_cli.runs.record import list_differences
from llmrec_cli.sweeping.plan import Plan, Point, toml_text

DATABASE = "study.db"
OWNER, SEEN, INTERRUPTED = "owner", "seen", "interrupted"  # what trials carry beside their point
FAILURE, MACHINE, FIGURES, SECONDS = "failure", "machine", "figures", "seconds"
_PLAN, _PLANNED, _AGAIN = "plan", "planned", "again"  # what the study carries
_BEAT, _SILENT = 30.0, 600.0  # seconds between signs of life; without one, a trial is given up
_STATES: Mapping[TrialState, State] = {  # of points that were chosen, not only queued
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class Choosing:
    """Points of a plan, one after the other, until all are tried.  Safe for threads."""

    def __init__(self, plan: Plan, study: Study, owner: str) -> None:
        self.plan = plan
        self.study = study
        self._owner = owner
        self._distributions = {key: _distribution(values) for key, values in plan.space.items()}
        self._last_beat = dict[int, float]()

    def next(self) -> Trial | None:
        """A point to try; None when there are none left.  Call it under one lock."""
        if len(self.rows()) >= self.plan.trials:
            return None
        trial = self.study.ask(self._distributions)
        trial.set_user_attr(OWNER, self._owner)
        self.beat(trial)
        return trial

    def point(self, trial: Trial) -> Point:
        """The point of a trial, as values of a recipe."""
        plain = {key: trial.params[key] for key in self.plan.space}
        return {key: _text(self.plan, key, value) for key, value in plain.items()}

    def beat(self, trial: Trial) -> None:
        """Show now and then that the trial is being worked on."""
        now = time.time()
        if now - self._last_beat.get(trial.number, 0) >= _BEAT:
            self._last_beat[trial.number] = now
            trial.set_user_attr(SEEN, now)

    def put_back(self, trial: Trial) -> None:
        """End a trial that was interrupted; its point is queued again."""
        _put_back(self.study, trial)

    def pruned(self, trial: Trial, seconds: float) -> None:
        """End a trial that was not worth going on with."""
        trial.set_user_attr(SECONDS, round(seconds, 1))
        self.study.tell(trial, state=TrialState.PRUNED)

    def failed(self, trial: Trial, reason: str, seconds: float, *, machine: bool) -> None:
        """End a trial whose command failed.

        Args:
            machine: for want of disk, memory or a device; the next sweep tries the point again.
        """
        trial.set_user_attr(FAILURE, reason)
        trial.set_user_attr(MACHINE, machine)
        trial.set_user_attr(SECONDS, round(seconds, 1))
        self.study.tell(trial, state=TrialState.FAIL)

    def scored(self, trial: Trial, figures: Sequence[float], seconds: float) -> None:
        """End a trial with what each seed gave; their mean counts."""
        trial.set_user_attr(FIGURES, list(figures))
        trial.set_user_attr(SECONDS, round(seconds, 1))
        self.study.tell(trial, fmean(figures))

    def rows(self) -> list[Tried]:
        """Every point that was chosen so far, in that order."""
        again = self.study.user_attrs.get(_AGAIN, [])
        return [
            Tried(
                point={key: _text(self.plan, key, value) for key, value in trial.params.items()},
                state=_STATES[trial.state],
                figures=tuple(trial.user_attrs.get(FIGURES, ())),
                seconds=trial.user_attrs.get(SECONDS),
                failure=trial.user_attrs.get(FAILURE),
            )
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state in _STATES and not _interrupted(trial) and trial.number not in again
        ]


def _interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial was given up and its point put back."""
    return bool(trial.user_attrs.get(INTERRUPTED))


def _put_back(study: Study, trial: Trial | FrozenTrial) -> None:
    Trial(study, trial._trial_id).set_user_attr(INTERRUPTED, True)
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(dict(trial.params))


def _queue_again(study: Study) -> None:
    """Queue the points again that failed for what another time may not lack."""
    again = list(study.user_attrs.get(_AGAIN, []))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if trial.user_attrs.get(MACHINE) and trial.number not in again:
            study.enqueue_trial(dict(trial.params))
            study.set_user_attr(_AGAIN, again := [*again, trial.number])


@contextmanager
def choosing(
    plan: Plan, storage: str | None, say: Callable[[str], object] = lambda text: None
) -> Iterator[Choosing]:
    """The study of a plan, made or gone on with.

    Args:
        storage: an optuna storage URL; None: SQLite in the study's folder.
        say: told of another sweep that is waited for.

    Raises:
        ArtefactError: the study was begun with another plan; names what differs.
        RecipeError: not a storage URL, or the package for it is missing.
        MachineError: the storage cannot be reached or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with machine_errors(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    owner = uuid.uuid4().hex
    with storage_errors(storage), _alive(plan.folder, owner):
        with wait_for_lock(plan.folder / ".open.lock", plan.folder, say):
            study = _open(plan, storage)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if _abandoned(plan.folder, trial):
                    _put_back(study, trial)
            _queue_again(study)
        yield Choosing(plan, study, owner)


@contextmanager
def storage_errors(storage: str | None) -> Iterator[None]:
    """A storage that fails as one line, its password hidden.

    Raises:
        MachineError: what the storage said.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        said = str(getattr(error, "orig", None) or error.__cause__ or error)
        first = said.strip().splitlines()[0] if said.strip() else type(error).__name__
        raise MachineError(f"{masked(storage)}: {_without_secret(first, storage)}") from None


def masked(storage: str | None) -> str:
    """A storage URL that may be shown; None: the file that stands for it."""
    if storage is None:
        return DATABASE
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except ArgumentError:
        return "--storage"


def _without_secret(text: str, storage: str | None) -> str:
    if storage is None:
        return text
    secret = make_url(storage).password
    text = text.replace(storage, masked(storage))
    return text.replace(str(secret), "***") if secret else text


def _open(plan: Plan, storage: str | None) -> Study:
    study = optuna.create_study(
        storage=_storage(plan.folder, storage),
        study_name=f"{plan.recipe.name}/{plan.study}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3)
        if plan.section.prune
        else optuna.pruners.NopPruner(),
    )
    study.sampler = _sampler(plan, len(study.get_trials(deepcopy=False)))
    now = json.loads(json.dumps(plan.described()))
    before = study.user_attrs.get(_PLAN)
    if before is None:
        study.set_user_attr(_PLAN, now)
    else:
        _require_same(plan, before, now)
    if plan.section.sampler == "grid" and not study.user_attrs.get(_PLANNED):
        for point in plan.grid():
            study.enqueue_trial(dict(point), skip_if_exists=True)
        study.set_user_attr(_PLANNED, True)
    return study


def _storage(folder: Path, storage: str | None) -> optuna.storages.BaseStorage:
    if storage is None:
        (folder / DATABASE).touch()  # SQLite's own mode, 0644, takes no notice of a wider umask
    try:
        url = f"sqlite:///{folder / DATABASE}" if storage is None else storage
        return optuna.storages.get_storage(url)
    except (ArgumentError, ValueError, LookupError):  # what optuna and its drivers make of it
        raise RecipeError(
            "--storage: not a storage URL, expected e.g. sqlite:///study.db or "
            "postgresql://user@host/base"
        ) from None
    except ImportError as error:
        package = getattr(error, "name", None) or str(error).splitlines()[0]
        raise MachineError(f"{masked(storage)}: package {package} is not installed") from None


def _sampler(plan: Plan, chosen: int) -> optuna.samplers.BaseSampler:
    """What chooses a point; those of a grid are all queued beforehand.

    Args:
        chosen: points that the study has already; whoever goes on with it draws others.
    """
    seed = (plan.recipe.seed + 1_000_003 * chosen) % 2**32
    if plan.section.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _distribution(values: Any) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(tuple(values))
    if isinstance(values.low, int) and isinstance(values.high, int):
        return Ints(values.low, values.high, log=values.log)
    return Floats(float(values.low), float(values.high), log=values.log)


def _text(plan: Plan, key: str, value: Any) -> str:
    """A parameter of optuna as TOML text; choices are that already."""
    return toml_text(value) if isinstance(plan.space[key], Range) else str(value)


def _require_same(plan: Plan, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, old, new in list_differences(before, now):
        raise ArtefactError(
            f"{plan.folder}: begun with {key} = {old!r}, now {new!r}; use the same recipe and "
            "flags, or begin another study (--study NAME)"
        )


@contextmanager
def _alive(folder: Path, owner: str) -> Iterator[None]:
    lock = FileLock(_sign(folder, owner))
    with lock:
        yield
    _sign(folder, owner).unlink(missing_ok=True)


def _sign(folder: Path, owner: str) -> Path:
    return folder / f".alive-{owner}"


def _abandoned(folder: Path, trial: FrozenTrial) -> bool:
    """Whether nobody works on a running trial any more."""
    sign = _sign(folder, str(trial.user_attrs.get(OWNER)))
    if not sign.exists():  # of another machine, or of a process that was asked to end
        return time.time() - float(trial.user_attrs.get(SEEN, 0)) > _SILENT
    if is_held(sign):
        return False
    sign.unlink(missing_ok=True)
    return True
