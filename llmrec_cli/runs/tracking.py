"""The log of a run: metrics.jsonl, and trackers that also get its rows."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmrec_cli.config.training import TrackSection
from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.utils.files import (
    TRACKERS_FILE,
    read_json,
    sync_file,
    translate_os_errors,
    write_atomically,
    write_json,
)

# Trackers: they get the rows of ``metrics.jsonl``, through Accelerate's classes.
#
# Accelerate opens, feeds and closes them. This code adds:
#
# - Trackers get the rows and nothing else: no settings, no source, no measurements of the machine,
#   and, where the tracker lets itself be told, no name of the user or host.
# - Offline, a tracker's files are made from ``metrics.jsonl``: a resumed run makes them again from
#   the rows that its checkpoint stands on, so that no step comes twice.  What cannot be made again
#   (on a server, in trackio's own home) goes on as the same run, without the steps that it has.
# - A tracker that fails is left alone from then on; it never ends a training.


_SILENT: Final = {  # towards the makers of trackers, about a run that is offline
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
_LONGEST: Final = 200  # characters of a failure's message
_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True)
class Target:
    """Which run a tracker is to show, and where."""

    folder: Path  # of the run: ``.../PROJECT/RUN``
    online: bool
    id: str  # of our choice; of a run that goes on: what the tracker knows it by
    goes_on: bool = False

    @property
    def project(self) -> str:
        return self.folder.parent.name


@dataclass(frozen=True)
class Kind:
    """What one tracker needs beside Accelerate's class of its name."""

    arguments: Callable[[Target], Mapping[str, Any]]  # of that class
    offline: str  # where to look, to be formatted with the target
    online: str | None  # None: it cannot go online
    files: str | None  # offline, its folder in the run's; None: it has one home for all projects
    address: tuple[str, ...] = ()  # variables, one of which has to say where online is
    misleading: tuple[str, ...] = ()  # variables that would lead an offline run elsewhere
    id_of: Callable[[Any], str] | None = None  # the id that a started one gave; None: ours
    close: Callable[[], object] | None = None  # what Accelerate's class leaves open
    name_of: Callable[[str], str] = str  # a metric's name as the tracker allows it


def _configure_wandb(target: Target) -> Mapping[str, Any]:
    import wandb

    quiet = ("silent", "disable_git", "disable_job_creation")
    private = ("x_disable_machine_info", "x_disable_meta", "x_disable_stats")
    return {
        "run_name": target.project,
        "name": target.folder.name,
        "id": target.id,
        "resume": "allow" if target.goes_on else None,
        "mode": "online" if target.online else "offline",
        "dir": str(target.folder),
        "settings": wandb.Settings(
            console="off", save_code=False, **dict.fromkeys((*quiet, *private), True)
        ),
    }


def _configure_mlflow(target: Target) -> Mapping[str, Any]:
    import mlflow

    home = (target.folder / "mlflow").absolute()
    if not target.online:
        home.mkdir(exist_ok=True)
        (home / "mlflow.db").touch()  # SQLite's own mode, 0644, takes no notice of a wider umask
        mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    source = ("name", "git.branch", "git.commit", "git.repoURL")
    told = ("mlflow.user", *(f"mlflow.source.{key}" for key in source))  # it would fill them in
    return {
        "experiment_name": target.project,
        "run_name": target.folder.name,
        "run_id": target.id if target.goes_on else None,
        "logging_dir": None if target.online else home.as_uri(),
        "tags": dict.fromkeys(told, "llmrec"),
    }


def _configure_trackio(target: Target) -> Mapping[str, Any]:
    return {
        "run_name": target.project,
        "name": f"{target.folder.name}-{target.id}",  # a name is all that it knows a run by
        "resume": "must" if target.goes_on else "never",
        "auto_log_cpu": False,
        "auto_log_gpu": False,
        "embed": False,
    }


def _close_trackio() -> None:
    import trackio

    trackio.finish()  # or it finishes the run again, aloud, when the process ends


