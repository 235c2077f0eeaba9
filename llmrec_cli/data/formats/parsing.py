"""Raw files as blocks of lines, and lines as JSON records.  Errors name file and line."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import sys
import warnings
import zlib
from bisect import insort
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

import msgspec
import numpy as np

from llmrec_cli.errors import DataError, LineFault, MachineError

# Numbered lines of a raw file, and the handling of bad lines.


_SHOWN_BAD: Final = 5  # bad lines that a manifest quotes


def make_fault(path: Path, line: int, problem: str, index: int | None = None) -> LineFault:
    """The error of one place in a file, as one printable line ``path:line: problem``.

    Args:
        index: which record of its batch the line holds, where that is known.
    """
    place = f"{path.name}:{line}: {problem}"
    return LineFault(printable(f"{path}:{line}: {problem}"), printable(place), path, line, index)


def printable(text: str) -> str:
    """``text`` on one line: what is no letter, sign or space is written as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show_text(value: object, longest: int = 60) -> str:
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

    Attributes:
        limit: how many lines may be left out, over all files of a source.
        advice: what to do about a bad line where none may be left out.
        skipped: how many lines were left out.
    """

    limit: int = 0
    advice: str = ""
    skipped: int = 0
    _first: list[tuple[int, int, str]] = field(default_factory=list)  # file, line, brief; sorted
    _files: list[Path] = field(default_factory=list)  # files with bad lines, in reading order

    def skip(self, error: LineFault) -> None:
        """Leave a line out.

        Raises:
            LineFault: no (more) lines may be left out.
        """
        if not self.limit:
            # A file that is wrong from its first line on is another file, more likely.
            advice = self.advice if error.line > 1 else ""
            raise LineFault(f"{error}{advice}", error.brief, error.path, error.line, error.index)
        if self.skipped >= self.limit:
            raise DataError(
                f"{error}; {self.limit} other bad lines are left out already, the most that "
                "data.bad_line_limit allows"
            )
        self.skipped += 1
        if error.path not in self._files[-1:]:
            self._files.append(error.path)
        # Each check goes through a whole block of lines, so a lower line may be found later.
        insort(self._first, (len(self._files), error.line, error.brief))
        del self._first[_SHOWN_BAD:]

    @property
    def first(self) -> list[str]:
        """The first few bad lines in the order of the files, as ``file:line: problem``."""
        return [brief for _, _, brief in self._first]

    def notes(self) -> dict[str, dict[str, Any]]:
        """Counts for the manifest; nothing where no line may be left out."""
        if not self.limit:
            return {}
        return {"bad_lines": {"skipped": self.skipped, "first": self.first}}


STRICT: Final = BadLines()
"""No line may be left out."""


def split_lines(data: bytes) -> list[bytes]:
    """Split at ``\\n`` only; a newline at the very end closes the last line, it opens no other."""
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


# Raw bytes, plain or gzip, as blocks of whole lines whose numbers are exact.
#
# Lines end at ``\n`` and nowhere else: text mode and ``splitlines`` also break at U+2028, form
# feeds and lone carriage returns, which occur inside reviews. Memory is bounded by the longest
# line.


BLOCK: Final = 2 << 20  # bytes read, or inflated, at a time
LONGEST_LINE: Final = 16 << 20  # bytes; the longest genuine metadata lines stay below 1 MiB
BOMB_BYTES: Final = 64 << 20  # inflated bytes before the ratio is judged
BOMB_RATIO: Final = 200  # inflated : compressed; genuine files stay below 15

_UTF8_BOM: Final = b"\xef\xbb\xbf"
_FOREIGN: Final = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "zstandard data",
    b"PAR1": "a parquet file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


DOCUMENT: Final = 16 << 20  # bytes of a JSON document that are read where its beginning will do

_CUT: Final[ContextVar[set[Path] | None]] = ContextVar("cut", default=None)


@contextmanager
def read_only_beginnings() -> Iterator[None]:
    """Readers inside of this block see the first block of every file, and nothing after it.

    So the same readers read a source and check its first lines.
    """
    token = _CUT.set(set())
    try:
        yield
    finally:
        _CUT.reset(token)


def only_beginnings() -> bool:
    """Whether the reader at work is to look at beginnings only."""
    return _CUT.get() is not None


def was_cut(path: Path) -> bool:
    """Whether the reader at work saw the beginning of a file only, and not all of it."""
    return path in (_CUT.get() or ())


class _Damage(Exception):
    """The byte stream ends early, is corrupt, or is a bomb; ``read_blocks`` adds file and line."""


def count_lines(data: bytes) -> int:
    """How many newlines; numpy counts them at twice the speed of ``bytes.count``."""
    return int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")))


def read_blocks(path: Path, bad: BadLines = STRICT, beginning: int = 0) -> Iterator[Block]:
    """Stream a text file as blocks of whole lines; its first bytes show whether it is gzip.

    A UTF-8 byte order mark at the start is skipped.

    Args:
        path: the file.
        bad: what becomes of lines that are not UTF-8.
        beginning: inside of ``read_only_beginnings``, bytes after which it stops, at the end of a
            piece; 0: one piece.

    Raises:
        DataError: missing, empty, truncated or corrupt file, a gzip bomb, a line above 16 MiB,
            bytes that are not UTF-8, or a format that is no text.
        MachineError: the file exists but cannot be read.
    """
    for block in _read_bytes(path, beginning):
        yield _drop_foreign_lines(block, bad)


def _read_bytes(path: Path, beginning: int = 0) -> Iterator[Block]:
    """As ``read_blocks``; lines may be no UTF-8."""
    first, rest, taken, cut = 1, b"", 0, _CUT.get()
    try:
        for piece in _read_text(path):
            if cut is not None and taken >= (beginning or BLOCK) and first > 1:
                cut.add(path)
                return
            taken += len(piece)
            whole, rest = _cut_lines(path, first, rest, piece)
            if whole:
                count = count_lines(whole)
                yield Block(path, first, count, whole)
                first += count
    except _Damage as damage:
        raise make_fault(path, first, str(damage)) from None
    if rest:
        yield Block(path, first, 1, rest)
    elif first == 1:
        raise make_fault(path, 1, "the file has no lines")


def read_whole(path: Path) -> tuple[bytes, bool]:
    """The text of a file that is one JSON document, and whether it is complete.

    (It is, except for a large one inside of ``read_only_beginnings``.)

    Raises:
        DataError, MachineError: as ``read_blocks``.
    """
    data = b"".join(block.data for block in read_blocks(path, beginning=DOCUMENT))
    return data, not was_cut(path)


def _cut_lines(path: Path, first: int, rest: bytes, piece: bytes) -> tuple[bytes, bytes]:
    """Whole lines of ``rest + piece``, and what is left of it, with one copy of the bytes."""
    end = piece.find(b"\n")
    if len(rest) + (len(piece) if end < 0 else end) > LONGEST_LINE:
        raise make_fault(path, first, f"the line is longer than {LONGEST_LINE >> 20} MiB")
    if end < 0:
        return b"", rest + piece
    end = piece.rfind(b"\n") + 1
    return b"".join((rest, memoryview(piece)[:end])), piece[end:]


def _drop_foreign_lines(block: Block, bad: BadLines) -> Block:
    """The block without the lines that are not UTF-8; each line of a damaged block is read once."""
    if block.data.isascii() or _find_foreign_byte(block.data) is None:
        return block
    left_out = []
    for number, line in block.lines():
        try:
            _require_text(block.path, number, line)
        except LineFault as error:
            bad.skip(error)
            left_out.append(number)
    return block.without(left_out)


def _require_text(path: Path, number: int, line: bytes) -> None:
    """Refuse a line that is not UTF-8."""
    at = _find_foreign_byte(line)
    if at is not None:
        problem = f"byte {at + 1} of the line is 0x{line[at]:02x}: not UTF-8 text"
        raise make_fault(path, number, problem)


def _find_foreign_byte(data: bytes) -> int | None:
    """Where the first byte stands that is not UTF-8; None where there is none."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def first_block(path: Path, header: bool = False) -> Block:
    """The beginning of a file; lines that are not UTF-8 are blank in it.

    Args:
        header: the first line is a header, without which nothing can be read.

    Raises:
        DataError: as ``read_blocks``; or the header is not UTF-8.
    """
    block = next(_read_bytes(path))
    if header:
        _require_text(path, block.first, block.data.partition(b"\n")[0])
    return _drop_foreign_lines(block, BadLines(BLOCK))


