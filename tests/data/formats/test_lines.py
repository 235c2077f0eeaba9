"""Lines end at \\n and nowhere else, numbers are exact, and damage is named."""

from __future__ import annotations

import gzip
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_cli.data.formats import parsing
from llmrec_cli.data.formats.parsing import read_blocks, split_lines
from llmrec_cli.errors import DataError

ODD = "a\u2028b\u2029c\x0cd\re\x0bf\x85g\x1ch"  # str.splitlines would make nine lines of it


@given(st.binary(max_size=200) | st.text("ab\n\r\x0c\u2028", max_size=60).map(str.encode))
def test_splitting_loses_nothing_and_splits_at_newlines_only(data: bytes) -> None:
    parts = split_lines(data)
    tail = b"\n" if data.endswith(b"\n") else b""
    assert b"\n".join(parts) + tail == data
    assert all(b"\n" not in part for part in parts)


def test_other_separators_do_not_split() -> None:
    assert split_lines(f"{ODD}\n{ODD}".encode()) == [ODD.encode()] * 2


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("block", [8, 64, 1 << 20])
def test_blocks_join_to_the_file_and_number_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, block: int
) -> None:
    monkeypatch.setattr(parsing, "BLOCK", block)
    data = "".join(f"{ODD} {n}\n" + "\n" * (n % 3) for n in range(1, 40)).encode() + b"no newline"
    path = tmp_path / "f"
    path.write_bytes(gzip.compress(data) if zipped else data)
    found = list(read_blocks(path))
    assert b"".join(b.data for b in found) == data
    numbered = {number: line for b in found for number, line in b.lines()}
    expected = {n: line for n, line in enumerate(data.split(b"\n"), 1) if line}
    assert numbered == expected
    assert all(b.count == len(split_lines(b.data)) for b in found)


def test_gzip_members_and_padding_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"c\n") + b"\0" * 512)
    assert b"".join(b.data for b in read_blocks(path)) == b"a\nbc\n"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"\xef\xbb\xbfa\n")
    assert next(read_blocks(path)).data == b"a\n"


def _zipped(data: bytes, cut: int = 0) -> bytes:
    whole = gzip.compress(data)
    return whole[: len(whole) - cut]


_LINES = bytes(range(97, 123)) + b"\n"
DAMAGE = {
    "empty": (b"", ":1:", "empty"),
    "empty in gzip": (_zipped(b""), ":1:", "no lines"),
    "truncated": (_zipped(_LINES * 9, cut=12), ":", "truncated"),
    "header only": (_zipped(_LINES)[:10], ":1:", "truncated"),
    "bad checksum": (_zipped(_LINES)[:-6] + b"\0" * 6, ":", "corrupt"),
    "flipped bit": (_zipped(_LINES)[:12] + b"\xff" + _zipped(_LINES)[13:], ":1:", "corrupt"),
    "rubbish behind": (_zipped(_LINES) + b"rubbish", ":", "corrupt"),
    "zip": (b"PK\x03\x04....", ":1:", "zip archive"),
    "zstandard": (b"\x28\xb5\x2f\xfd....", ":1:", "zstandard"),
    "parquet": (b"PAR1....", ":1:", "parquet"),
    "UTF-16": ("a\n".encode("utf-16"), ":1:", "UTF-16"),
    "Latin-1": (b"ok\nok\n  caf\xe9\n", ":3:", "byte 6 of the line is 0xe9"),
    "half a character": ("ok\n…".encode()[:-1], ":2:", "not UTF-8"),
    "long line": (b"ok\n" + b"x" * ((16 << 20) + 1), ":2:", "longer than 16 MiB"),
    "bomb of one line": (_zipped(b"\0" * (20 << 20)), ":1:", "longer than 16 MiB"),
    "bomb of many lines": (_zipped(b"\n" * (80 << 20)), ":", "gzip bomb"),
}


@pytest.mark.parametrize(("data", "where", "what"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line_with_file_and_line(
    tmp_path: Path, data: bytes, where: str, what: str
) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_blocks(path))
    message = str(caught.value)
    assert message.startswith(f"{path}{where}")
    assert what in message
    assert message.isprintable()


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_blocks(tmp_path / "absent"))
    with pytest.raises(DataError, match="this is a folder"):
        list(read_blocks(tmp_path))


def test_an_abandoned_stream_ends_its_thread(tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(_LINES * 100_000))
    stream = read_blocks(path)
    assert isinstance(stream, Generator)
    next(stream)
    stream.close()
