"""Lines of a raw file with their numbers, what is said of a bad one, and what becomes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from llmrec_cli.errors import DataError, LineFault

_SHOWN_BAD: Final = 5  # bad lines that a manifest quotes


def fault(path: Path, line: int, problem: str, index: int | None = None) -> LineFault:
    """The error of one place in a file, as one printable line ``path:line: problem``.

    Args:
        index: which record of its batch the line holds, where that is known.
    """
    place = f"{path.name}:{line}: {problem}"
    return LineFault(printable(f"{path}:{line}: {problem}"), printable(place), line, index)


def printable(text: str) -> str:
    """``text`` on one line: what is no letter, sign or space is written as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object, longest: int = 60) -> str:
    """A value for an error message: Python's notation, cut after ``longest`` characters."""
    text = repr(value[: longest + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


@dataclass(frozen=True)
class Block:
    """Some consecutive whole lines of a file.

    Attributes:
        path: the file.
        first: 1-based number of the first line.
        count: how many lines, blank ones included.
        data: their bytes; only the last line of a file may lack its newline.
    """

    path: Path
    first: int
    count: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (line number, line without its newline); lines of white space are left out."""
        for number, line in enumerate(split_lines(self.data), self.first):
            if line and not line.isspace():
                yield number, line

    def without(self, numbers: Collection[int]) -> Block:
        """The block with some lines left blank; the others keep their numbers."""
        if not numbers:
            return self
        lines = self.data.split(b"\n")
        for number in numbers:
            lines[number - self.first] = b""
        return replace(self, data=b"\n".join(lines))

    def line_of(self, index: int) -> int:
        """Number of the line that holds record ``index`` (0-based) of this block."""
        return self._numbers[index]

    @cached_property
    def _numbers(self) -> list[int]:
        """Numbers of the lines that hold records, found once however many are asked for."""
        return [number for number, _ in self.lines()]


@dataclass
class BadLines:
    """What becomes of lines that are wrong: an error, or up to so many are left out and counted.

    What is wrong with a file as a whole (truncated, not text, of another generation) always is an
    error.
    """

    limit: int = 0  # lines that may be left out, over all files of a source
    advice: str = ""  # what to do about a bad line where none may be left out
    skipped: int = 0
    first: list[str] = field(default_factory=list)  # the first few, as file:line: problem

    def skip(self, error: LineFault) -> None:
        """Leave a line out.

        Raises:
            LineFault: no (more) lines may be left out.
        """
        if not self.limit:
            # A file that is wrong from its first line on is another file, more likely.
            advice = self.advice if error.line > 1 else ""
            raise LineFault(f"{error}{advice}", error.brief, error.line, error.index)
        if self.skipped >= self.limit:
            raise DataError(
                f"{error}; and {self.limit} bad lines before it, the most that "
                "data.bad_line_limit allows"
            )
        self.skipped += 1
        if len(self.first) < _SHOWN_BAD:
            self.first.append(error.brief)

    def notes(self) -> dict[str, dict[str, Any]]:
        """Counts for the manifest; nothing where no line may be left out."""
        if not self.limit:
            return {}
        return {"bad_lines": {"skipped": self.skipped, "first": list(self.first)}}


STRICT: Final = BadLines()
"""No line may be left out."""


def split_lines(data: bytes) -> list[bytes]:
    """Split at ``\\n`` only; a newline at the very end closes the last line, it opens no other."""
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines
