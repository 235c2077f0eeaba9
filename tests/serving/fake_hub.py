"""The hub's interface for models, on this machine: what its own client asks when it uploads."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """Repositories as their visibility; ``commits`` holds the files that were uploaded."""

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refuse: int | None = None  # status of every answer
    says: str = ""  # with it

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(path)
        if self.refuse:
            return self.refuse, {"error": self.says}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            private = wanted.get("private", wanted.get("visibility") == "private")
            known = name in self.private
            self.private.setdefault(name, private)
            return 409 if known else 200, {"url": f"{self.address}/{name}", "name": name}
        if path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            return 200, {"files": modes}
        if "/commit/main" in path:
            lines = [json.loads(line) for line in body.decode().splitlines()]
            uploaded = [line["value"] for line in lines if line["key"] == "file"]
            self.commits.append({f["path"]: base64.b64decode(f["content"]) for f in uploaded})
            commit = 40 * "a"
            url = f"{self.address}/{_repository(path)}/commit/{commit}"
            return 200, {"commitUrl": url, "commitOid": commit}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = _repository(path)
        if name in self.private:
            found = {"id": name, "private": self.private[name], "sha": 40 * "a", "siblings": []}
            return 200, found
        return 404, {"error": "Repository not found"}


def _repository(path: str) -> str:
    return "/".join(path.split("?")[0].removeprefix("/api/models/").split("/")[:2])


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on a loopback port, while the block runs."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, found = hub.answer(self.path, body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *words: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
