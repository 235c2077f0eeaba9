"""Where official data sets are: ``locations.toml``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from llmrec_cli.errors import UserError

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
class Generation:
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
def load_generations() -> Mapping[str, Generation]:
    """Every generation by its name."""
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: Generation(
            name=name,
            **{key: entry[key] for key in ("title", "page", "licence", "cite", "formats")},
            categories=tuple(entry["categories"]),
            hosts=tuple(_parse_host(host) for host in entry["hosts"]),
            sha256=entry.get("sha256", {}),
        )
        for name, entry in table.items()
    }


def find_generation(name: str) -> Generation:
    """A generation by its name.

    Raises:
        UserError: unknown; the message has the nearest, and all.
    """
    known = load_generations()
    if name not in known:
        hint = _suggest_name(name, known)
        raise UserError(f"{name}: unknown generation, expected one of {', '.join(known)}.{hint}")
    return known[name]


def find_category(name: str) -> tuple[Generation, str]:
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


def mirror_hosts(generation: Generation, base: str) -> tuple[Host, ...]:
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
