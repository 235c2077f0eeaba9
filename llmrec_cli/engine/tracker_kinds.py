"""The trackers that llmrec knows, each behind Accelerate's class of the same name.

They get the rows and nothing else: no settings, no source, no measurements of the machine, and,
where the tracker lets itself be told, no name of the user or host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_MLFLOW_TELLS: Final = (  # tags that it would fill in by itself
    "mlflow.user",
    "mlflow.source.name",
    "mlflow.source.git.branch",
    "mlflow.source.git.commit",
    "mlflow.source.git.repoURL",
)


@dataclass(frozen=True)
class Target:
    """Which run a tracker is to show, and where."""

    folder: Path  # of the run
    project: str  # the recipe's name
    run: str
    online: bool
    id: str  # of our choice; of a run that goes on: what the tracker knows it by
    goes_on: bool = False


@dataclass(frozen=True)
class Kind:
    """How one tracker is opened."""

    open: Callable[[Target], Any]  # an Accelerate tracker, not yet started
    place: Callable[[Target], str]  # where to look, in words
    files: str | None  # offline, its folder in the run's; None: it has one home for all projects
    servers: bool = True  # it can go online
    address: tuple[str, ...] = ()  # variables, one of which has to say where online is
    misleading: tuple[str, ...] = ()  # variables that would lead an offline run elsewhere
    id_of: Callable[[Any], str] | None = None  # the id that a started one gave; None: ours
    close: Callable[[], object] | None = None  # what Accelerate's class leaves open
    name_of: Callable[[str], str] = str  # a metric's name as the tracker allows it


def _tensorboard(target: Target) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker("tensorboard", str(target.folder))


def _wandb(target: Target) -> Any:
    import wandb
    from accelerate.tracking import WandBTracker

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
    )
    return WandBTracker(
        target.project,
        name=target.run,
        id=target.id,
        resume="allow" if target.goes_on else None,
        mode="online" if target.online else "offline",
        dir=str(target.folder),
        settings=settings,
    )


def _mlflow(target: Target) -> Any:
    import mlflow
    from accelerate.tracking import MLflowTracker

    home = (target.folder / "mlflow").absolute()
    if not target.online:
        home.mkdir(exist_ok=True)
        (home / "mlflow.db").touch()  # SQLite's own mode, 0644, takes no notice of a wider umask
        mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    return MLflowTracker(
        target.project,
        run_name=target.run,
        run_id=target.id if target.goes_on else None,
        logging_dir=None if target.online else home.as_uri(),
        tags=dict.fromkeys(_MLFLOW_TELLS, "llmrec"),
    )


def _trackio(target: Target) -> Any:
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(
        target.project,
        name=f"{target.run}-{target.id}",  # a name is all that it knows a run by
        resume="must" if target.goes_on else "never",
        auto_log_cpu=False,
        auto_log_gpu=False,
        embed=False,
    )


def _close_trackio() -> None:
    import trackio

    trackio.finish()  # or it finishes the run again, aloud, when the process ends


def _place_of_wandb(target: Target) -> str:
    if target.online:
        return f"run {target.id} of project {target.project}"
    return f"wandb sync {target.folder}/wandb/offline-run-*"


def _place_of_mlflow(target: Target) -> str:
    if target.online:
        return f"experiment {target.project}"
    return f"mlflow ui --backend-store-uri sqlite:///{target.folder}/mlflow/mlflow.db"


KINDS: Final = {
    "tensorboard": Kind(
        _tensorboard,
        lambda target: f"tensorboard --logdir {target.folder.parent}",
        files="tensorboard",
        servers=False,
    ),
    "wandb": Kind(_wandb, _place_of_wandb, files="wandb"),
    "mlflow": Kind(
        _mlflow,
        _place_of_mlflow,
        files="mlflow",
        address=("MLFLOW_TRACKING_URI",),
        misleading=(
            "MLFLOW_EXPERIMENT_NAME",
            "MLFLOW_NESTED_RUN",
            "MLFLOW_RUN_ID",
            "MLFLOW_TAGS",
            "MLFLOW_TRACKING_URI",
        ),
        id_of=lambda tracker: str(tracker.tracker.info.run_id),
        name_of=lambda name: name.replace("@", "_at_"),
    ),
    "trackio": Kind(
        _trackio,
        lambda target: f"trackio show --project {target.project}",
        files=None,
        address=("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        misleading=("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        close=_close_trackio,
    ),
}
