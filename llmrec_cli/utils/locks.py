"""File locks: only one process at a time writes a folder.

A lock is on a file beside the folder.  The system releases it when its process ends,
however that ends; the file stays, and says who holds it.  Whoever comes second waits and uses what
the first one made, or is refused by name.  Reading a finished folder needs no lock.

Where a file system has no such locks, filelock takes the file's existence for one (a soft lock).  A
dead process's is recognised on its own machine; on another one the file has to be removed by hand.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from filelock import FileLock, SoftFileLock, Timeout

from llmrec_cli.errors import ArtefactError, UserError, belongs_to
from llmrec_cli.utils.files import (
    CHECKPOINTS_FOLDER,
    METRICS_FILE,
    remove_leftovers,
    translate_os_errors,
)

TRAINED: Final = (METRICS_FILE, CHECKPOINTS_FOLDER)  # one of them is there once training has begun
_MOMENT: Final = 1.0  # seconds of waiting, before it is said for whom
_PATIENCE: Final = 10.0  # seconds of waiting, before a run's folder is given up
_SLICE: Final = 0.2  # seconds between two looks at what else may end the waiting
_TRIES: Final = 10  # to make a folder that somebody else takes back at the same moment
_NOTE: Final = re.compile(r"(\d+) on ([\w.-]+)")

Say = Callable[[str], object]


@contextmanager
def roll_back(folder: Path, kept: bool) -> Iterator[None]:
    """Around the work in a run's folder: input that turns out to be wrong before anything was
    trained leaves no folder behind, whose name would be taken."""
    try:
        yield
    except UserError:
        if not kept and not any((folder / name).exists() for name in TRAINED):
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder.

    Raises:
        ArtefactError: another one has it, and kept it for ten seconds.
        MachineError: the disk refuses.
    """

    def refuse(holder: str) -> NoReturn:
        raise ArtefactError(
            f"{folder}: another llmrec is working in it ({holder}); wait for it, or choose another "
            "name (name=...)"
        )

    with _hold_lock(lock_path(folder), _PATIENCE, refuse):
        try:
            yield
        except Exception as error:
            belongs_to(error, folder)
            raise


@contextmanager
def lock_evaluation(folder: Path, split: str) -> Iterator[None]:
    """Keep other evaluations of a run on a split away, whose files would mix with these.

    Raises:
        ArtefactError: another one is at work, and was for ten seconds.
        MachineError: the disk refuses.
    """

    def refuse(holder: str) -> NoReturn:
        raise ArtefactError(
            f"{folder}: another llmrec is evaluating it on {split} ({holder}); wait for it"
        )

    with _hold_lock(folder.with_name(f".{folder.name}.eval-{split}.lock"), _PATIENCE, refuse):
        yield


@contextmanager
def lock_download(folder: Path) -> Iterator[None]:
    """Keep another download out of a folder.

    Raises:
        ArtefactError: another one is at work.
        MachineError: the disk refuses.
    """

    def refuse(holder: str) -> NoReturn:
        raise ArtefactError(f"{folder}: another download is at work there ({holder}); wait for it")

    with _hold_lock(folder / ".downloads.lock", _MOMENT, refuse):
        yield


@contextmanager
def lock_to_make(folder: Path, say: Say) -> Iterator[None]:
    """Make a folder that others may want to make too, alone; wait for whoever makes it now.

    Look inside the block whether the folder is there by now.  What killed processes left of it is
    removed first; after an error, the lock's file and the folders made for it are gone as well.

    Args:
        say: told after a moment which process is waited for.

    Raises:
        MachineError: the disk refuses.
    """
    lock = lock_path(folder)
    missing = [parent for parent in folder.parents if not parent.exists()]  # the innermost first
    try:
        with wait_for_lock(lock, folder, say):
            try:
                remove_leftovers(folder, claimed=True)
                yield
            except BaseException:
                with suppress(OSError):  # who waits for it notices, and makes another
                    lock.unlink()
                raise
    except BaseException:
        with suppress(OSError):  # folders that hold something stay
            for parent in missing:
                parent.rmdir()
        raise


@contextmanager
def wait_for_lock(
    lock: Path, what: Path, say: Say, check: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold a lock; wait for whoever holds it, for as long as it takes.

    Args:
        what: the folder that is waited for.
        say: told after a moment which process is waited for.
        check: called while waiting; what it raises ends that.

    Raises:
        MachineError: the disk refuses.
    """

    def busy(holder: str) -> None:
        if holder != f"process {_describe_process()}":  # another thread
            say(f"{what}: waiting for {holder}, which works on it")

    with _hold_lock(lock, _MOMENT, busy, check):
        yield


def lock_path(folder: Path) -> Path:
    """The file whose lock keeps other processes out of a folder."""
    return folder.with_name(f".{folder.name}.lock")


def is_held(lock: Path) -> bool:
    """Whether a living process holds a lock."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def _hold_lock(
    path: Path, patience: float, busy: Say, check: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold a lock, and note in its file who does.

    Args:
        busy: called with the holder after ``patience`` seconds of waiting, once; may raise.
        check: called again and again while waiting; may raise.
    """
    lock = _acquire_lock(path, patience, busy, check)
    try:
        if not isinstance(lock, SoftFileLock):  # whose file says so itself
            with suppress(OSError):  # a disk that is full
                path.write_text(_describe_process(), encoding="utf-8")
        yield
    finally:
        lock.release()


def _acquire_lock(
    path: Path, patience: float, busy: Say, check: Callable[[], object]
) -> FileLock | SoftFileLock:
    lock, begun, told = FileLock(path), time.monotonic(), False
    while True:
        with translate_os_errors(path):
            _make_folder(path.parent)
            with suppress(Timeout, FileNotFoundError):  # held; or its folder was taken back
                lock.acquire(timeout=_SLICE)
                return lock
        check()
        if not told and time.monotonic() - begun >= patience:
            told = True
            busy(_read_holder(path))


def _make_folder(folder: Path) -> None:
    """Make a folder that another process may be taking back, with the folders above it."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError, FileExistsError):  # one of them went in between
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


def _describe_process() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _read_holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        note = _NOTE.fullmatch(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        note = None
    return f"process {note[1]} on {note[2]}" if note else "another process"
