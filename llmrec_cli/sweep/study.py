"""The study of a sweep: optuna chooses points and stores their results.

Several processes, also of several machines, may work on one study.  Each marks its trials with a
name of its own and shows that it lives: by a lock in the study's folder, which the system releases
when the process ends, and by a time in the storage for those that do not share that folder.

optuna's own heartbeat and queue do not serve (benchmarks/results/2026-11-30-sweep.md): a killed
trial would wait for the grace period, and on SQLite two processes get the same trial.  So trials
are chosen, taken over and queued again under one lock in the study's folder.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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

from llmrec_cli.config.training import Range
from llmrec_cli.errors import ArtefactError, MachineError, RecipeError
from llmrec_cli.runs.record import list_differences
from llmrec_cli.sweep.board import State, Tried
from llmrec_cli.sweep.plan import Point, SweepPlan, format_toml
from llmrec_cli.utils.files import translate_os_errors
from llmrec_cli.utils.locks import is_held, wait_for_lock

DATABASE = "study.db"
OWNER, SEEN = "owner", "seen"  # what trials carry beside their point
REPLACES, POINT = "replaces", "point"  # of queued ones: the trial that they try again; parameters
FAILURE, MACHINE, FIGURES, SECONDS = "failure", "machine", "figures", "seconds"
_PLAN, _PLANNED = "plan", "planned"  # what the study carries
_AGAIN, INTERRUPTED = "again", "interrupted"  # earlier versions' marks of what was queued again
_BEAT, _SILENT = 30.0, 600.0  # seconds between signs of life; without one, a trial is given up
_STATES: Mapping[TrialState, State] = {  # of points that were chosen, not only queued
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
Say = Callable[[str], object]


class SweepStudy:
    """Points of a plan, one after the other, until all are tried.  Safe for threads."""

    def __init__(self, plan: SweepPlan, study: Study, say: Say) -> None:
        self.plan = plan
        self._study = study
        self._say = say
        self._owner = uuid.uuid4().hex
        self._distributions = {key: _make_distribution(v) for key, v in plan.space.items()}
        self._last_beat = dict[int, float]()

    def ask_trial(self) -> Trial | None:
        """A point to try; None when there are none left."""
        with _lock_study(self.plan, self._say):
            if len(self.list_tried()) >= self.plan.trials:
                return None
            trial = self._study.ask(self._distributions)
            trial.set_user_attr(OWNER, self._owner)
            self.record_beat(trial)
            return trial

    def read_point(self, trial: Trial) -> Point:
        """The point of a trial, as values of a recipe."""
        return {key: _format_value(self.plan, key, trial.params[key]) for key in self.plan.space}

    def record_beat(self, trial: Trial) -> None:
        """Show now and then that the trial is being worked on."""
        now = time.time()
        if now - self._last_beat.get(trial.number, 0) >= _BEAT:
            self._last_beat[trial.number] = now
            trial.set_user_attr(SEEN, now)

    def requeue_trial(self, trial: Trial) -> None:
        """End a trial that was interrupted; its point is queued again."""
        with _lock_study(self.plan, self._say):
            _requeue_trial(self._study, trial)

    def prune_trial(self, trial: Trial, seconds: float) -> None:
        """End a trial that was not worth going on with."""
        self._end_trial(trial, TrialState.PRUNED, {SECONDS: round(seconds, 1)})

    def fail_trial(self, trial: Trial, reason: str, seconds: float, *, machine: bool) -> None:
        """End a trial whose command failed.

        Args:
            machine: for want of disk, memory or a device; the next sweep tries the point again.
        """
        told = {FAILURE: reason, MACHINE: machine, SECONDS: round(seconds, 1)}
        self._end_trial(trial, TrialState.FAIL, told)

    def complete_trial(self, trial: Trial, figures: Sequence[float], seconds: float) -> None:
        """End a trial with what each seed gave; their mean counts."""
        told = {FIGURES: list(figures), SECONDS: round(seconds, 1)}
        self._end_trial(trial, TrialState.COMPLETE, told, fmean(figures))

    def _end_trial(
        self, trial: Trial, state: TrialState, told: Mapping[str, Any], value: float | None = None
    ) -> None:
        for key, what in told.items():
            trial.set_user_attr(key, what)
        self._study.tell(trial, value, state=state)

    def list_tried(self) -> list[Tried]:
        """Every point that was chosen so far, in that order."""
        trials = self._study.get_trials(deepcopy=False)
        replaced = _list_replaced(self._study, trials)
        return [
            Tried(
                point={k: _format_value(self.plan, k, v) for k, v in trial.params.items()},
                state=_STATES[trial.state],
                figures=tuple(map(self.plan.selection.turn, trial.user_attrs.get(FIGURES, ()))),
                seconds=trial.user_attrs.get(SECONDS),
                failure=trial.user_attrs.get(FAILURE),
            )
            for trial in trials
            if trial.state in _STATES and trial.number not in replaced
        ]


@contextmanager
def open_study(
    plan: SweepPlan, storage: str | None, say: Say = lambda text: None
) -> Iterator[SweepStudy]:
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
    with translate_os_errors(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    with _name_storage_errors(storage):
        with _lock_study(plan, say):
            study = _load_study(plan, storage)
            _requeue_left_trials(plan, study)
        found = SweepStudy(plan, study, say)
        sign = _sign_file(plan.folder, found._owner)
        with FileLock(sign):
            yield found
        sign.unlink(missing_ok=True)


def _lock_study(plan: SweepPlan, say: Say) -> AbstractContextManager[None]:
    """Hold the study's lock: SQLite's own do not keep two processes from taking one trial."""
    return wait_for_lock(plan.folder / ".open.lock", plan.folder, say)


def _requeue_left_trials(plan: SweepPlan, study: Study) -> None:
    """Queue again what dead processes left, and what failed for what another time may not lack."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_abandoned(plan.folder, trial):
            _requeue_trial(study, trial)
    replaced = _list_replaced(study, study.get_trials(deepcopy=False))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if trial.user_attrs.get(MACHINE) and trial.number not in replaced:
            _queue_again(study, trial)


