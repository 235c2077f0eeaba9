"""Names of files, and crash-safe writing: temporary name, fsync, rename, fsync.

A temporary name is one process's alone, and locked while that process writes there.  What bears one
and is not locked is of a process that was killed, and is removed when the same is written again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from llmrec_cli.errors import ArtefactError, MachineError

# Names of artefacts: each is written here and nowhere else (of a prepared folder's tables:
# ``data.schema``; of its folder: ``config.recipe``).
MANIFEST_FILE: Final = "manifest.json"  # of a run and of a prepared folder
RECIPE_FILE: Final = "recipe.toml"  # of a run: the recipe, resolved
METRICS_FILE: Final = "metrics.jsonl"  # a line per update
NONFINITE_FILE: Final = "nonfinite.jsonl"  # updates that were left out, and their rows
TRACKERS_FILE: Final = "trackers.json"  # the run's ids in trackers that go on
CHECKPOINTS_FOLDER: Final = "checkpoints"
MODEL_FOLDER: Final = "model"  # the result: all weights
ADAPTER_FOLDER: Final = "adapter"  # the result: LoRA's weights alone
REFERENCE_FOLDER: Final = "reference"  # stored log-probabilities
NEGATIVES_FOLDER: Final = "negatives"  # mined answers
PREDICTIONS_FILE: Final = "predictions.parquet"
PAIRS_FILE: Final = "pairs.parquet"
REPORT_FILE: Final = "report.json"
BASE_FOLDER: Final = "base"  # of an experiment: the backbone that was made from its catalogue
SCORES_FOLDER: Final = "scores"  # of an experiment: item scores of conventional models
PAGE_FILE: Final = "report.html"  # of an experiment, as is the next
COMPARISON_FILE: Final = "comparison.json"
FACTS_FILE: Final = "facts.json"  # what stored tensors depend on, beside them
HASHES_FILE: Final = "files.json"  # SHA-256 of a folder's other files
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)$")
_MACHINE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_EXISTS = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # of a rename: something is there


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
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
    with translate_os_errors(path):
        remove_leftovers(path)
        temporary, opened = _make_temporary_file(path)
        try:
            with opened as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
                temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process has."""
    return path.with_name(f".{path.name}.{_MACHINE}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A new folder under a temporary name beside ``folder``; gone at the end if it has it still."""
    temporary, descriptor = _make_temporary_folder(folder)
    try:
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def _make_temporary_file(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = temporary_name(path)
        stream = temporary.open("xb")
        if _lock_open(stream.fileno()):
            return temporary, stream
        stream.close()


def _make_temporary_folder(folder: Path) -> tuple[Path, int]:
    while True:
        temporary = temporary_name(folder)
        temporary.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError):  # taken for a leftover
            descriptor = os.open(temporary, os.O_RDONLY)
            if _lock_open(descriptor):
                return temporary, descriptor
            os.close(descriptor)


def remove_leftovers(path: Path, *, claimed: bool = False) -> None:
    """Remove what killed processes left behind when they wrote ``path``.

    Args:
        claimed: the caller keeps every other process from writing it; otherwise what is of another
            machine is left alone, whose locks may not be seen here.
    """
    name = re.escape(path.name)
    ours = re.compile(rf"\.{name}\.(?:([0-9a-f]{{8}})-[0-9a-f]{{8}}\.tmp|(?:old\.)?tmp|partial)")
    with contextlib.suppress(OSError):
        for found in os.listdir(path.parent):
            match = ours.fullmatch(found)
            if match and (claimed or match[1] == _MACHINE):
                _remove_leftover(path.with_name(found), claimed)


def _remove_leftover(path: Path, claimed: bool) -> None:
    """Remove a file or folder, unless a living process writes there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not _try_lock(descriptor, claimed):
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int, otherwise: bool) -> bool:
    """Whether no process holds what is open, which this one holds then.

    Args:
        otherwise: what to say where there are no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return otherwise
    return True


def _lock_open(descriptor: int) -> bool:
    """Lock what this process writes until it is closed; False: another one removes it, which came
    before the lock and took it for a leftover."""
    # Where there are no locks, nobody takes it for a leftover either.
    return _try_lock(descriptor, otherwise=True) and os.fstat(descriptor).st_nlink > 0


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    write_atomically(path, _encode_json(value))


def hash_json(value: Any) -> str:
    """SHA-256 of the file that ``write_json`` makes of a value."""
    return hashlib.sha256(_encode_json(value)).hexdigest()


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write torch tensors into a file of a folder that ``write_folder`` fills.

    Raises:
        MachineError: disk full, no permission.
    """
    from safetensors.torch import save_file

    with translate_os_errors(path):
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
def translate_tensor_errors(path: Path) -> Iterator[None]:
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


def write_folder(
    folder: Path, fill: Callable[[Path], None], *, hashes: bool = True, replaces: bool = True
) -> None:
    """Create ``folder`` whole or not at all; its files' SHA-256 stand in ``files.json``.

    ``fill(temporary)`` writes the files.  An older folder of that name is replaced.  Modes follow
    the umask, whatever the libraries that write choose.

    Args:
        hashes: off for a folder that is to hold nothing but what was filled in.
        replaces: off: what lies there by then and holds something is left as it is.

    Raises:
        MachineError: disk full, no permission.
        ArtefactError: not ``replaces``, and another process wrote there meanwhile.
    """
    with translate_os_errors(folder):
        remove_leftovers(folder)
        with temporary_folder(folder) as temporary:
            fill(temporary)
            if hashes:
                found = {name: hash_file(temporary / name) for name in _list_files(temporary)}
                write_json(temporary / HASHES_FILE, found)
            follow_umask(temporary)
            for name in _list_files(temporary):
                sync_file(temporary / name)
            sync_folder(temporary)
            retired = temporary_name(folder)
            if replaces and folder.exists():
                folder.rename(retired)  # half of a folder never bears its name
            try:
                publish_folder(temporary, folder)
            except FileExistsError:
                raise ArtefactError(
                    f"{folder}: another process wrote there meanwhile, and nothing is overwritten; "
                    "name another folder"
                ) from None
            shutil.rmtree(retired, ignore_errors=True)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Give a whole folder its name, which nobody may have; an empty folder has none.

    Raises:
        FileExistsError: something has that name.
    """
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in _EXISTS:
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder)) from error
    sync_folder(folder.parent)