def read_head(path: Path, size: int = 8) -> bytes:
    """The first bytes of a file.

    Raises:
        DataError: no such file, or a folder.
        MachineError: it cannot be read.
    """
    return next(_read_pieces(path, size), b"")


def _read_text(path: Path) -> Iterator[bytes]:
    pieces = _read_pieces(path, BLOCK)
    start = next(pieces, b"")
    if not start:
        raise _Damage("the file is empty (0 bytes)")
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise _Damage(f"this is {what}; expected UTF-8 text, plain or gzip")
    zipped = start.startswith(b"\x1f\x8b")
    stream = (
        read_ahead(_inflate_pieces(chain([start], pieces))) if zipped else chain([start], pieces)
    )
    opening = next(stream, b"")
    yield opening.removeprefix(_UTF8_BOM)
    yield from stream


def read_ahead(pieces: Iterator[bytes], depth: int = 2) -> Iterator[bytes]:
    """Draw from ``pieces`` in a thread, up to ``depth`` ahead: inflating holds no lock."""
    with ThreadPoolExecutor(1) as thread:
        drawn = deque(thread.submit(next, pieces, None) for _ in range(depth))
        while (piece := drawn.popleft().result()) is not None:
            drawn.append(thread.submit(next, pieces, None))
            yield piece


