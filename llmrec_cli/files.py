"""Writing that survives a crash: temporary name in the same folder, fsync, rename, fsync."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmrec_cli.errors import ArtefactError, MachineError

HASHES = "files.json"
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)$")


@contextlib.contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error into a MachineError that names the path.

    Libraries written in Rust (safetensors, tokenizers) raise exceptions of their own for these.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise MachineError(f"{path}: cannot be written: {reason}") from error
    except Exception as error:
        if (number := _RUST_OS_ERROR.search(str(error))) is None:
            raise
        reason = os.strerror(int(number[1]))
        raise MachineError(f"{path}: cannot be written: {reason}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing.

    Raises:
        MachineError: disk full, no permission.
    """
    create_atomically(path, lambda stream: stream.write(content))


def create_atomically(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let ``fill`` write into an open file that appears at ``path`` complete or not at all.

    Raises:
        MachineError: disk full, no permission.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with machine_errors(path):
        try:
            with temporary.open("wb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    write_atomically(path, _json_bytes(value))


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write torch tensors into a file of a folder that ``write_folder`` fills.

    Raises:
        MachineError: disk full, no permission.
    """
    from safetensors.torch import save_file

    with machine_errors(path):
        save_file(dict(tensors), path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtefactError: missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ArtefactError(f"{path}: not valid JSON: {error}") from None
    except RecursionError:
        raise ArtefactError(f"{path}: not valid JSON: nested too deeply") from None


@contextlib.contextmanager
def tensors_of(path: Path) -> Iterator[None]:
    """Around reading tensors that a run stored, and putting them where they belong.

    Raises:
        ArtefactError: no safetensors file, or tensors of other names, shapes or kinds.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ArtefactError(f"{path}: not the tensors that were stored here: {reason}") from error


def write_folder(folder: Path, fill: Callable[[Path], None], *, hashes: bool = True) -> None:
    """Create ``folder`` whole or not at all; its files' SHA-256 stand in ``files.json``.

    ``fill(temporary)`` writes the files.  An older folder of that name is replaced.

    Args:
        hashes: off for a folder that is to hold nothing but what was filled in.
    """
    temporary, retired = (folder.with_name(f".{folder.name}.{e}") for e in ("tmp", "old.tmp"))
    with machine_errors(folder):
        for leftover in (temporary, retired):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
            if hashes:
                found = {name: sha256(temporary / name) for name in _names(temporary)}
                write_json(temporary / HASHES, found)
            for name in _names(temporary):
                sync_file(temporary / name)
            sync_folder(temporary)
            if folder.exists():
                folder.rename(retired)  # half of a folder never bears its name
            temporary.replace(folder)
            sync_folder(folder.parent)
            shutil.rmtree(retired, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_folder(folder: Path) -> None:
    """Compare every file with its recorded SHA-256.

    Raises:
        ArtefactError: a file is missing, added, changed or a link; the message names it.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ArtefactError(f"{path}: a link, which llmrec never writes; remove it")
    recorded = read_json(folder / HASHES)
    if not isinstance(recorded, dict) or not _is_ours((folder / HASHES).read_bytes(), recorded):
        raise ArtefactError(f"{folder / HASHES}: damaged: not as it was written")
    present = set(_names(folder)) - {HASHES}
    for name in sorted(set(recorded) | present):
        if name not in present:
            raise ArtefactError(f"{folder / name}: missing")
        if name not in recorded:
            raise ArtefactError(f"{folder / name}: not written by llmrec; remove it")
        if sha256(folder / name) != recorded[name]:
            raise ArtefactError(f"{folder / name}: damaged: its SHA-256 is not the recorded one")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_ours(written: bytes, value: Any) -> bool:
    """Whether the bytes are those that ``write_json`` gives, which refuses what Python reads."""
    try:
        return written == _json_bytes(value)
    except ValueError:
        return False


def _json_bytes(value: Any) -> bytes:
    """UTF-8; of a file name that is none, the bytes become the escapes that JSON has for them."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