def follow_umask(folder: Path) -> None:
    """Give what lies in a new folder the mode that the folder has: 0777 without the umask.

    safetensors writes files of mode 0600, which nobody else in the group can read.
    """
    allowed = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        kinds = 0o777 if path.is_dir() else 0o666  # nothing that is written here is a program
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode & ~kinds | allowed & kinds
        if wanted != mode:
            path.chmod(wanted)


def check_folder(folder: Path) -> None:
    """Compare every file with its recorded SHA-256.

    Raises:
        ArtefactError: a file is missing, added, changed or a link; the message names it.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ArtefactError(f"{path}: a link, which llmrec never writes; remove it")
    recorded = read_json(folder / HASHES_FILE)
    if not isinstance(recorded, dict) or not _is_as_written(
        (folder / HASHES_FILE).read_bytes(), recorded
    ):
        raise ArtefactError(f"{folder / HASHES_FILE}: damaged: not as it was written")
    present = set(_list_files(folder)) - {HASHES_FILE}
    for name in sorted(set(recorded) | present):
        if name not in present:
            raise ArtefactError(f"{folder / name}: missing")
        if name not in recorded:
            raise ArtefactError(f"{folder / name}: not written by llmrec; remove it")
        if hash_file(folder / name) != recorded[name]:
            raise ArtefactError(f"{folder / name}: damaged: its SHA-256 is not the recorded one")


def hash_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_as_written(written: bytes, value: Any) -> bool:
    """Whether the bytes are those that ``write_json`` gives, which refuses what Python reads."""
    try:
        return written == _encode_json(value)
    except ValueError:
        return False


def _encode_json(value: Any) -> bytes:
    """UTF-8; of a file name that is none, the bytes become the escapes that JSON has for them."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")


def _list_files(folder: Path) -> list[str]:
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
