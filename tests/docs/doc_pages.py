"""The pages of ``docs/``, README and CONTRIBUTING: prose, blocks, headings, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_MARK = re.compile(r"<!-- ([^>]*) -->\n\Z")
_HEADING = re.compile(r"^#+ (.+)$", re.M)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str
    mark: str  # a comment on the line before

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, page: Path = DOCS) -> Iterator[Block]:
    for found in _BLOCK.finditer(text):
        before = text[: found.start()]
        mark = _MARK.search(before)
        line = before.count("\n") + 1
        yield Block(page, line, found[1], found[2], mark[1] if mark else "")


def all_blocks(*languages: str) -> list[Block]:
    return [b for page in PAGES for b in blocks(read(page), page) if b.language in languages]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _BLOCK.sub("", text)


def links(text: str) -> list[str]:
    return _LINK.findall(prose(text))


def anchors(text: str) -> set[str]:
    """Of every heading, where Python's Markdown and GitHub agree on it."""
    found = set()
    for heading in _HEADING.findall(prose(text)):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        ours, github = re.sub(r"[-\s]+", "-", plain), plain.replace(" ", "-")
        found |= {ours} & {github}
    return found
