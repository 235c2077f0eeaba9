"""One point of a sweep: an experiment, trained by the normal commands.

    shared runs (made once a seed) --linked--> the point's experiment --> its run --> validation

A point repeats only the runs that its values change.  Commands run as processes of their own: what
ends one of them (memory, NaN) ends no sweep, and each may have devices for itself.  A command is
followed by the ``metrics.jsonl`` of the run that it trains.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmrec_cli.config.recipe import PREPARED_FOLDERS, Recipe
from llmrec_cli.config.training import Selection
from llmrec_cli.errors import LlmrecError, MachineError, NumbersError, UserError
from llmrec_cli.runs.record import require_same_settings
from llmrec_cli.runs.run import Run
from llmrec_cli.sweep.plan import Point, SweepPlan, list_needed_runs
from llmrec_cli.training.launch import LAUNCHER
from llmrec_cli.utils.files import (
    BASE_FOLDER,
    METRICS_FILE,
    SCORES_FOLDER,
    read_json,
    translate_os_errors,
)
from llmrec_cli.utils.locks import wait_for_lock

_POLL = 0.2  # seconds
_ENDS: Mapping[int, type[LlmrecError]] = {2: UserError, 3: MachineError, 4: NumbersError}


class Interrupted(Exception):
    """The sweep is being stopped."""


class Pruned(Exception):
    """A point is not worth going on with."""


@dataclass(frozen=True)
class Watch:
    """What somebody wants of a command while it runs."""

    should_prune: Callable[[int, float], bool] = lambda number, score: False
    """Told each validation's number (from 1) and score; true stops the command."""
    beat: Callable[[], None] = lambda: None
    should_stop: Callable[[], bool] = lambda: False
    should_end: Callable[[], bool] = lambda: False
    """Asked while a stopped command finishes its update; true ends it as it is."""


@dataclass(frozen=True)
class Place:
    """Where a point is trained: the devices and threads of one of several workers."""

    environment: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class _Experiment:
    """A recipe, and the words that make it on a command line."""

    recipe: Recipe
    words: Sequence[str]  # the recipe as it was named, and overrides
    place: Place
    watch: Watch

    def run_command(self, *words: str, run: Run | None = None, watch: Watch | None = None) -> None:
        """Carry out a command on the recipe, its messages in the experiment's ``sweep.log``."""
        with translate_os_errors(self.recipe.folder):
            self.recipe.folder.mkdir(parents=True, exist_ok=True)
        follow_command(
            [*words, *self.words, *self.place.overrides, "--quiet"],
            self.place.environment,
            self.recipe.folder / "sweep.log",
            (run.folder, run.section(self.recipe).train.selection) if run else None,
            watch or self.watch,
            patience=self.recipe.launch.timeout,
        )

    def train_run(self, run: Run, watch: Watch | None = None) -> None:
        """Train a run to its end, from where it stands."""
        if run.is_done:
            require_same_settings(self.recipe, run)
            return
        resume = ["--resume"] if run.folder.exists() else []
        self.run_command(*run.command, *resume, run=run, watch=watch)


@dataclass(frozen=True)
class Trials:
    """The points of a plan as trainings.  Safe for threads, and for other sweeps in the folder."""

    plan: SweepPlan
    say: Callable[[str], object] = lambda text: None  # told of another sweep that is waited for
    _prepared: set[Path] = field(default_factory=set)  # folders whose data were checked

    def score_point(self, point: Point, seed: int, place: Place, watch: Watch) -> float:
        """Train a point with one seed; what is finished is kept, what stopped goes on.

        Returns:
            The best validation of the judged run, higher is better.

        Raises:
            Pruned, Interrupted: ``watch`` said so; the run has left a checkpoint.
            UserError, MachineError, NumbersError, LlmrecError: a command failed; its own line.
        """
        plain = replace(watch, should_prune=Watch.should_prune)
        shared = _Experiment(*self.plan.load_shared(seed), place, plain)
        tried = _Experiment(*self.plan.load_point(point, seed), place, plain)
        judged = self.plan.find_run(tried.recipe)
        runs = list_needed_runs(tried.recipe, judged)
        self._make_shared(shared, tried, _list_shared_runs(shared.recipe, tried.recipe, runs))
        for run in runs:
            tried.train_run(run)
        tried.train_run(judged, watch)
        return float(read_json(judged.manifest_file)["outcome"]["best_score"])

    def _make_shared(self, shared: _Experiment, tried: _Experiment, runs: Sequence[Run]) -> None:
        """Train what a point shares with others, unless that is done, and link it."""
        folder = shared.recipe.folder
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

        def check() -> None:
            if shared.watch.should_stop():
                raise Interrupted

        # One worker makes what all of them use; its process says whom another sweep waits for.
        with wait_for_lock(folder / ".sweep.lock", folder, self.say, check):
            if folder not in self._prepared:
                shared.run_command("prepare")
                self._prepared.add(folder)
            for run in runs:
                shared.train_run(run.within(folder))
            names = [PREPARED_FOLDERS[0], *(run.name for run in runs), SCORES_FOLDER]
            _link_folders(shared.recipe, tried.recipe, names)
            if all(getattr(shared.recipe, key) == getattr(tried.recipe, key) for key in _BASE):
                _link_folders(shared.recipe, tried.recipe, [BASE_FOLDER])


