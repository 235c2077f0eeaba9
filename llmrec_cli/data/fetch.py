"""One file from the web, whole or not at all: resumed, counted, hashed, renamed when complete.

What arrives is kept in ``.NAME.part``; ``.NAME.part.json`` says of which version of the file it is.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmrec_cli.data.web import Answer, Broken, Gone, Whole, ask
from llmrec_cli.errors import MachineError
from llmrec_cli.files import machine_errors, sha256, sync_file, sync_folder, write_json

ATTEMPTS: Final = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second one; then twice as long each time
LONGEST_PAUSE: Final = 60.0
_GZIP: Final = b"\x1f\x8b"

Track = Callable[[int, int | None], AbstractContextManager[Callable[[int], object]]]
"""``track(done, total)``: a context that is told how many bytes arrive; None: total unknown."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file."""

    path: Path
    url: str
    bytes: int
    sha256: str  # hexadecimal


def fetch(
    url: str,
    path: Path,
    *,
    expected: str | None = None,
    say: Callable[[str], object] = lambda text: None,
    track: Track = lambda done, total: nullcontext(lambda n: None),
) -> Fetched:
    """Bring the file behind ``url`` to ``path``; go on with what an earlier try has left.

    Args:
        url: http or https.
        expected: SHA-256 of the file, where known; a host's own is checked in any case.
        say: told of every try that failed.
        track: told of every byte.

    Raises:
        Gone: the host does not have it, or is not to be reached, or never begins.
        MachineError: the connection keeps breaking (what arrived is kept), the disk refuses, or
            what arrived is not what the host or ``expected`` promises.
    """
    part = _Part(path)
    fruitless, furthest = 0, part.size
    while True:
        try:
            promised = _receive(url, part, track)
        except Broken as broken:
            fruitless = 0 if part.size > furthest else fruitless + 1
            furthest = max(furthest, part.size)
            if fruitless >= ATTEMPTS:
                raise _given_up(url, broken, part) from None
            say(f"{path.name}: {broken}; trying again")
            asked = PAUSE * 2**fruitless if broken.pause is None else broken.pause
            time.sleep(min(LONGEST_PAUSE, asked))
        else:
            return part.complete(url, [digest for digest in (expected, promised) if digest])


class _Part:
    """What has arrived so far, and of which version of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.with_name(f".{path.name}.part")
        self.note = path.with_name(f".{path.name}.part.json")

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.is_file() else 0

    def version(self, url: str) -> Mapping[str, str]:
        """The version of the file at ``url`` that has begun to arrive; empty: none."""
        try:
            note = json.loads(self.note.read_bytes())
            version = note["version"] if note["url"] == url else {}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        known = {key: version.get(key) for key in ("etag", "modified")}
        return {key: value for key, value in known.items() if isinstance(value, str)}

    def begin(self, url: str, version: Mapping[str, str]) -> None:
        """Start from nothing."""
        with machine_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_bytes(b"")
        write_json(self.note, {"url": url, "version": dict(version)})

    def append(self, answer: Answer, track: Track) -> None:
        """Write what arrives; the network's errors are not the disk's."""
        with (
            machine_errors(self.path),
            self.file.open("ab") as out,
            track(answer.start, answer.total) as advance,
        ):
            while block := answer.read():
                out.write(block)
                out.flush()
                advance(len(block))

    def discard(self) -> None:
        """Forget what has arrived."""
        self.file.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def complete(self, url: str, expected: Sequence[str]) -> Fetched:
        """Check the whole, and give it its name."""
        size, digest = self.size, sha256(self.file)
        wrong = next((other for other in expected if other != digest), None)
        if wrong is not None:
            self.discard()
            raise MachineError(
                f"{url}: its SHA-256 is {digest}, expected {wrong}: damaged on the way, or another "
                "file by now; nothing is kept"
            )
        if self.path.suffix == ".gz" and not _begins(self.file, _GZIP):
            self.discard()
            raise Gone("what it sends is not a gzip file")
        with machine_errors(self.path):
            sync_file(self.file)
            self.file.replace(self.path)
            self.note.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        return Fetched(self.path, url, size, digest)


def _receive(url: str, part: _Part, track: Track) -> str | None:
    """One try; returns the SHA-256 that the host promises, if it does.

    Raises:
        Gone, Broken, MachineError: as ``fetch``.
    """
    try:
        with ask(url, part.size, part.version(url)) as answer:
            if not answer.start:
                part.begin(url, answer.version)
            _require_space(part, answer.total)
            part.append(answer, track)
    except Whole:
        return None
    except Broken as broken:
        if broken.anew:
            part.discard()
        raise
    if answer.total is not None and part.size != answer.total:
        raise Broken(f"the connection ended after {part.size:,} of {answer.total:,} bytes")
    return answer.promised


def _require_space(part: _Part, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - part.size > free:
        raise MachineError(
            f"{part.path}: needs {(total - part.size) / 1e9:.1f} GB, and the disk has "
            f"{free / 1e9:.1f} GB left"
        )


def _given_up(url: str, broken: Broken, part: _Part) -> Exception:
    """Another host may serve where this one never began."""
    again = f"{broken}, {ATTEMPTS} times in a row"
    if not part.size:
        return Gone(again)
    return MachineError(
        f"{url}: {again}; what arrived is kept, and the same command goes on from there"
    )


def _begins(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic
