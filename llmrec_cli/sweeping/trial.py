"""One point of a sweep: an experiment of its own, trained by the ordinary commands.

    shared runs (made once a seed) --linked--> the point's experiment --> its run --> validation

A point repeats only the runs that its values change.  Commands run as processes of their own: what
ends one of them (memory, NaN) ends no sweep, and each may have devices for itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmrec_cli.claims import wait_for_lock
from llmrec_cli.files import BASE_FOLDER, SCORES_FOLDER, machine_errors, read_json
from llmrec_cli.recipe.recipe import PREPARED_FOLDERS, Recipe
from llmrec_cli.runs.record import require_same_settings
from llmrec_cli.runs.run import Run
from llmrec_cli.sweeping.child import Interrupted, Watch, follow
from llmrec_cli.sweeping.plan import Plan, Point, needed


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

    def command(self, *words: str, run: Run | None = None, watch: Watch | None = None) -> None:
        """Carry out a command on the recipe, its messages in the experiment's ``sweep.log``."""
        with machine_errors(self.recipe.folder):
            self.recipe.folder.mkdir(parents=True, exist_ok=True)
        follow(
            [*words, *self.words, *self.place.overrides, "--quiet"],
            self.place.environment,
            self.recipe.folder / "sweep.log",
            (run.folder, run.section(self.recipe).train.select) if run else None,
            watch or self.watch,
            patience=self.recipe.launch.timeout,
        )

    def train(self, run: Run, watch: Watch | None = None) -> None:
        """Train a run to its end, from where it stands."""
        if run.is_done:
            require_same_settings(self.recipe, run)
            return
        resume = ["--resume"] if run.folder.exists() else []
        self.command(*run.command, *resume, run=run, watch=watch)


@dataclass(frozen=True)
class Trials:
    """The points of a plan as trainings.  Safe for threads, and for other sweeps in the folder."""

    plan: Plan
    say: Callable[[str], object] = lambda text: None  # told of another sweep that is waited for
    _prepared: set[Path] = field(default_factory=set)  # grounds whose data were checked

    def score(self, point: Point, seed: int, place: Place, watch: Watch) -> float:
        """Train a point with one seed; what is finished is kept, what stopped goes on.

        Returns:
            The best validation of the judged run, higher is better.

        Raises:
            Pruned, Interrupted: ``watch`` said so; the run has left a checkpoint.
            UserError, MachineError, NumbersError, LlmrecError: a command failed; its own line.
        """
        plain = Watch(alive=watch.alive, stopping=watch.stopping)
        ground = _Experiment(*self.plan.ground(seed), place, plain)
        tried = _Experiment(*self.plan.at(point, seed), place, plain)
        judged = self.plan.judged(tried.recipe)
        runs = needed(tried.recipe, judged)
        self._make_shared(ground, tried, _shared(ground.recipe, tried.recipe, runs))
        for run in runs:
            tried.train(run)
        tried.train(judged, watch)
        return float(read_json(judged.manifest_file)["outcome"]["best_score"])

    def _make_shared(self, ground: _Experiment, tried: _Experiment, runs: Sequence[Run]) -> None:
        """Train what a point shares with others, unless that is done, and link it."""
        folder = ground.recipe.folder
        with machine_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

        def check() -> None:
            if ground.watch.stopping():
                raise Interrupted

        # One worker makes what all of them use; its process says whom another sweep waits for.
        with wait_for_lock(folder / ".sweep.lock", folder, self.say, check):
            if folder not in self._prepared:
                ground.command("prepare")
                self._prepared.add(folder)
            for run in runs:
                ground.train(run.within(folder))
            names = [PREPARED_FOLDERS[0], *(run.name for run in runs), SCORES_FOLDER]
            _link(ground.recipe, tried.recipe, names)
            if all(getattr(ground.recipe, key) == getattr(tried.recipe, key) for key in _BASE):
                _link(ground.recipe, tried.recipe, [BASE_FOLDER])


_BASE = ("model", "prompt")  # what the embedded backbone depends on, besides data and seed


def _shared(ground: Recipe, recipe: Recipe, runs: Sequence[Run]) -> list[Run]:
    """The runs that a point's values do not change, nor anything that they stand on."""
    same = list[Run]()
    for run in runs:
        stands = all(parent in same for parent in needed(recipe, run))
        if stands and run.settings(ground) == run.settings(recipe):
            same.append(run)
    return same


def _link(ground: Recipe, recipe: Recipe, names: Sequence[str]) -> None:
    """Give a point's experiment finished folders of its ground, without copying their bytes."""
    with machine_errors(recipe.folder):
        recipe.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, target = ground.folder / name, recipe.folder / name
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