def _requeue_trial(study: Study, trial: Trial | FrozenTrial) -> None:
    """End a running trial and queue its point; whoever is killed in between does neither twice."""
    if not any(
        other.user_attrs.get(REPLACES) == trial.number for other in study.get_trials(deepcopy=False)
    ):
        _queue_again(study, trial)
    study.tell(trial.number, state=TrialState.FAIL)


def _queue_again(study: Study, trial: Trial | FrozenTrial) -> None:
    point = {**trial.user_attrs.get(POINT, {}), **trial.params}
    study.enqueue_trial(point, user_attrs={POINT: point, REPLACES: trial.number})


def _list_replaced(study: Study, trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials whose points were queued again."""
    return {
        *(trial.user_attrs[REPLACES] for trial in trials if REPLACES in trial.user_attrs),
        *(trial.number for trial in trials if trial.user_attrs.get(INTERRUPTED)),
        *study.user_attrs.get(_AGAIN, []),
    }


def _is_abandoned(folder: Path, trial: FrozenTrial) -> bool:
    """Whether nobody works on a running trial any more."""
    sign = _sign_file(folder, str(trial.user_attrs.get(OWNER)))
    if not sign.exists():  # of another machine, or of a process that was asked to end
        return time.time() - float(trial.user_attrs.get(SEEN, 0)) > _SILENT
    if is_held(sign):
        return False
    sign.unlink(missing_ok=True)
    return True


def _sign_file(folder: Path, owner: str) -> Path:
    """The file that a process holds a lock on as long as it lives."""
    return folder / f".alive-{owner}"


@contextmanager
def _name_storage_errors(storage: str | None) -> Iterator[None]:
    """A storage that fails as one line, its password hidden.

    Raises:
        MachineError: what the storage said.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        said = str(getattr(error, "orig", None) or error.__cause__ or error)
        first = said.strip().splitlines()[0] if said.strip() else type(error).__name__
        raise MachineError(f"{mask_storage(storage)}: {_hide_secret(first, storage)}") from None


def mask_storage(storage: str | None) -> str:
    """A storage URL that may be shown; None: the file that stands for it."""
    if storage is None:
        return DATABASE
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except ArgumentError:
        return "--storage"


def _hide_secret(text: str, storage: str | None) -> str:
    if storage is None:
        return text
    secret = make_url(storage).password
    text = text.replace(storage, mask_storage(storage))
    return text.replace(str(secret), "***") if secret else text


def _load_study(plan: SweepPlan, storage: str | None) -> Study:
    study = optuna.create_study(
        storage=_open_storage(plan.folder, storage),
        study_name=f"{plan.recipe.name}/{plan.study}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3)
        if plan.section.prune
        else optuna.pruners.NopPruner(),
    )
    study.sampler = _make_sampler(plan, len(study.get_trials(deepcopy=False)))
    now = json.loads(json.dumps(plan.describe()))
    before = study.user_attrs.get(_PLAN)
    if before is None:
        study.set_user_attr(_PLAN, now)
    else:
        _require_same(plan, before, now)
    if plan.section.sampler == "grid" and not study.user_attrs.get(_PLANNED):
        for point in plan.list_points():  # some are there where a process was killed here
            study.enqueue_trial(dict(point), user_attrs={POINT: point}, skip_if_exists=True)
        study.set_user_attr(_PLANNED, True)
    return study


def _open_storage(folder: Path, storage: str | None) -> optuna.storages.BaseStorage:
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
        raise MachineError(f"{mask_storage(storage)}: package {package} is not installed") from None


def _make_sampler(plan: SweepPlan, chosen: int) -> optuna.samplers.BaseSampler:
    """What chooses a point; those of a grid are all queued beforehand.

    Args:
        chosen: points that the study has already; whoever goes on with it draws others.
    """
    seed = (plan.recipe.seed + 1_000_003 * chosen) % 2**32
    if plan.section.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _make_distribution(values: Any) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(tuple(values))
    if isinstance(values.low, int) and isinstance(values.high, int):
        return Ints(values.low, values.high, log=values.log)
    return Floats(float(values.low), float(values.high), log=values.log)


def _format_value(plan: SweepPlan, key: str, value: Any) -> str:
    """A parameter of optuna as TOML text; choices are that already."""
    return format_toml(value) if isinstance(plan.space[key], Range) else str(value)


def _require_same(plan: SweepPlan, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, old, new in list_differences(before, now):
        raise ArtefactError(
            f"{plan.folder}: begun with {key} = {old!r}, now {new!r}; use the same recipe and "
            "flags, or begin another study (--study NAME)"
        )
