"""Raw bytes, plain or gzip, as blocks of whole lines whose numbers are exact.

Lines end at ``\\n`` and nowhere else: text mode and ``splitlines`` also break at U+2028, form feeds
and lone carriage returns, which occur inside reviews.  Memory is bounded by the longest line.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from llmrec_cli.data.readers.block import STRICT, BadLines, Block, fault
from llmrec_cli.errors import DataError, MachineError

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
def beginnings() -> Iterator[None]:
    """Whoever reads inside sees the first block of every file, and nothing behind it.

    So one reader serves both to read a source and to check its first lines.
    """
    token = _CUT.set(set())
    try:
        yield
    finally:
        _CUT.reset(token)


def only_beginnings() -> bool:
    """Whether the reader at work is to look at beginnings only."""
    return _CUT.get() is not None


class _Damage(Exception):
    """The byte stream ends early, is corrupt, or is a bomb; ``blocks`` adds file and line."""


def count_lines(data: bytes) -> int:
    """How many newlines; numpy counts them at twice the speed of ``bytes.count``."""
    return int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")))


def blocks(path: Path, bad: BadLines = STRICT, beginning: int = 0) -> Iterator[Block]:
    """Stream a plain or gzip text file (told apart by its first bytes) as blocks of whole lines.

    A UTF-8 byte order mark at the start is skipped.

    Args:
        path: the file.
        bad: what becomes of lines that are not UTF-8.
        beginning: bytes after which it stops inside of ``beginnings``, at the end of a piece; 0:
            one piece.

    Raises:
        DataError: missing, empty, truncated or corrupt file, a gzip bomb, a line above 16 MiB,
            bytes that are not UTF-8, or a format that is no text.
        MachineError: the file exists but cannot be read.
    """
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
                yield _drop_foreign_lines(Block(path, first, count, whole), bad)
                first += count
    except _Damage as damage:
        raise fault(path, first, str(damage)) from None
    if rest:
        yield _drop_foreign_lines(Block(path, first, 1, rest), bad)
    elif first == 1:
        raise fault(path, 1, "the file has no lines")


def document(path: Path) -> tuple[bytes, bool]:
    """The text of a file that is one JSON document, and whether it is there to the end.

    (It is, but for a large one inside of ``beginnings``.)

    Raises:
        DataError, MachineError: as ``blocks``.
    """
    data = b"".join(block.data for block in blocks(path, beginning=DOCUMENT))
    return data, path not in (_CUT.get() or ())


def _cut_lines(path: Path, first: int, rest: bytes, piece: bytes) -> tuple[bytes, bytes]:
    """Whole lines of ``rest + piece``, and what is left of it, with one copy of the bytes."""
    end = piece.find(b"\n")
    if len(rest) + (len(piece) if end < 0 else end) > LONGEST_LINE:
        raise fault(path, first, f"the line is longer than {LONGEST_LINE >> 20} MiB")
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
        at = _find_foreign_byte(line)
        if at is not None:
            problem = f"byte {at + 1} of the line is 0x{line[at]:02x}: not UTF-8 text"
            bad.skip(fault(block.path, number, problem))
            left_out.append(number)
    return block.without(left_out)


def _find_foreign_byte(data: bytes) -> int | None:
    """Where the first byte stands that is not UTF-8; None where there is none."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def first_block(path: Path) -> Block:
    """The beginning of a file, for its header; lines that are not UTF-8 are blank in it.

    Raises:
        DataError: as ``blocks``.
    """
    return next(blocks(path, BadLines(BLOCK)))


def head(path: Path, size: int = 8) -> bytes:
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
    stream = ahead(_inflate_pieces(chain([start], pieces))) if zipped else chain([start], pieces)
    opening = next(stream, b"")
    yield opening.removeprefix(_UTF8_BOM)
    yield from stream


def ahead(pieces: Iterator[bytes], depth: int = 2) -> Iterator[bytes]:
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
