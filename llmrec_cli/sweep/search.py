"""A search over settings, judged on validation, never on the test split.

recipe, space -> plan -> study (optuna) -> points -> trials -> board, best.toml
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import TYPE_CHECKING, Literal

import tomli_w

from llmrec_cli.config.loader import change_paths, find_recipe, merge_tables
from llmrec_cli.errors import LlmrecError, MachineError, UserError
from llmrec_cli.sweep.board import Board, Tried
from llmrec_cli.sweep.plan import SweepPlan, format_overrides
from llmrec_cli.sweep.trial import Interrupted, Place, Pruned, Trials, Watch
from llmrec_cli.utils.files import write_atomically
from llmrec_cli.utils.progress import Advance, Progress

if TYPE_CHECKING:
    from optuna.trial import Trial

    from llmrec_cli.sweep.study import SweepStudy

BEST = "best.toml"


def search_settings(
    plan: SweepPlan, *, storage: str | None, workers: int | Literal["auto"], progress: Progress
) -> Board:
    """Try the points of a plan that are left; write the best one's recipe.

    Args:
        storage: an optuna storage URL that several machines may share; None: SQLite in the folder.
        workers: points tried at once, each with devices of its own; ``auto``: one per GPU.

    Raises:
        ArtefactError: the study was begun with another plan.
        MachineError: optuna is not installed, or the storage fails; or no point came to its end.
        UserError: a command refuses what it is given; every point would fail alike.
    """
    try:
        from llmrec_cli.sweep.study import open_study
    except ModuleNotFoundError as error:
        raise MachineError(
            f"llmrec sweep: package {error.name} is not installed: pip install 'llmrec[sweep]'"
        ) from None
    places = _list_places(plan, workers)
    with open_study(plan, storage, progress.say) as points:
        done = sum(row.state in ("complete", "pruned", "failed") for row in points.list_tried())
        with progress.track("sweep", plan.trials, done, unit="points") as advance:
            _Workers(points, progress, advance).run(places)
        rows = points.list_tried()
    board = Board(plan.run, plan.metric, plan.seeds, tuple(rows), plan.trials, plan.selection)
    if board.best is None:
        failed = [row.failure for row in rows if row.failure]
        raise MachineError(f"{plan.folder}: no point came to its end{_quote_last(failed)}")
    _write_best(plan, board.best)
    return board


class _Workers:
    """Threads that each see to one point at a time; the points are trained in processes."""

    def __init__(self, points: SweepStudy, progress: Progress, advance: Advance) -> None:
        self._points = points
        self._trials = Trials(points.plan, progress.say)
        self._progress = progress
        self._advance = advance
        self._stop = threading.Event()
        self._end = threading.Event()

    def run(self, places: Sequence[Place]) -> None:
        """Work until no points are left; an error or a signal stops all, with checkpoints.

        Another signal ends them at their last checkpoints.
        """
        with ThreadPoolExecutor(len(places)) as pool:
            try:
                for ended in as_completed(
                    [pool.submit(self._work_through, place) for place in places]
                ):
                    ended.result()
            except BaseException:
                self._stop.set()
                self._wait(pool)
                raise

    def _wait(self, pool: ThreadPoolExecutor) -> None:
        """Let the points in work finish their updates, or end them on a signal."""
        self._progress.say(
            "stopping: points in work finish their update, then save; Ctrl-C stops now, at their "
            "last checkpoints"
        )
        try:
            pool.shutdown()
        except BaseException:
            self._end.set()
            raise

    def _work_through(self, place: Place) -> None:
        while not self._stop.is_set():
            trial = self._points.ask_trial()
            if trial is None:
                return
            self._try_point(trial, place)

    def _try_point(self, trial: Trial, place: Place) -> None:
        points, begun, figures = self._points, monotonic(), list[float]()
        point = points.read_point(trial)
        words = " ".join(format_overrides(point))
        try:
            for seed in points.plan.seeds:
                watch = self._watch(trial, first=not figures)
                figures.append(self._trials.score_point(point, seed, place, watch))
        except Interrupted:
            points.requeue_trial(trial)
            return
        except Pruned:
            told = f"{words}: pruned"
            points.prune_trial(trial, monotonic() - begun)
        except UserError:  # every point would fail alike
            points.requeue_trial(trial)
            raise
        except LlmrecError as error:
            told = f"{words}: failed: {error}"
            machine = isinstance(error, MachineError)
            points.fail_trial(trial, str(error), monotonic() - begun, machine=machine)
        else:
            plan = points.plan
            told = f"{words}: {plan.metric} {plan.selection.turn(fmean(figures)):.4f}"
            points.complete_trial(trial, figures, monotonic() - begun)
        self._progress.say(told)
        self._advance(1)

    def _watch(self, trial: Trial, *, first: bool) -> Watch:
        """Pruning looks at the first seed: others would be set against other points' first."""
        prunes = first and self._points.plan.section.prune

        def should_prune(number: int, score: float) -> bool:
            if prunes:
                trial.report(score, number)
            return prunes and trial.should_prune()

        beat = partial(self._points.record_beat, trial)
        return Watch(should_prune, beat, should_stop=self._stop.is_set, should_end=self._end.is_set)


def _list_places(plan: SweepPlan, workers: int | Literal["auto"]) -> list[Place]:
    """Devices and threads of each worker."""
    devices = [] if plan.recipe.launch.device == "cpu" else _list_devices()
    count = workers if workers != "auto" else max(len(devices), 1)
    if count == 1:
        return [Place()]
    if not devices:
        threads = plan.recipe.launch.threads or max(1, (os.cpu_count() or 1) // count)
        return [Place(overrides=[f"launch.threads={threads}"])] * count
    own = [devices[i::count] or [devices[i % len(devices)]] for i in range(count)]
    return [Place({"CUDA_VISIBLE_DEVICES": ",".join(some)}) for some in own]


def _list_devices() -> list[str]:
    """The visible GPUs by name, as ``CUDA_VISIBLE_DEVICES`` writes them."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(i) for i in range(count)]


def _write_best(plan: SweepPlan, best: Tried) -> Path:
    """The recipe of the best point, beside the study: the recipe as it was given, with its values.

    Raises:
        MachineError: the disk refuses.
    """
    words = [*plan.overrides, *format_overrides(best.point)]
    table = merge_tables(find_recipe(plan.word), words)
    table.pop("sweep", None)
    table["name"] = f"{plan.recipe.name}-best"
    target = plan.folder / BEST

    def from_there(path: str) -> str:
        return os.path.relpath(path, plan.folder) if path.startswith("../") else path

    change_paths(table, from_there)
    figures = ", ".join(f"{figure:.4f}" for figure in best.figures)
    head = (
        f"# The best point of a sweep: {plan.metric} on validation {figures} (seeds "
        f"{', '.join(map(str, plan.seeds))}).\n"
        "# The test split was not looked at.  To train it again and evaluate it once:\n"
        f"#\n#   llmrec run {target.as_posix()}\n\n"
    )
    write_atomically(target, (head + tomli_w.dumps(table)).encode())
    return target


def _quote_last(failed: Sequence[str]) -> str:
    return f"; the last one: {failed[-1]}" if failed else ""
