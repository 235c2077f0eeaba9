"""JSON lines (or Python literals) as typed records.

The fast path decodes a whole block into msgspec Structs, skipping every field that nobody asked
for.  Only a block that it refuses is read again line by line, to accept what the fast path is too
strict for (lone surrogates in a review's text, Python literals) and to name every bad line.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

import msgspec
import numpy as np

from llmrec_cli.data.readers.block import STRICT, BadLines, Block, fault, shown
from llmrec_cli.data.readers.lines import blocks, document
from llmrec_cli.data.readers.literals import parse_literal
from llmrec_cli.errors import LineFault

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
class Batch(Generic[T]):
    """The records of one block, in order."""

    block: Block
    rows: list[T]


def read_records(path: Path, shape: Shape[T], bad: BadLines = STRICT) -> Iterator[Batch[T]]:
    """Stream the records of a JSON-lines file.

    Args:
        path: the file.
        shape: what its lines should be.
        bad: what becomes of the others.

    Raises:
        DataError: see ``lines.blocks``; and a line that is not one object of the expected fields.
    """
    decoder = msgspec.json.Decoder(shape.record)
    for block in blocks(path, bad):
        rows = _decode_block(block, decoder)
        yield Batch(block, rows) if rows else _decode_lines(block, shape, decoder, bad)


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
) -> Batch[T]:
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
    return Batch(block.without(left_out), rows)


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
        raise fault(path, number, "a field's name is not valid Unicode") from None


def parse_object(
    path: Path, number: int, line: bytes, what: str, literals: bool = False
) -> dict[str, Any]:
    """Parse one line as a JSON object, or as a Python dict where ``literals`` are accepted.

    Raises:
        DataError: naming file, line and the reason.
    """
    if line.lstrip().startswith(b"["):
        raise fault(
            path, number, f"a JSON array; expected {what} as one object per line: jq -c '.[]' FILE"
        )
    try:
        value = _parse_line(line, literals)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise fault(path, number, f"{_not_json(line, what, literals)} ({reason})") from None
    if not isinstance(value, dict):
        raise fault(path, number, f"{shown(value)} is no object; expected {what} on each line")
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
        told = f"a number of more than {longest} digits" if "digits" in str(error) else str(error)
        raise ValueError(told) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _not_json(line: bytes, what: str, literals: bool) -> str:
    start = line.lstrip()[:1]
    if start != b"{":
        hint = "; CSV files have formats of their own" if line.count(b",") >= 2 else ""
        return f"{shown(line.decode())} is no JSON object; expected {what} on each line{hint}"
    if not literals and line.lstrip()[1:].lstrip().startswith((b"'", b'u"', b"u'")):
        return f"a Python literal, as in amazon2014 files; expected {what} as JSON"
    return f"invalid JSON; expected {what} as one whole object on this line"


def _explain_error(
    path: Path, number: int, fields: dict[str, Any], what: str, error: str
) -> NoReturn:
    """Say msgspec's complaint in terms of the file: field, value, expectation."""
    missing = re.search(r"missing required field `(.+?)`", error)
    if missing:
        other = mistaken(fields, what)
        problem = f'has no "{missing[1]}"' + (f": {other}" if other else "")
        raise fault(path, number, f"{problem}; expected {what}")
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
    raise fault(path, number, f'"{field}" is {shown(value)}, expected {expected}')


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


def mistaken(fields: Mapping[str, object], what: str) -> str | None:
    """``"this is ..."`` where a line is plainly another Amazon file's than ``what`` says."""
    found = kinds_of_line(fields) if "amazon" in what else ()
    return f"this is {' or '.join(found)}" if found and what not in found else None


def read_document(path: Path) -> bytes:
    """The text of a JSON document; of a large one's beginning, its complete entries.

    Raises:
        DataError, MachineError: see ``lines.blocks``.
    """
    data, whole = document(path)
    return data if whole else _complete_entries(data)


def _complete_entries(data: bytes) -> bytes:
    """The beginning of an array or object as one that ends after its last complete entry.

    What is neither, or goes wrong in its first half, stays as it is: its reader will say so.
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
        DataError: see ``lines.blocks``; or not the expected object.
    """
    data = read_document(path)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise fault(path, 1, f"{str(error).replace('`', '')}; expected {what}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        found = re.search(r"byte (\d+)", str(error))
        line = 1 + data.count(b"\n", 0, int(found[1])) if found else 1 + data.count(b"\n")
        raise fault(path, line, f"invalid JSON ({error}); expected {what}") from None