def _read_pieces(path: Path, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(size):
                yield piece
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder, expected a file") from None
    except OSError as error:
        raise MachineError(f"{path}: cannot be read: {error.strerror or error}") from error


def _inflate_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Inflate gzip data of one or several members, at most ``BLOCK`` bytes at a time."""
    inflater = zlib.decompressobj(wbits=31)
    taken = given = 0
    for piece in pieces:
        taken += len(piece)
        while piece:
            if inflater.eof:  # another member, or the zero padding that tape archives add
                piece = piece.lstrip(b"\0")
                inflater = zlib.decompressobj(wbits=31) if piece else inflater
                continue
            out, piece = _inflate_step(inflater, piece)
            given += len(out)
            if given > BOMB_BYTES and given > BOMB_RATIO * taken:
                raise _Damage(f"more than {BOMB_RATIO} times its compressed size: a gzip bomb?")
            if out:
                yield out
    while not inflater.eof:
        out, _ = _inflate_step(inflater, b"")
        if not out:
            raise _Damage("the gzip data ends early: the file is truncated")
        yield out


def _inflate_step(inflater: zlib._Decompress, piece: bytes) -> tuple[bytes, bytes]:
    try:
        out = inflater.decompress(piece, BLOCK)
    except zlib.error as error:
        raise _Damage(f"the gzip data is corrupt ({error})") from None
    return out, inflater.unused_data if inflater.eof else inflater.unconsumed_tail


# Python literals, the notation of Amazon 2014 metadata.  ``ast.literal_eval``, never ``eval``.


LONGEST_LITERAL: Final = 256 << 10  # bytes; parsing takes about 3 s and 0.5 GB per MB


def parse_literal(line: bytes) -> object:
    """Evaluate one Python literal.

    Raises:
        ValueError: above 256 KiB, nested too deeply, or no literal; the message is one line.
    """
    if len(line) > LONGEST_LITERAL:
        raise ValueError(f"a Python literal above {LONGEST_LITERAL >> 10} KiB")
    try:
        with warnings.catch_warnings():  # "\d" in a description is legal, and not ours to mend
            warnings.simplefilter("ignore")
            return ast.literal_eval(line.decode("utf-8").strip())
    except (MemoryError, RecursionError):
        raise ValueError("a Python literal nested too deeply") from None
    except SyntaxError as error:
        place = f" at column {error.offset}" if error.offset else ""
        raise ValueError(f"not a Python literal: {error.msg}{place}") from None
    except (ValueError, TypeError):
        raise ValueError("not a Python literal: it names something or computes") from None


# JSON lines (or Python literals) as typed records.
#
# The fast path decodes a whole block into msgspec Structs, skipping every field that nobody asked
# for. Only a block that it refuses is read again line by line, to accept what the fast path is too
# strict for (lone surrogates in a review's text, Python literals) and to name every bad line.


T = TypeVar("T", bound=msgspec.Struct)

_WORDS: Final = {
    "float": "a number",
    "int": "a whole number",
    "str": "a string",
    "null": "null",
    "object": "an object",
    "array": "a list",
    "bool": "true or false",
}


@dataclass(frozen=True)
class Shape(Generic[T]):
    """What the lines of a file should be.

    Attributes:
        record: msgspec Struct of the needed fields, renamed to the file's names.
        what: what one line is, for messages, e.g. ``"an amazon2018 review"``.
        literals: whether Python literals are accepted beside JSON.
    """

    record: type[T]
    what: str
    literals: bool = False


@dataclass(frozen=True)
class RecordBatch(Generic[T]):
    """The records of one block, in order."""

    block: Block
    rows: list[T]


def read_records(path: Path, shape: Shape[T], bad: BadLines = STRICT) -> Iterator[RecordBatch[T]]:
    """Stream the records of a JSON-lines file.

    Args:
        path: the file.
        shape: what its lines should be.
        bad: what becomes of the others.

    Raises:
        DataError: see ``read_blocks``; and a line that is not one object of the expected fields.
    """
    decoder = msgspec.json.Decoder(shape.record)
    for block in read_blocks(path, bad):
        rows = _decode_block(block, decoder)
        yield RecordBatch(block, rows) if rows else _decode_lines(block, shape, decoder, bad)


def _decode_block(block: Block, decoder: msgspec.json.Decoder[T]) -> list[T] | None:
    try:
        rows = decoder.decode_lines(block.data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    if len(rows) == block.count and not _may_have_blanks(block.data):
        return rows
    if len(rows) == sum(1 for _ in block.lines()):
        return rows
    return None  # two objects on one line, or one object over several


def _may_have_blanks(data: bytes) -> bool:
    """Whether a line may be blank: beside one, two objects on a line would not be noticed."""
    byte_N = np.frombuffer(data, dtype=np.uint8)
    first_L = np.append(0, np.flatnonzero(byte_N == ord("\n")) + 1)
    return bool((byte_N[first_L[first_L < len(byte_N)]] <= ord(" ")).any())


def _decode_lines(
    block: Block, shape: Shape[T], decoder: msgspec.json.Decoder[T], bad: BadLines
) -> RecordBatch[T]:
    """Line by line, so that a bad line costs no more than itself."""
    rows, left_out, decode = [], [], decoder.decode
    for number, line in block.lines():
        try:
            rows.append(decode(line))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            try:
                rows.append(_decode_line(block.path, number, line, shape, decoder))
            except LineFault as error:
                bad.skip(error)
                left_out.append(number)
    return RecordBatch(block.without(left_out), rows)


def _decode_line(
    path: Path, number: int, line: bytes, shape: Shape[T], decoder: msgspec.json.Decoder[T]
) -> T:
    """A line that the decoder refuses."""
    if shape.literals and b'"' not in line and b"\\" not in line:
        # Every quote is a single one and opens or closes a string: swapped, the line is JSON with
        # the same meaning, or no JSON at all.  That is 70 times faster than ast.
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            return decoder.decode(line.replace(b"'", b'"'))
    fields = parse_object(path, number, line, shape.what, shape.literals)
    try:
        return msgspec.convert(fields, shape.record)
    except msgspec.ValidationError as error:
        _explain_error(path, number, fields, shape.what, str(error))
    except UnicodeEncodeError:
        raise make_fault(path, number, "a field's name is not valid Unicode") from None


def parse_object(
    path: Path, number: int, line: bytes, what: str, literals: bool = False
) -> dict[str, Any]:
    """Parse one line as a JSON object, or as a Python dict where ``literals`` are accepted.

    Raises:
        DataError: naming file, line and the reason.
    """
    if line.lstrip().startswith(b"["):
        raise make_fault(
            path, number, f"a JSON array; expected {what} as one object per line: jq -c '.[]' FILE"
        )
    try:
        value = _parse_line(line, literals)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise make_fault(path, number, f"{_not_json(line, what, literals)} ({reason})") from None
    if not isinstance(value, dict):
        raise make_fault(
            path, number, f"{show_text(value)} is no object; expected {what} on each line"
        )
    return value


def _parse_line(line: bytes, literals: bool) -> object:
    try:
        return json.loads(line.decode(), parse_constant=_no_constant)  # given bytes it guesses
    except json.JSONDecodeError as error:
        if literals and error.msg.startswith("Expecting property name"):
            return parse_literal(line)
        raise ValueError(f"{error.msg} at column {error.pos + 1}") from None
    except ValueError as error:
        longest = sys.get_int_max_str_digits()
        digits = "digits" in str(error)
        problem = f"a number of more than {longest} digits" if digits else str(error)
        raise ValueError(problem) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _not_json(line: bytes, what: str, literals: bool) -> str:
    start = line.lstrip()[:1]
    if start != b"{":
        hint = "; CSV files have formats of their own" if line.count(b",") >= 2 else ""
        return f"{show_text(line.decode())} is no JSON object; expected {what} on each line{hint}"
    if not literals and line.lstrip()[1:].lstrip().startswith((b"'", b'u"', b"u'")):
        return f"a Python literal, as in amazon2014 files; expected {what} as JSON"
    return f"invalid JSON; expected {what} as one whole object on this line"


def _explain_error(
    path: Path, number: int, fields: dict[str, Any], what: str, error: str
) -> NoReturn:
    """Say msgspec's complaint in terms of the file: field, value, expectation."""
    missing = re.search(r"missing required field `(.+?)`", error)
    if missing:
        other = recognize_other(fields, what)
        problem = f'has no "{missing[1]}"' + (f": {other}" if other else "")
        raise make_fault(path, number, f"{problem}; expected {what}")
    place = re.search(r"at `\$\.?([^`]*)`$", error)
    field = place[1] if place else ""
    value: Any = fields
    for part in re.findall(r"[^.\[\]]+", field):
        value = value.get(part) if isinstance(value, Mapping) else value
    wanted = re.search(r"Expected `(.+?)`", error)
    names = wanted[1].split(" | ") if wanted else []
    if "float" in names:
        names = [name for name in names if name != "int"]
    expected = " or ".join(_WORDS.get(name, name) for name in names) or "a sensible value"
    if field in ("overall", "rating") and "amazon" in what:
        expected = "a number 1..5"
    raise make_fault(path, number, f'"{field}" is {show_text(value)}, expected {expected}')


def kinds_of_line(fields: Mapping[str, object]) -> tuple[str, ...]:
    """What a line of any Amazon generation may be, by its field names; empty where unknown."""
    names = set(fields)
    if {"user_id", "parent_asin"} <= names:
        return ("an amazon2023 review",)
    if "parent_asin" in names:
        return ("amazon2023 metadata",)
    if {"reviewerID", "overall"} <= names:
        return ("an amazon2014 review", "an amazon2018 review")
    if "asin" in names and names & {"also_buy", "also_view", "main_cat", "tech1"}:
        return ("amazon2018 metadata",)
    if "asin" in names and names & {"imUrl", "related", "salesRank", "categories"}:
        return ("amazon2014 metadata",)
    return ()


def recognize_other(fields: Mapping[str, object], what: str) -> str | None:
    """``"this is ..."`` where a line is plainly another Amazon file's than ``what`` says."""
    found = kinds_of_line(fields) if "amazon" in what else ()
    return f"this is {' or '.join(found)}" if found and what not in found else None


def read_document(path: Path) -> bytes:
    """The text of a JSON document; of a large one's beginning, its complete entries.

    Raises:
        DataError, MachineError: see ``read_blocks``.
    """
    data, whole = read_whole(path)
    return data if whole else _complete_entries(data)


def _complete_entries(data: bytes) -> bytes:
    """The beginning of an array or object, closed after its last complete entry.

    Anything else, and a text that is wrong in its first half, stays unchanged; its reader reports
    it.
    """
    text = data.decode()
    decoder = json.JSONDecoder()
    at = end = _skip_space(text, 0) + 1
    opening = text[at - 1 : at]
    try:
        while opening in ("[", "{"):
            if opening == "{":
                _, at = decoder.raw_decode(text, _skip_space(text, at))
                at = _skip_space(text, at) + 1  # the colon
            _, at = decoder.raw_decode(text, _skip_space(text, at))
            end, at = at, _skip_space(text, at) + 1  # the comma
    except (ValueError, RecursionError):
        if end > len(text) // 2:
            return (text[:end] + {"[": "]", "{": "}"}[opening]).encode()
    return data


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def read_object(path: Path, kind: type[T] | Any, what: str) -> Any:
    """Read a file that is one JSON object, such as item id -> title.

    Raises:
        DataError: see ``read_blocks``; or not the expected object.
    """
    data = read_document(path)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise make_fault(path, 1, f"{str(error).replace('`', '')}; expected {what}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        found = re.search(r"byte (\d+)", str(error))
        line = 1 + data.count(b"\n", 0, int(found[1])) if found else 1 + data.count(b"\n")
        raise make_fault(path, line, f"invalid JSON ({error}); expected {what}") from None
