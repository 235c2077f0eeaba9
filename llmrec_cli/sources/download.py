"""``llmrec download``: official files from known hosts. A file appears only when complete."""

from __future__ import annotations

import difflib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from email.message import Message
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

import tomli_w

from llmrec_cli.errors import ArtefactError, MachineError, UserError
from llmrec_cli.utils.files import (
    hash_file,
    read_json,
    sync_file,
    sync_folder,
    translate_os_errors,
    write_json,
)
from llmrec_cli.utils.locks import lock_download
from llmrec_cli.utils.progress import Progress

# Where official data sets are: ``locations.toml``.


FILE = Path(__file__).with_name("locations.toml")
KINDS = ("reviews", "full", "meta", "ratings", "splits")


@dataclass(frozen=True, slots=True)
class Host:
    """One place; ``files`` has, by kind, paths below ``base`` with ``{category}`` in them."""

    base: str
    files: Mapping[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """``snap.stanford.edu``."""
        return urlsplit(self.base).hostname or self.base


@dataclass(frozen=True, slots=True)
class SourceGeneration:
    """One release of the Amazon data."""

    name: str  # "amazon2018"
    title: str
    page: str  # the authors' own
    licence: str
    cite: str
    formats: Mapping[str, str]  # kind -> ``data.format`` of a recipe
    categories: tuple[str, ...]
    hosts: tuple[Host, ...]  # the first is asked first
    sha256: Mapping[str, str]  # of some files, by name

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of file that there are."""
        return tuple(kind for kind in KINDS if kind in self.hosts[0].files)


@cache
def load_generations() -> Mapping[str, SourceGeneration]:
    """Every generation by its name."""
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: SourceGeneration(
            name=name,
            **{key: entry[key] for key in ("title", "page", "licence", "cite", "formats")},
            categories=tuple(entry["categories"]),
            hosts=tuple(_parse_host(host) for host in entry["hosts"]),
            sha256=entry.get("sha256", {}),
        )
        for name, entry in table.items()
    }


def find_generation(name: str) -> SourceGeneration:
    """A generation by its name.

    Raises:
        UserError: unknown; the message has the nearest, and all.
    """
    known = load_generations()
    if name not in known:
        hint = _suggest_name(name, known)
        raise UserError(f"{name}: unknown generation, expected one of {', '.join(known)}.{hint}")
    return known[name]


def find_category(name: str) -> tuple[SourceGeneration, str]:
    """Generation and category of ``amazon2018/Gift_Cards``; case and ``-`` for ``_`` are forgiven.

    Raises:
        UserError: unknown; the message has the nearest, or where to find all.
    """
    release, slash, category = name.partition("/")
    generation = find_generation(release)
    by_fold = {_fold_name(known): known for known in generation.categories}
    found = by_fold.get(_fold_name(category))
    if found is None:
        shown = f"{name}: unknown category" if slash else f"{name}: no category"
        near = difflib.get_close_matches(_fold_name(category), by_fold, n=1, cutoff=0.5)
        hint = f" Did you mean {release}/{by_fold[near[0]]}?" if near else ""
        raise UserError(f"{shown}; all of them: llmrec download --list {release}.{hint}")
    return generation, found


def mirror_hosts(generation: SourceGeneration, base: str) -> tuple[Host, ...]:
    """A lab's own copy: laid out as the first host, or all files in one folder.

    Raises:
        UserError: ``base`` is not a plain http or https URL.
    """
    if not _is_plain(base):
        raise UserError(
            f"--from {base}: expected an http or https URL of a folder, without password or query"
        )
    files = generation.hosts[0].files
    flat = {kind: tuple(path.rsplit("/", 1)[-1] for path in paths) for kind, paths in files.items()}
    hosts = [Host(base.rstrip("/"), layout) for layout in (files, flat)]
    return tuple(hosts if files != flat else hosts[:1])


def _is_plain(base: str) -> bool:
    try:
        parts = urlsplit(base)
    except ValueError:  # what stands in brackets is no address
        return False
    plain = parts.scheme in ("http", "https") and parts.hostname
    return bool(plain) and "@" not in parts.netloc and not (parts.query or parts.fragment)


def _parse_host(entry: Mapping[str, object]) -> Host:
    files = entry["files"]
    if not isinstance(files, dict):
        raise TypeError(f"{FILE.name}: files of {entry['base']} is not a table")
    return Host(str(entry["base"]), {kind: tuple(paths) for kind, paths in files.items()})


def _suggest_name(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _fold_name(category: str) -> str:
    return category.replace("-", "_").lower()


# Download of one file: resumed, counted, hashed, renamed when complete.
#
# Partial data is kept in ``.NAME.part``. ``.NAME.part.json`` names the version of the file. A later
# try requests the rest of that version (RFC 9110: ``Range`` with ``If-Range``). Redirects lead to
# http or https, and never from https to http. Proxies come from the environment.
#
# pooch and huggingface_hub are not used (benchmarks/results/2026-11-30-download.md): neither keeps
# partial data after an interruption.


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
        with translate_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_bytes(b"")
        write_json(self.note, {"url": url, "version": dict(version)})

    def append(self, answer: Answer, track: Track) -> None:
        """Write what arrives; the network's errors are not the disk's."""
        with (
            translate_os_errors(self.path),
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
        size, digest = self.size, hash_file(self.file)
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
        with translate_os_errors(self.path):
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


# ``llmrec download``: official files, from the first host that has them.
#
# name -> locations.toml -> each file fetched -> downloads.json -> the lines of a recipe


RECORD = "downloads.json"  # beside the files: where each one is from, its size and SHA-256
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What lies in the folder now."""

    generation: SourceGeneration
    files: Mapping[str, tuple[Fetched, ...]]  # by kind
    recipe: str  # TOML: a ``[data]`` table that reads them


def download_category(
    name: str, folder: Path, kinds: Sequence[str], mirror: str | None, progress: Progress
) -> Downloaded:
    """Download files of a category; complete ones are kept, incomplete ones go on.

    Args:
        name: ``amazon2018/Gift_Cards``.
        kinds: of ``locations.KINDS``, or ``all``.
        mirror: a base URL to ask instead of the official hosts.

    Raises:
        UserError: an unknown name or kind, or a mirror that is no URL.
        ArtefactError: a file of that name lies there and is not from this download.
        MachineError: no host has a file, a connection keeps breaking, or the disk refuses.
    """
    generation, category = find_category(name)
    hosts = generation.hosts if mirror is None else mirror_hosts(generation, mirror)
    wanted = _list_kinds(generation, kinds)
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_download(folder):
        target = _Folder(folder, generation, category, progress)
        files = {kind: target.bring(kind, hosts) for kind in wanted}
    return Downloaded(generation, files, format_recipe(generation, files))


def find_generations(name: str | None) -> list[SourceGeneration]:
    """What can be downloaded: of one generation, or of all.

    Raises:
        UserError: an unknown generation.
    """
    return list(load_generations().values()) if name is None else [find_generation(name)]


def format_generation(generation: SourceGeneration) -> list[str]:
    """A generation in words, a category a line."""
    return [
        f"{generation.name}: {generation.title}",
        f"  files: {', '.join(generation.kinds)}",
        f"  from: {', '.join(host.name for host in generation.hosts)}",
        f"  see: {generation.page}",
        f"  cite: {generation.cite}",
        f"  licence: {generation.licence}",
        *(f"  {generation.name}/{category}" for category in generation.categories),
    ]


def format_downloads(found: Downloaded) -> list[str]:
    """What was downloaded, and how to go on."""
    files = [one for several in found.files.values() for one in several]
    generation = found.generation
    lines = [f"{one.path}: {one.bytes:,} bytes, SHA-256 {one.sha256}" for one in files]
    lines += [f"cite: {generation.cite}", f"licence: {generation.licence}"]
    if found.recipe:
        lines += ["", "in a recipe:", "", *found.recipe.rstrip().split("\n")]
    return lines


def describe_downloads(found: Downloaded) -> dict[str, Any]:
    """What ``--json`` prints."""
    files = [
        {"kind": kind, **asdict(one), "path": str(one.path)}
        for kind, several in found.files.items()
        for one in several
    ]
    about = {key: getattr(found.generation, key) for key in ("page", "cite", "licence")}
    return {"files": files, "recipe": found.recipe, **about}


def format_recipe(generation: SourceGeneration, files: Mapping[str, Sequence[Fetched]]) -> str:
    """The ``[data]`` table of a recipe that reads these files; empty where only titles came."""
    named = {kind: [_format_path(one.path) for one in several] for kind, several in files.items()}
    main = next((kind for kind in ("reviews", "full", "splits", "ratings") if kind in named), None)
    if main is None:
        return ""
    table: dict[str, Any] = {"format": generation.formats[main]}
    if main == "splits":
        table["split"] = "given"
    else:
        table["reviews"] = named[main]
    table |= {"metadata": named["meta"]} if "meta" in named else {"untitled": "id"}
    if main == "splits":
        table["splits"] = dict(zip(("train", "valid", "test"), named[main], strict=True))
    return tomli_w.dumps({"data": table})


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder of downloads, of one category."""

    folder: Path
    generation: SourceGeneration
    category: str
    progress: Progress

    def bring(self, kind: str, hosts: Sequence[Host]) -> tuple[Fetched, ...]:
        """All files of a kind, from the first host that has the first of them.

        Raises:
            MachineError: no host has it; the message says why each one does not.
        """
        reasons = []
        for host in hosts:
            paths = [path.format(category=self.category) for path in host.files[kind]]
            try:
                return tuple(self._bring_file(f"{host.base}/{path}") for path in paths)
            except Gone as gone:
                reasons.append(f"{host.name}: {gone}")
                self.progress.say(f"{kind}: {reasons[-1]}")
        what = f"{self.generation.name}/{self.category}: {kind}"
        raise MachineError(
            f"{what}: no host has it ({'; '.join(reasons)}); see {self.generation.page}, or name "
            "a copy with --from URL"
        )

    def _bring_file(self, url: str) -> Fetched:
        path = self.folder / Path(urlsplit(url).path).name
        there = self._find_kept(path)
        if there is not None:
            self.progress.say(f"{path}: is there already")
            return there
        expected = self.generation.sha256.get(path.name)
        self.progress.say(f"fetching {url}")
        fetched = fetch_file(
            url, path, expected=expected, say=self.progress.say, track=self._track(path)
        )
        self._write_record(fetched)
        return fetched

    def _find_kept(self, path: Path) -> Fetched | None:
        """A complete file of this generation, as the record has it.

        Raises:
            ArtefactError: the record, the file and what is wanted do not agree.
        """
        if not path.exists():
            return None
        known = self._read_record().get(path.name, {})
        if known.get("generation") != self.generation.name:
            raise ArtefactError(
                f"{path}: lies there and is not of {self.generation.name} as far as {RECORD} "
                "knows; remove it, or download to another folder (--to)"
            )
        if known["bytes"] != path.stat().st_size:
            raise ArtefactError(
                f"{path}: {path.stat().st_size:,} bytes, {known['bytes']:,} when it was "
                "downloaded; remove it to download it again"
            )
        return Fetched(path, known["url"], known["bytes"], known["sha256"])

    def _read_record(self) -> dict[str, dict[str, Any]]:
        record = self.folder / RECORD
        known = read_json(record) if record.is_file() else {}
        if not isinstance(known, dict) or not all(map(_is_entry, known.values())):
            raise ArtefactError(f"{record}: damaged; remove it and the files that it names")
        return known

    def _write_record(self, fetched: Fetched) -> None:
        entry = {"url": fetched.url, "bytes": fetched.bytes, "sha256": fetched.sha256}
        known = self._read_record() | {
            fetched.path.name: {"generation": self.generation.name, **entry}
        }
        write_json(self.folder / RECORD, known)

    def _track(self, path: Path) -> Callable[[int, int | None], Any]:
        """Bytes as whole megabytes of the progress."""

        @contextmanager
        def track(done: int, total: int | None) -> Iterator[Callable[[int], None]]:
            count = done

            def count_full() -> int:
                return -(-count // MB) if count == total else count // MB

            def advance(n: int) -> None:
                nonlocal count
                before, count = count_full(), count + n
                step(count_full() - before)

            size = -(-total // MB) if total is not None else 0
            with self.progress.track(path.name, size, count_full(), "MB") as step:
                yield advance

        return track


def _is_entry(value: object) -> bool:
    fits = {"generation": str, "url": str, "bytes": int, "sha256": str}
    return isinstance(value, dict) and all(isinstance(value.get(k), t) for k, t in fits.items())


def _list_kinds(generation: SourceGeneration, kinds: Sequence[str]) -> list[str]:
    if "all" in kinds:  # whoever wants all reviews rather than the 5-core says so
        return [kind for kind in generation.kinds if kind != "full"]
    for kind in kinds:
        if kind not in generation.kinds:
            there = ", ".join(generation.kinds)
            raise UserError(f"--what {kind}: {generation.name} has {there}")
    return list(dict.fromkeys(kinds))


def _format_path(path: Path) -> str:
    """A path as a recipe has to write it: ``../`` there is relative to the recipe's own file."""
    text = path.as_posix()
    return os.path.abspath(path) if text.startswith("../") else text
