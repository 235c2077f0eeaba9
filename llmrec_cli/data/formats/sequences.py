"""Users' ordered items, one user a line, as SASRec, P5 and TIGER exchange them; no times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmrec_cli.config.formats import Format

if TYPE_CHECKING:
    from llmrec_cli.config.data import DataSection
    from llmrec_cli.data.formats.base import Locate, Source
    from llmrec_cli.data.formats.checks import Interactions
    from llmrec_cli.data.formats.parsing import BadLines

FORMAT: Final = Format(
    "sequences",
    needs=("reviews",),
    uses=(
        *("metadata", "untitled", "identity", "duplicates", "k_core"),
        *("on_bad_line", "bad_line_limit"),
    ),
    has_clock=False,
    titles_alone=True,
)


_EXPECTED: Final = "expected a user and the user's items, parted by blanks"


def read(section: DataSection, locate: Locate, scratch: Path) -> Source:
    """Read ``user item item ...`` (``data.reviews``) and ``item title`` (``data.metadata``).

    Words are parted by blanks.  The timestamp is the position in the user's line.  An item that has
    no title there is as one without metadata.

    Raises:
        DataError: a line without an item, or a user who has two lines.
    """
    from llmrec_cli.data.formats.amazon import INTERACTIONS_FILE, bad_lines
    from llmrec_cli.data.formats.base import ItemRows, Notes, Sink, Source, write_interactions
    from llmrec_cli.data.formats.checks import Fields

    fields = Fields(user="user", item="item", rating="", timestamp="position")
    bad, seen, items = bad_lines(section), set[str](), ItemRows()
    files: Notes = {}
    with Sink(scratch / INTERACTIONS_FILE) as sink:
        for name in section.reviews:
            path = locate(name)
            rows = _read_sequences(path, seen, bad)
            files[name] = write_interactions(path, rows, fields, sink, calendar=False, bad=bad)
            files[name]["timestamp"] = "position in the user's line"
    for name in section.metadata:
        for ids, titles in _read_titles(locate(name), bad):
            items.add(ids, titles, [None] * len(ids))
    frame = items.frame()
    notes = {"reviews": files, "metadata": items.notes(frame), **bad.notes()}
    return Source(sink.path, frame, notes=notes)


def _read_sequences(path: Path, seen: set[str], bad: BadLines) -> Iterator[Interactions]:
    """The interactions of a block of lines at a time.

    Args:
        seen: the users so far, of all files; gets these.
    """
    from llmrec_cli.data.formats.checks import Interactions
    from llmrec_cli.data.formats.parsing import make_fault, show_text

    for lines in _read_lines(path, bad, cuts=-1):
        users, items, positions, numbers = list[str](), list[str](), list[int](), list[int]()
        for number, (user, *bought) in lines:
            if user in seen:
                raise make_fault(
                    path,
                    number,
                    f"user {show_text(user)} has an earlier line, too; expected one line per user",
                )
            seen.add(user)
            if user.startswith(("{", "[")) and number == 1:
                problem = f"the file begins with {show_text(user)}, which is JSON"
                raise make_fault(path, number, f"{problem}; {_EXPECTED}")
            if not bought:
                problem = f"the line is {show_text(user)}; {_EXPECTED}"
                bad.skip(make_fault(path, number, problem))
            users += [user] * len(bought)
            items += bought
            positions += range(len(bought))
            numbers += [number] * len(bought)
        yield Interactions(users, items, None, positions, line_of=numbers.__getitem__)


def _read_titles(path: Path, bad: BadLines) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and titles of a block of lines at a time; an id alone has the title ``""``."""
    for lines in _read_lines(path, bad, cuts=1):
        rows = [words for _, words in lines]
        yield [words[0] for words in rows], [" ".join(words[1:]) for words in rows]


def _read_lines(path: Path, bad: BadLines, cuts: int) -> Iterator[list[tuple[int, list[str]]]]:
    """Number and words of each line that is not blank, a block of lines at a time.

    Args:
        cuts: of a line at most; -1: at all blanks.
    """
    from llmrec_cli.data.formats.parsing import read_blocks

    for block in read_blocks(path, bad):
        split = ((number, line.decode().split(None, cuts)) for number, line in block.lines())
        yield [(number, words) for number, words in split if words]
