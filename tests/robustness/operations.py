"""Every change that a process makes to files, announced before it happens.

Whoever listens may raise an OSError, or end the process: so each operation of a save can fail in
turn, or be the last one (``tests.robustness.faults``, ``tests.robustness.torture``).
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

Listen = Callable[[str, str], None]
"""Gets the operation's name and the path that it is about to change; may raise an OSError."""

NAMES = {
    "fsync": "fsync",
    "rename": "rename",
    "replace": "rename",
    "mkdir": "mkdir",
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "rmdir",
}
SAVE, OPEN, WRITE = "safetensors", "open", "write"
REFUSALS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES")}


@contextmanager
def announced(listen: Listen) -> Iterator[None]:
    """Within the block ``listen`` hears of every operation of this process."""
    with ExitStack() as stack:
        for function, name in NAMES.items():
            stack.enter_context(_told(os, function, partial(_call, listen, name)))
        for module in (io, builtins):
            stack.enter_context(_told(module, "open", partial(_open, listen)))
        for library, function in _safetensors():
            stack.enter_context(_told(library, function, partial(_save, listen)))
        yield


def _safetensors() -> list[tuple[Any, str]]:
    """Where the library's function is looked up: in itself, and where it was imported from it."""
    found = [(safetensors_torch, "save_file"), (safetensors_numpy, "save_file")]
    transformers = sys.modules.get("transformers.modeling_utils")
    return [*found, (transformers, "safe_save_file")] if transformers else found


def _told(owner: Any, name: str, instead: Any) -> Any:
    return patch.object(owner, name, partial(instead, getattr(owner, name)))


def _call(listen: Listen, name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
    listen(name, _path(args[0]))
    return original(*args, **kwargs)


def _path(named: Any) -> str:
    return f"descriptor {named}" if isinstance(named, int) else os.fsdecode(named)


def _open(
    listen: Listen, original: Any, file: Any, mode: str = "r", *args: Any, **kwargs: Any
) -> Any:
    if not set(mode) & set("wax+"):
        return original(file, mode, *args, **kwargs)
    listen(OPEN, _path(file))
    return _Written(original(file, mode, *args, **kwargs), listen, _path(file))


class _Written:
    """An open file; a write that is refused has written half, as on a disk that is full."""

    def __init__(self, stream: Any, listen: Listen, path: str) -> None:
        self._stream, self._listen, self._path = stream, listen, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, content: Any) -> Any:
        try:
            self._listen(WRITE, self._path)
        except OSError:
            self._stream.write(content[: len(content) // 2])
            raise
        return self._stream.write(content)


def _save(listen: Listen, original: Any, tensors: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        listen(SAVE, _path(file))
    except OSError as error:
        Path(file).write_bytes(b"half of it")
        reason = f"I/O error: {error.strerror} (os error {error.errno})"
        raise SafetensorError(f"Error while serializing: {reason}") from None
    return original(tensors, file, *args, **kwargs)