KINDS: Final = {
    "tensorboard": Kind(
        lambda target: {"run_name": "tensorboard", "logging_dir": str(target.folder)},
        offline="tensorboard --logdir {target.folder.parent}",
        online=None,
        files="tensorboard",
    ),
    "wandb": Kind(
        _configure_wandb,
        offline="wandb sync {target.folder}/wandb/offline-run-*",
        online="run {target.id} of project {target.project}",
        files="wandb",
    ),
    "mlflow": Kind(
        _configure_mlflow,
        offline="mlflow ui --backend-store-uri sqlite:///{target.folder}/mlflow/mlflow.db",
        online="experiment {target.project}",
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
        _configure_trackio,
        offline="trackio show --project {target.project}",
        online="trackio show --project {target.project}",
        files=None,
        address=("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        misleading=("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        close=_close_trackio,
    ),
}


def require_trackers(section: TrackSection) -> None:
    """Refuse trackers that cannot work here.

    Raises:
        MachineError: a package is missing.
        RecipeError: ``online``, and no variable says where that is.
    """
    for name in section.trackers:
        if importlib.util.find_spec(name) is None:
            raise MachineError(
                f'track.trackers = "{name}": {name} is not installed: pip install "llmrec[{name}]"'
            )
        address = KINDS[name].address
        if section.online and address and not any(os.environ.get(v) for v in address):
            raise RecipeError(
                f"[track] online = true: {name} does not know where to; set {' or '.join(address)} "
                "in the environment, or online = false"
            )


@contextmanager
def open_trackers(
    section: TrackSection, folder: Path, *, writes: bool, say: Callable[[str], object]
) -> Iterator[Trackers]:
    """The trackers of one run, closed at the end however it ends.

    Args:
        folder: of the run: ``.../PROJECT/RUN``.
        writes: one process does; to the others, there are no trackers.

    Raises:
        MachineError, RecipeError: as ``require``, before anything is written.
    """
    require_trackers(section)
    trackers = Trackers(section if writes else TrackSection(), folder, say)
    before, threading.excepthook = threading.excepthook, _silence_trackers(threading.excepthook)
    try:
        yield trackers
    finally:
        trackers.finish()
        threading.excepthook = before


@dataclass
class _Open:
    """A tracker at work."""

    kind: Kind
    tracker: Any  # Accelerate's
    has: int  # steps up to this one are there from before

    def give(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row; a value that is missing stays so."""
        if row["step"] <= self.has:
            return
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        values = {self.kind.name_of(k): +v for k, v in numbers.items()}  # + makes True a 1
        self.tracker.log(values, step=row["step"])


class Trackers:
    """Where a run's rows go besides its log; by default nowhere."""

    def __init__(
        self,
        section: TrackSection | None = None,
        folder: Path = Path(),
        say: Callable[[str], object] = print,
    ) -> None:
        self._section = section or TrackSection()
        self._folder = folder
        self._say = say
        self._open: dict[str, _Open] = {}

    def start(self, rows: Sequence[Mapping[str, Any]], seen: int) -> None:
        """Open all, each with the rows that it should have and has not.

        Args:
            rows: of the updates that are not done again.
            seen: the last step of which a row was ever written.
        """
        for name in dict.fromkeys(self._section.trackers):
            with self._guard(name):
                self._open[name] = self._open_tracker(name, seen)
                for row in rows:
                    self._open[name].give(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Give every tracker one row."""
        for name, found in list(self._open.items()):
            with self._guard(name):
                found.give(row)

    def finish(self) -> None:
        """Let every tracker write what it still holds, and close it."""
        for name, found in list(self._open.items()):
            with self._guard(name), _mute_output():
                found.tracker.finish()
                if found.kind.close:
                    found.kind.close()
        self._open.clear()

    def _open_tracker(self, name: str, seen: int) -> _Open:
        kind = KINDS[name]
        online = self._section.online and kind.online is not None
        file = self._folder / TRACKERS_FILE
        known: dict[str, str] = read_json(file) if file.is_file() else {}
        key = f"{name} online" if online else name
        stays = online or kind.files is None  # what it has cannot be made again
        target = Target(
            self._folder,
            online=online,
            id=known.get(key, uuid.uuid4().hex[:8]),
            goes_on=key in known,
        )
        if kind.files and not online:
            shutil.rmtree(self._folder / kind.files, ignore_errors=True)
        with _restrict_environment(kind, online=online), _mute_output():
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            tracker = LOGGER_TYPE_TO_CLASS[name](**kind.arguments(target))
            tracker.start()
        if stays:
            given = kind.id_of(tracker) if kind.id_of else target.id
            write_json(file, {**known, key: given})
        place = ((online and kind.online) or kind.offline).format(target=target)
        self._say(f"{self._folder.name}: also in {name}: {place}")
        return _Open(kind, tracker, has=seen if target.goes_on else 0)

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        """Whatever a tracker raises is said once, and it is not asked again."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            said = "".join(c if c.isprintable() else " " for c in str(error))[:_LONGEST]
            reason = f"{type(error).__name__}: {_PASSWORD.sub('', said)}"
            self._say(
                f"{self._folder.name}: warning: {name} failed and gets no further rows; the run "
                f"goes on ({reason})"
            )


@contextmanager
def _restrict_environment(kind: Kind, *, online: bool) -> Iterator[None]:
    """Offline, no variable of the environment or login on disk leads a tracker elsewhere."""
    if online:
        yield
        return
    from huggingface_hub import constants  # trackio would ask the hub who this is

    before, offline = dict(os.environ), constants.HF_HUB_OFFLINE
    for variable in kind.misleading:
        os.environ.pop(variable, None)
    os.environ |= _SILENT
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        changed = (*kind.misleading, *_SILENT)
        for variable in changed:
            os.environ.pop(variable, None)
        os.environ |= {name: before[name] for name in changed if name in before}


@contextmanager
def _mute_output() -> Iterator[None]:
    """What trackers print is no result of ours, and nobody sees what they ask."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        stdin, sys.stdin = sys.stdin, io.StringIO()
        try:
            yield
        finally:
            sys.stdin = stdin


def _silence_trackers(
    hook: Callable[[threading.ExceptHookArgs], object],
) -> Callable[[threading.ExceptHookArgs], object]:
    """No traceback of a tracker's own thread; the next call to that tracker raises its error."""

    def heard(found: threading.ExceptHookArgs) -> None:
        if type(found.thread).__module__.partition(".")[0] not in KINDS:
            hook(found)

    return heard


# ``metrics.jsonl``: one JSON object per update, truncated to the checkpoint on resume.


class MetricsLog:
    """Append-only JSON lines, each with its ``step``; trackers get the same rows."""

    def __init__(
        self, path: Path, *, writes: bool = True, trackers: Trackers | None = None
    ) -> None:
        self.path = path
        self.writes = writes  # one process does
        self.trackers = trackers or Trackers()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        if self.writes:
            with translate_os_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(row), allow_nan=False) + "\n")
            self.trackers.log(row)

    def sync(self) -> None:
        """Make the rows so far durable, before a checkpoint that stands on them is."""
        if self.writes and self.path.exists():
            with translate_os_errors(self.path):
                sync_file(self.path)

    def keep_until(self, step: int) -> None:
        """Drop rows after ``step``: a resumed run writes them again."""
        if not self.writes:
            return
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        if self.path.exists():
            text = "".join(json.dumps(row) + "\n" for row in kept)
            write_atomically(self.path, text.encode())
        self.trackers.start(kept, seen=max((row["step"] for row in rows), default=0))

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows; a line torn by a crash, or that is no row, is ignored."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and type(row.get("step")) is int:
                    rows.append(row)
        return rows
