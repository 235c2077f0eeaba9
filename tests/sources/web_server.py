"""A web server on the loopback interface that can misbehave in every way that downloads meet."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Served:
    """A file, and how the next answers go wrong, one after the other."""

    content: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True  # Range is honoured
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes after which an answer breaks
    statuses: list[int] = field(default_factory=list)  # answers before the file itself
    lies: list[dict[str, str]] = field(default_factory=list)  # headers of 206 answers, replaced


@dataclass
class Host:
    """A running server."""

    address: str
    files: dict[str, Served] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    redirect_headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range

    def url(self, path: str) -> str:
        return f"{self.address}{path}"


class _Handler(BaseHTTPRequestHandler):
    host: Host

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.host.asked.append((self.path, self.headers.get("Range")))
        if self.path in self.host.redirects:
            headers = {"Location": self.host.redirects[self.path], **self.host.redirect_headers}
            return self.answer(302, headers, b"")
        served = self.host.files.get(self.path)
        if served is None:
            return self.answer(404, {}, b"")
        if served.statuses:
            return self.answer(served.statuses.pop(0), {"Retry-After": "0"}, b"")
        start, headers = self.place(served)
        if start == len(served.content) and start:
            return self.answer(416, {"Content-Range": f"bytes */{start}"}, b"")
        if start and served.lies:
            headers |= served.lies.pop(0)
        cut = served.cuts.pop(0) if served.cuts else None
        self.answer(206 if start else 200, headers, served.content[start:], cut)

    def place(self, served: Served) -> tuple[int, dict[str, str]]:
        headers = dict(served.headers)
        headers |= {"ETag": served.etag} if served.etag else {}
        headers |= {"Last-Modified": served.modified} if served.modified else {}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        assert not asked or self.headers["If-Range"], "asked to go on, whatever the file is by now"
        if not asked or not served.ranges:
            return 0, headers
        if self.headers["If-Range"] not in (served.etag, served.modified):
            return 0, headers
        start, end = int(asked[1]), len(served.content)
        return start, headers | {"Content-Range": f"bytes {start}-{end - 1}/{end}"}

    def answer(
        self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


@contextmanager
def hosting() -> Iterator[Host]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    host = Host(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"host": host})
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
