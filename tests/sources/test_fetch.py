"""Fetching one file from a host on the loopback interface that misbehaves."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import ssl
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPMessage
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request

import pytest

from llmrec_cli.errors import MachineError
from llmrec_cli.sources import download
from llmrec_cli.sources.download import ATTEMPTS, Gone, _classify_failure, _Redirects, fetch_file
from tests.sources.web_server import Host, Served, hosting

BODY = bytes(range(256)) * 40
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with hosting() as running:
        running.files["/x"] = Served(BODY)
        yield running


def ranges(host: Host) -> list[str | None]:
    return [asked for _, asked in host.asked]


def test_a_file_arrives_whole_hashed_and_alone(host: Host, tmp_path: Path) -> None:
    moved: list[int] = []

    @contextmanager
    def track(done: int, total: int | None) -> Iterator[Callable[[int], None]]:
        assert (done, total) == (0, len(BODY))
        yield moved.append

    done = fetch_file(host.url("/x"), tmp_path / "a" / "x", expected=DIGEST, track=track)
    assert done.path.read_bytes() == BODY
    assert (done.bytes, done.sha256) == (len(BODY), DIGEST)
    assert sum(moved) == len(BODY)
    assert [path.name for path in done.path.parent.iterdir()] == ["x"]


def test_broken_connections_are_gone_on_with(host: Host, tmp_path: Path) -> None:
    host.files["/x"].cuts = [100, 0, 200]
    said: list[str] = []
    done = fetch_file(host.url("/x"), tmp_path / "x", say=said.append)
    assert done.sha256 == DIGEST
    assert ranges(host) == [None, "bytes=100-", "bytes=100-", "bytes=300-"]
    assert f"ended after 100 of {len(BODY):,} bytes; trying again" in said[0]


def test_what_an_earlier_command_left_is_gone_on_with(host: Host, tmp_path: Path) -> None:
    host.files["/x"].cuts = [5000] + [0] * ATTEMPTS
    with pytest.raises(MachineError, match=r"5,000 of 10,240 bytes, 5 times in a row; what"):
        fetch_file(host.url("/x"), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert (tmp_path / ".x.part").stat().st_size == 5000
    host.asked.clear()
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST
    assert ranges(host) == ["bytes=5000-"]


def test_progress_however_slow_is_never_given_up(host: Host, tmp_path: Path) -> None:
    host.files["/x"].cuts = [10] * (3 * ATTEMPTS)
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST


def test_another_version_of_the_file_begins_anew(host: Host, tmp_path: Path) -> None:
    """The host answers If-Range with the whole: nothing of the old version is kept."""
    other = BODY[::-1]
    host.files["/x"].cuts = [6000] + [0] * ATTEMPTS
    with pytest.raises(MachineError):
        fetch_file(host.url("/x"), tmp_path / "x")
    host.files["/x"] = Served(other, etag='"two"')
    assert fetch_file(host.url("/x"), tmp_path / "x").path.read_bytes() == other


@pytest.mark.parametrize(
    "lie",
    [
        {"ETag": '"two"'},
        {"Content-Range": "bytes 0-10239/10240"},
        {"Content-Range": "nonsense"},
    ],
)
def test_a_range_that_does_not_fit_is_not_appended(
    lie: dict[str, str], host: Host, tmp_path: Path
) -> None:
    host.files["/x"].cuts, host.files["/x"].lies = [4000], [lie]
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST
    assert ranges(host) == [None, "bytes=4000-", None]


@pytest.mark.parametrize(
    ("etag", "modified", "asked"),
    [
        (None, "Thu, 18 Feb 2016 00:00:00 GMT", "bytes=7-"),
        ('W/"weak"', None, None),
        (None, None, None),
    ],
)
def test_only_a_strong_mark_of_the_version_lets_it_go_on(
    etag: str | None, modified: str | None, asked: str | None, host: Host, tmp_path: Path
) -> None:
    host.files["/x"] = Served(BODY, etag=etag, modified=modified, cuts=[7])
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST
    assert ranges(host) == [None, asked]


def test_a_host_without_ranges_sends_all_again(host: Host, tmp_path: Path) -> None:
    host.files["/x"].ranges, host.files["/x"].cuts = False, [9000, 100]
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST


def test_killed_before_the_rename_asks_for_nothing_more(host: Host, tmp_path: Path) -> None:
    host.files["/x"].cuts = [5] + [0] * ATTEMPTS
    with pytest.raises(MachineError):
        fetch_file(host.url("/x"), tmp_path / "x")
    (tmp_path / ".x.part").write_bytes(BODY)
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST
    assert ranges(host)[-1] == f"bytes={len(BODY)}-"


def test_longer_than_the_file_is_thrown_away(host: Host, tmp_path: Path) -> None:
    host.files["/x"].cuts = [5] + [0] * ATTEMPTS
    with pytest.raises(MachineError):
        fetch_file(host.url("/x"), tmp_path / "x")
    (tmp_path / ".x.part").write_bytes(BODY + b"more")
    host.files["/x"].statuses = [416]
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST


def test_a_busy_host_is_asked_again_and_then_given_up(host: Host, tmp_path: Path) -> None:
    host.files["/x"].statuses = [503, 429, 500]
    assert fetch_file(host.url("/x"), tmp_path / "x").sha256 == DIGEST
    host.files["/x"].statuses = [503] * ATTEMPTS
    with pytest.raises(Gone, match=r"503 Service Unavailable, 5 times in a row"):
        fetch_file(host.url("/x"), tmp_path / "y")


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_host_that_refuses_is_not_asked_again(status: int, host: Host, tmp_path: Path) -> None:
    host.files["/x"].statuses = [status]
    with pytest.raises(Gone, match=str(status)):
        fetch_file(host.url("/x"), tmp_path / "x")
    assert len(host.asked) == 1
    with pytest.raises(Gone, match="404 Not Found"):
        fetch_file(host.url("/nothing"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_pages_and_other_files_in_its_place_are_refused(host: Host, tmp_path: Path) -> None:
    host.files["/x"].headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(Gone, match="web page"):
        fetch_file(host.url("/x"), tmp_path / "x")
    host.files["/y"] = Served(b"we have moved")
    with pytest.raises(Gone, match="not a gzip file"):
        fetch_file(host.url("/y"), tmp_path / "y.gz")
    assert list(tmp_path.iterdir()) == []
    host.files["/z"] = Served(gzip.compress(BODY))
    assert fetch_file(host.url("/z"), tmp_path / "z.gz").path.exists()


def test_a_wrong_checksum_keeps_nothing(host: Host, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=f"is {DIGEST}, expected {'0' * 64}"):
        fetch_file(host.url("/x"), tmp_path / "x", expected="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_the_hosts_own_checksum_is_checked_behind_its_redirect(host: Host, tmp_path: Path) -> None:
    host.redirects["/hub"] = "/x"
    host.redirect_headers = {"X-Linked-Etag": f'"{DIGEST}"'}
    assert fetch_file(host.url("/hub"), tmp_path / "x").sha256 == DIGEST
    host.redirect_headers = {"X-Linked-Etag": f'"{"0" * 64}"'}
    with pytest.raises(MachineError, match="expected 0000"):
        fetch_file(host.url("/hub"), tmp_path / "y")


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/x", "file:///etc/hostname"])
def test_redirects_lead_to_the_web_only(to: str, host: Host, tmp_path: Path) -> None:
    host.redirects["/away"] = to
    with pytest.raises(Gone):
        fetch_file(host.url("/away"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_no_redirect_takes_encryption_off() -> None:
    handler = _Redirects()
    secure, plain = Request("https://a.example/x"), Request("http://a.example/x")

    def follow(request: Request, to: str) -> object:
        return handler.redirect_request(request, BytesIO(), 302, "", HTTPMessage(), to)

    with pytest.raises(Gone, match="from https to http"):
        follow(secure, "http://b.example/x")
    assert follow(secure, "https://b.example/x")
    assert follow(plain, "https://b.example/x")
    assert follow(plain, "http://b.example/x")


def test_a_loop_of_redirects_ends(host: Host, tmp_path: Path) -> None:
    host.redirects["/loop"] = "/loop"
    with pytest.raises(Gone, match="infinite loop"):
        fetch_file(host.url("/loop"), tmp_path / "x")


def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    with hosting() as host:
        address = host.url("/x")
    with pytest.raises(Gone, match="Connection refused"):
        fetch_file(address, tmp_path / "x")


def test_a_certificate_that_is_not_accepted_is_told_in_words() -> None:
    cause = ssl.SSLCertVerificationError(1, "x")
    cause.verify_message = "certificate has expired"
    told = _classify_failure(urllib.error.URLError(cause))
    assert isinstance(told, Gone)
    assert str(told) == "its certificate is not accepted: certificate has expired"


def test_a_full_disk_is_told_before_and_while_it_fills(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(MachineError, match=r"needs 0\.0 GB, and the disk has 0\.0 GB left"):
            fetch_file(host.url("/x"), tmp_path / "x")
    (tmp_path / ".full.part").symlink_to("/dev/full")
    with pytest.raises(MachineError, match=r"full: cannot be written: No space left on device"):
        fetch_file(host.url("/x"), tmp_path / "full")


def test_the_environments_proxy_is_asked(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", host.address)
    host.files["http://far.example/x"] = Served(BODY)  # what a proxy is asked for
    assert fetch_file("http://far.example/x", tmp_path / "x").sha256 == DIGEST
