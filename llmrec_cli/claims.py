"""A run's folder while a run works in it: nobody else may, and wrong input leaves none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from llmrec_cli.errors import ArtefactError, UserError, belongs_to

TRAINED: Final = ("metrics.jsonl", "checkpoints")  # one of them is there once training has begun


@contextmanager
def taken_back(folder: Path, kept: bool) -> Iterator[None]:
    """Around the work in a run's folder: input that turns out to be wrong before anything was
    trained leaves no folder behind, whose name would be taken."""
    try:
        yield
    except UserError:
        if not kept and not any((folder / name).exists() for name in TRAINED):
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a folder; a dead one's claim is void.

    Raises:
        ArtefactError: another one has it, and kept it for ten seconds.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=10)
    try:
        lock.acquire()
    except Timeout:
        raise ArtefactError(
            f"{folder}: another llmrec is working in it; wait for it, or choose another name "
            "(name=...)"
        ) from None
    try:
        yield
    except Exception as error:
        belongs_to(error, folder)
        raise
    finally:
        lock.release()
