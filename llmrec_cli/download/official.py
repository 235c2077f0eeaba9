"""``llmrec download``: official files, from the first host that has them.

name -> locations.toml -> each file fetched -> downloads.json -> the lines of a recipe
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tomli_w

from llmrec_cli.claims import lock_download
from llmrec_cli.download.locations import (
    Generation,
    Host,
    find_category,
    find_generation,
    load_generations,
    mirror_hosts,
)
from llmrec_cli.download.transfer import Fetched, Gone, fetch_file
from llmrec_cli.errors import ArtefactError, MachineError, UserError
from llmrec_cli.files import machine_errors, read_json, write_json
from llmrec_cli.progress import Progress

RECORD = "downloads.json"  # beside the files: where each one is from, its size and SHA-256
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What lies in the folder now."""

    generation: Generation
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
    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_download(folder):
        target = _Folder(folder, generation, category, progress)
        files = {kind: target.bring(kind, hosts) for kind in wanted}
    return Downloaded(generation, files, format_recipe(generation, files))


def find_generations(name: str | None) -> list[Generation]:
    """What can be downloaded: of one generation, or of all.

    Raises:
        UserError: an unknown generation.
    """
    return list(load_generations().values()) if name is None else [find_generation(name)]


def format_generation(generation: Generation) -> list[str]:
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


def format_recipe(generation: Generation, files: Mapping[str, Sequence[Fetched]]) -> str:
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
    generation: Generation
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


def _list_kinds(generation: Generation, kinds: Sequence[str]) -> list[str]:
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
