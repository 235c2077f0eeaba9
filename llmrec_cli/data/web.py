"""Asking a web server for a file, or for the rest of one (RFC 9110: ``Range`` with ``If-Range``).

Redirects lead to http or https and never from https to http.  Proxies are those of the environment.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import IO, Final
from urllib.parse import urlsplit

TIMEOUT: Final = 60.0  # seconds without a byte
BLOCK: Final = 1 << 18
BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
_HEADERS: Final = {"User-Agent": "llmrec", "Accept-Encoding": "identity"}
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


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
            raise Broken(f"the connection broke ({_reason(error)})") from None


@contextmanager
def ask(url: str, have: int = 0, version: Mapping[str, str] | None = None) -> Iterator[Answer]:
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
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - see locations.mirrored
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, have) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreached(error) from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise Gone("it answers with a web page instead of the file")
        start, total = _place(response, have, known)
        promised = redirects.promised or _promised(response.headers)
        yield Answer(start, total, _version(response.headers), promised, response)


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
        self.promised = self.promised or _promised(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _promised(headers: Message) -> str | None:
    digest = headers.get("X-Linked-Etag", "").strip('"').lower()
    return digest if _SHA256.fullmatch(digest) else None


def _version(headers: Message) -> dict[str, str]:
    """What a later try can name; a weak ETag promises too little (RFC 9110, 13.1.5)."""
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified")
    strong = {"etag": etag} if etag.startswith('"') else {}
    return strong | ({"modified": modified} if modified else {})


def _place(
    response: http.client.HTTPResponse, have: int, known: Mapping[str, str]
) -> tuple[int, int | None]:
    """Where what arrives begins, and how long the whole file is."""
    length = response.headers.get("Content-Length", "")
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0, int(length) if length.isdecimal() else None
    place = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    now = _version(response.headers)
    same = all(known.get(key, value) == value for key, value in now.items())
    if place is None or int(place[1]) != have or not same:
        raise Broken("the host goes on with another file, or elsewhere", anew=True)
    return have, int(place[2]) if place[2].isdecimal() else None


def _refusal(error: urllib.error.HTTPError, have: int) -> Exception:
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


def _unreached(error: Exception) -> Exception:
    """No connection at all is no reason to wait; one that breaks is."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    final = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
    reason = _reason(cause)
    return Gone(reason) if isinstance(cause, final) else Broken(f"no answer ({reason})")


def _reason(error: object) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"silent for {TIMEOUT:.0f} seconds"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words or type(error).__name__
