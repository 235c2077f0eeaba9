"""One file from the web, whole or not at all: resumed, counted, hashed, renamed when complete.

What arrives is kept in ``.NAME.part``; ``.NAME.part.json`` says of which version of the file it is.
A later try asks for the rest of that version (RFC 9110: ``Range`` with ``If-Range``).  Redirects
lead to http or https and never from https to http.  Proxies are those of the environment.

pooch and huggingface_hub do not serve here (benchmarks/results/2026-11-30-download.md): neither
keeps what arrived before an interruption.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from llmrec_cli.errors import MachineError
from llmrec_cli.files import machine_errors, sha256, sync_file, sync_folder, write_json

TIMEOUT: Final = 60.0  # seconds without a byte
BLOCK: Final = 1 << 18
BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
_HEADERS: Final = {"User-Agent": "llmrec", "Accept-Encoding": "identity"}
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
ATTEMPTS: Final = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second one; then twice as long each time
LONGEST_PAUSE: Final = 60.0
_GZIP: Final = b"\x1f\x8b"

Track = Callable[[int, int | None], AbstractContextManager[Callable[[int], object]]]
"""``track(done, total)``: a context that is told how many bytes arrive; None: total unknown."""


class Gone(Exception):
    """The host does not have the file, or cannot be reached; the message says why."""


class Broken(Exception):
    """A try that failed and may succeed again."""

    def __init__(self, reason: str, *, pause: float | None = None, anew: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds that the host asks for
        self.anew = anew  # what has arrived is of no use


class Whole(Exception):
    """Nothing is left to ask for."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file."""

    path: Path
    url: str
    bytes: int
    sha256: str  # hexadecimal


def fetch_file(
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
            promised = _receive_rest(url, part, track)
        except Broken as broken:
            fruitless = 0 if part.size > furthest else fruitless + 1
            furthest = max(furthest, part.size)
            if fruitless >= ATTEMPTS:
                raise _give_up(url, broken, part) from None
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

    def read_version(self, url: str) -> Mapping[str, str]:
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
        if self.path.suffix == ".gz" and not _starts_with(self.file, _GZIP):
            self.discard()
            raise Gone("what it sends is not a gzip file")
        with machine_errors(self.path):
            sync_file(self.file)
            self.file.replace(self.path)
            self.note.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        return Fetched(self.path, url, size, digest)


def _receive_rest(url: str, part: _Part, track: Track) -> str | None:
    """One try; returns the SHA-256 that the host promises, if it does.

    Raises:
        Gone, Broken, MachineError: as ``fetch_file``.
    """
    try:
        with open_url(url, part.size, part.read_version(url)) as answer:
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


def _give_up(url: str, broken: Broken, part: _Part) -> Exception:
    """Another host may serve where this one never began."""
    again = f"{broken}, {ATTEMPTS} times in a row"
    if not part.size:
        return Gone(again)
    return MachineError(
        f"{url}: {again}; what arrived is kept, and the same command goes on from there"
    )


def _starts_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic


@dataclass(frozen=True, slots=True)
class Answer:
    """A file, or the rest of one, about to arrive."""

    start: int  # where it begins
    total: int | None  # length of the whole file; None: the host does not say
    version: Mapping[str, str]  # of the file: ``etag`` and ``modified``, where the host sends them
    promised: str | None  # SHA-256 of the whole file, where the host sends it (Hugging Face)
    _stream: http.client.HTTPResponse

    def read(self) -> bytes:
        """The next bytes; none at the end.

        Raises:
            Broken: the connection broke.
        """
        try:
            return self._stream.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"the connection broke ({_describe_failure(error)})") from None


@contextmanager
def open_url(url: str, have: int = 0, version: Mapping[str, str] | None = None) -> Iterator[Answer]:
    """Ask for a file, or for what follows the ``have`` bytes of that ``version`` of it.

    Args:
        url: http or https.

    Raises:
        Gone, Broken, Whole.
    """
    known = version or {}
    headers, validator = dict(_HEADERS), known.get("etag") or known.get("modified")
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    redirects = _Redirects()
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - see locations.mirror_hosts
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _classify_status(error, have) from None
    except (OSError, http.client.HTTPException) as error:
        raise _classify_failure(error) from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise Gone("it answers with a web page instead of the file")
        start, total = _locate_range(response, have, known)
        promised = redirects.promised or _read_digest(response.headers)
        yield Answer(start, total, _read_version(response.headers), promised, response)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, and never from https to http."""

    def __init__(self) -> None:
        self.promised: str | None = None

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to follow with."""
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise Gone(f"it leads from {req.type} to {scheme}, which is refused")
        self.promised = self.promised or _read_digest(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read_digest(headers: Message) -> str | None:
    digest = headers.get("X-Linked-Etag", "").strip('"').lower()
    return digest if _SHA256.fullmatch(digest) else None


def _read_version(headers: Message) -> dict[str, str]:
    """What a later try can name; a weak ETag promises too little (RFC 9110, 13.1.5)."""
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified")
    strong = {"etag": etag} if etag.startswith('"') else {}
    return strong | ({"modified": modified} if modified else {})


def _locate_range(
    response: http.client.HTTPResponse, have: int, known: Mapping[str, str]
) -> tuple[int, int | None]:
    """Where what arrives begins, and how long the whole file is."""
    length = response.headers.get("Content-Length", "")
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0, int(length) if length.isdecimal() else None
    place = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    now = _read_version(response.headers)
    same = all(known.get(key, value) == value for key, value in now.items())
    if place is None or int(place[1]) != have or not same:
        raise Broken("the host goes on with another file, or elsewhere", anew=True)
    return have, int(place[2]) if place[2].isdecimal() else None


def _classify_status(error: urllib.error.HTTPError, have: int) -> Exception:
    said = f"{error.code} {error.reason}"
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        # If-Range held, or the answer were 200: there is no more, or what we have is not theirs.
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return Whole()
        return Broken(said, anew=True)
    if error.code in BUSY:
        pause = error.headers.get("Retry-After", "")
        return Broken(said, pause=float(pause) if pause.isdecimal() else None)
    return Gone(said)


def _classify_failure(error: Exception) -> Exception:
    """No connection at all is no reason to wait; one that breaks is."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    final = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
    reason = _describe_failure(cause)
    return Gone(reason) if isinstance(cause, final) else Broken(f"no answer ({reason})")


def _describe_failure(error: object) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"silent for {TIMEOUT:.0f} seconds"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words or type(error).__name__
