"""A training command's use of its run's folder: lock, start, trackers, cost, end.

lock -> start_run -> the training, measured -> finish_run; input that turns out to be wrong
before anything was trained leaves no folder behind
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.runs.record import finish_run, start_run
from llmrec_cli.runs.run import Run
from llmrec_cli.runs.tracking import Trackers, open_trackers
from llmrec_cli.training.distributed import Ranks, measured
from llmrec_cli.utils.locks import lock_run, roll_back
from llmrec_cli.utils.progress import Progress


@dataclass
class RunSession:
    """A run's folder that this process, or its group, has for itself."""

    run: Run
    trackers: Trackers
    is_finished: bool = False  # by another process, while this one waited: nothing is left to do
    outcome: Mapping[str, Any] = field(default_factory=dict)  # for the manifest, set at the end


@contextmanager
def open_session(
    recipe: Recipe,
    run: Run,
    facts: Mapping[str, Any],
    ranks: Ranks,
    progress: Progress,
    *,
    resume: bool,
) -> Iterator[RunSession]:
    """``start_run`` by the first process; without an exception, the run is done at the end.

    What it took of the machine is measured on the way (of a resumed run: since it was resumed).

    Raises:
        ArtefactError: as ``start_run``; or another run of llmrec works in the folder.
        MachineError, RecipeError: a tracker of the recipe cannot work here.
    """
    folder = run.folder
    with (
        open_trackers(recipe.track, folder, writes=ranks.is_first, say=progress.say) as trackers,
        lock_run(folder) if ranks.is_first else nullcontext(),
    ):
        session, existed = RunSession(run, trackers), folder.exists()
        ranks.first(lambda: start_run(recipe, run, facts, resume=resume))
        if ranks.most(int(ranks.is_first and run.is_done)):
            session.is_finished = True
            yield session
            return
        with measured(ranks.device) as usage, roll_back(folder, existed or not ranks.is_first):
            yield session
        cost = usage.recorded(ranks)
        ranks.first(lambda: finish_run(run, session.outcome, cost))
