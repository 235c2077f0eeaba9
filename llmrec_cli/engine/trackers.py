"""A run's metrics rows in the trackers that its recipe names.

Offline, a tracker's files are made from ``metrics.jsonl``: a resumed run makes them again from the
rows that its checkpoint stands on, so that no step comes twice.  What cannot be made again (on a
server, in trackio's own home) goes on as the same run, without the steps that it has.

A tracker that fails is left alone from then on; it never ends a training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
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

from llmrec_cli.engine.tracker_kinds import KINDS, Kind, Target
from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.files import TRACKERS_FILE, read_json, write_json
from llmrec_cli.recipe.track import TrackSection

_SILENT: Final = {  # towards the makers of trackers, about a run that is offline
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
_LONGEST: Final = 200  # characters of a failure's message
_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s]*@")


def require(section: TrackSection) -> None:
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
def tracked(
    section: TrackSection, folder: Path, *, writes: bool, say: Callable[[str], object]
) -> Iterator[Trackers]:
    """The trackers of one run, closed at the end however it ends.

    Args:
        folder: of the run: ``.../PROJECT/RUN``.
        writes: one process does; to the others, there are no trackers.

    Raises:
        MachineError, RecipeError: as ``require``, before anything is written.
    """
    require(section)
    trackers = Trackers(section if writes else TrackSection(), folder, say)
    before, threading.excepthook = threading.excepthook, _but_trackers(threading.excepthook)
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
            with self._guarded(name):
                self._open[name] = self._begin(name, seen)
                for row in rows:
                    self._open[name].give(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Give every tracker one row."""
        for name, found in list(self._open.items()):
            with self._guarded(name):
                found.give(row)

    def finish(self) -> None:
        """Let every tracker write what it still holds, and close it."""
        for name, found in list(self._open.items()):
            with self._guarded(name), _muted():
                found.tracker.finish()
                if found.kind.close:
                    found.kind.close()
        self._open.clear()

    def _begin(self, name: str, seen: int) -> _Open:
        kind, online = KINDS[name], self._section.online and KINDS[name].servers
        file = self._folder / TRACKERS_FILE
        known: dict[str, str] = read_json(file) if file.is_file() else {}
        key = f"{name} online" if online else name
        stays = online or kind.files is None  # what it has cannot be made again
        target = Target(
            self._folder,
            project=self._folder.parent.name,
            run=self._folder.name,
            online=online,
            id=known.get(key, uuid.uuid4().hex[:8]),
            goes_on=key in known,
        )
        if kind.files and not online:
            shutil.rmtree(self._folder / kind.files, ignore_errors=True)
        with _surroundings(kind, online=online), _muted():
            tracker = kind.open(target)
            tracker.start()
        if stays:
            given = kind.id_of(tracker) if kind.id_of else target.id
            write_json(file, {**known, key: given})
        self._say(f"{target.run}: also in {name}: {kind.place(target)}")
        return _Open(kind, tracker, has=seen if target.goes_on else 0)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
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
def _surroundings(kind: Kind, *, online: bool) -> Iterator[None]:
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
def _muted() -> Iterator[None]:
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


def _but_trackers(
    hook: Callable[[threading.ExceptHookArgs], object],
) -> Callable[[threading.ExceptHookArgs], object]:
    """No traceback of a tracker's own thread; the next call to that tracker raises its error."""

    def heard(found: threading.ExceptHookArgs) -> None:
        if type(found.thread).__module__.partition(".")[0] not in KINDS:
            hook(found)

    return heard