_BASE = ("model", "prompt")  # what the embedded backbone depends on, besides data and seed


def _list_shared_runs(shared: Recipe, recipe: Recipe, runs: Sequence[Run]) -> list[Run]:
    """The runs that a point's values do not change, nor anything that they stand on."""
    same = list[Run]()
    for run in runs:
        stands = all(parent in same for parent in list_needed_runs(recipe, run))
        if stands and run.settings(shared) == run.settings(recipe):
            same.append(run)
    return same


def _link_folders(shared: Recipe, recipe: Recipe, names: Sequence[str]) -> None:
    """Give a point's experiment finished folders that it shares, without copying their bytes."""
    with translate_os_errors(recipe.folder):
        recipe.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, target = shared.folder / name, recipe.folder / name
            if source.is_dir() and not target.exists():
                with tempfile.TemporaryDirectory(prefix=".link-", dir=recipe.folder) as temporary:
                    whole = Path(temporary) / name
                    hidden = shutil.ignore_patterns(".*")  # locks, and what is being written
                    shutil.copytree(source, whole, ignore=hidden, copy_function=_link_file)
                    whole.rename(target)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def follow_command(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    judged: tuple[Path, Selection] | None,
    watch: Watch,
    patience: float,
) -> None:
    """Carry out ``llmrec WORDS`` to its end, or until ``watch`` wants it stopped.

    Args:
        environment: what differs from this process's own.
        log: receives what the command says on stderr.
        judged: the folder of the run that it trains, and what chooses its checkpoint.
        patience: seconds that a stopped command has to write its checkpoint.

    Raises:
        Pruned, Interrupted: ``watch`` said so, and the command has ended.
        UserError, MachineError, NumbersError, LlmrecError: it failed; with its own line.
    """
    with translate_os_errors(log), log.open("ab") as said:
        begun = said.tell()
        child = subprocess.Popen(  # nosec B603 # noqa: S603 - our own command, no shell
            [sys.executable, "-m", "llmrec_cli", *words],
            env={**os.environ, **environment, LAUNCHER: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
        )
    try:
        reason = _watch_command(child, judged, watch)
    except BaseException:
        _stop_command(child, patience, watch.should_end)
        raise
    if reason is not None:
        _stop_command(child, patience, watch.should_end)
        raise reason
    if child.returncode:
        raise _read_failure(child.returncode, words[0], log, begun)


def _watch_command(
    child: subprocess.Popen[bytes], judged: tuple[Path, Selection] | None, watch: Watch
) -> Exception | None:
    """Why the command is to be stopped; None: it has ended by itself."""
    told, size = 0, -1
    while True:
        ended = child.poll() is not None
        if not ended and watch.should_stop():
            return Interrupted()
        file = judged[0] / METRICS_FILE if judged else None
        grown = file.stat().st_size if file and file.is_file() else -1
        if judged and file and grown != size:
            size, fresh = grown, list(_read_scores(file, judged[1]))[told:]
            for score in fresh:
                told += 1
                if watch.should_prune(told, score) and not ended:
                    return Pruned()
        if ended:
            return None
        watch.beat()
        time.sleep(_POLL)


def _read_scores(file: Path, selection: Selection) -> Iterator[float]:
    """The score of every validation so far, as the training loop chooses by it."""
    for line in file.read_bytes().split(b"\n")[:-1]:
        if (
            b'"valid_loss"' in line
            and (value := selection.find_value(json.loads(line))) is not None
        ):
            yield selection.turn(value)


def _stop_command(
    child: subprocess.Popen[bytes], patience: float, should_end: Callable[[], bool]
) -> None:
    child.send_signal(signal.SIGTERM)
    until = time.monotonic() + patience
    while time.monotonic() < until and not should_end():
        with suppress(subprocess.TimeoutExpired):
            child.wait(_POLL)
            return
    child.kill()
    child.wait()


def _read_failure(code: int, command: str, log: Path, begun: int) -> LlmrecError:
    """What ended a command, in its own words."""
    with log.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").splitlines()
    if code < 0:
        name = signal.Signals(-code).name
        return MachineError(f"{command} was ended by {name} (out of memory?); see {log}")
    prefix = f"llmrec {command}: error: "
    errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    said = errors[-1] if errors else f"ended with exit code {code}; see {log}"
    return _ENDS.get(code, MachineError if code > 128 else LlmrecError)(f"{command}: {said}")
