"""Wrong files from right ones: bytes, lines, cells and JSON or TOML values changed at random.

Everything is drawn from the ``Random`` that is handed in: the same one gives the same files.
"""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final

import tomli_w

Files = dict[str, bytes]
Change = Callable[[bytes, Random], bytes]

TEXTS: Final = (
    *("", " ", "\0", "\ufeff", "\u2028", "\u0085", "\r", "\x0c", "\x1a", "\x1b[31m", "\u202e"),
    *("nan", "NaN", "inf", "-Infinity", "null", "None", "true", "1e999", "1e-400", "-0", "-1"),
    *("0x10", "1_000", "007", "1.5", "9" * 25, "9" * 400, "9" * 5000, "1e5", "+1", "1979-05-27"),
    *("\uff11\uff12", "\u0663", "²", "½", "é", "e\u0301", "\U0001f600", "Ⅷ"),
    *("'", '"', '"""', "\\", "\\x", "\\ud800", "\\u0000", ",", "\t", ";", "=", "#", ".", ":", "/"),
    *("[", "]", "{", "}", "{}", "{history}", "{title}", "%s", "$", "&amp;#0;", "<span", "../", "~"),
    *("[" * 3000, '{"a":' * 3000, "a." * 3000, "x" * 5000, "PAR1", "Q0", "step-1", "CON"),
)
BYTES: Final = (
    *(text.encode() for text in TEXTS),
    *(b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x1f\x8b", b"\x1f\x8b\x08\x00", b"\n"),
)
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, 10**400, -(2**63) - 1),
    *(0.0, -0.5, 1.5, 1e308, 1e-320, float("nan"), float("inf"), -float("inf"), 1547589356557),
    *([], {}, [[]], [None], ["a"], [1, 2], [{}], {"": ""}, {"a": 1}, {"a": {"b": []}}),
    *TEXTS,
    "\ud800",
)


def mutated(files: Files, rng: Random, *, fixed: Sequence[str] = ()) -> Files:
    """Files with one of them, now and then two, changed once or a few times.

    Args:
        fixed: names of files that stay as they are.
    """
    found = dict(files)
    names = sorted(set(files) - set(fixed))
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            found[name] = _changed(name, found, rng)
    if len(names) > 1 and rng.random() < 0.03:
        found[rng.choice(names)] = found[rng.choice(names)]
    return found


def _changed(name: str, files: Files, rng: Random) -> bytes:
    data = files[name]
    structured = STRUCTURED.get(name.rpartition(".")[2])
    if structured is not None and rng.random() < 0.6:
        try:
            return structured(data, rng)
        except (ValueError, RecursionError, TypeError, AttributeError):  # no longer of that form
            pass
    if rng.random() < 0.05:
        other = files[rng.choice(sorted(files))]
        return data[: _place(data, rng)] + other[_place(other, rng) :]
    return rng.choice(ON_BYTES)(data, rng)


def _place(data: bytes, rng: Random) -> int:
    return rng.randint(0, len(data))


def _flip(data: bytes, rng: Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _any_byte(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _insert(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice(BYTES) + data[at:]


def _overwrite(data: bytes, rng: Random) -> bytes:
    at, token = _place(data, rng), rng.choice(BYTES)
    return data[:at] + token + data[at + len(token) :]


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: _place(data, rng)] if rng.random() < 0.7 else data[_place(data, rng) :]


def _drop(data: bytes, rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 5, 40)) :]


def _repeat(data: bytes, rng: Random) -> bytes:
    first, last = sorted((_place(data, rng), _place(data, rng)))
    return data[:last] + data[first : first + 2000] * rng.choice((1, 1, 20)) + data[last:]


def _lines(data: bytes, rng: Random) -> bytes:
    """A line repeated, dropped, moved, emptied or joined to the next one."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    act = rng.randrange(5)
    if act == 0:
        lines.insert(other, lines[at])
    elif act == 1:
        del lines[at]
    elif act == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif act == 3:
        lines[at] = rng.choice((b"", b" ", b"\0", b"\xff", b"\r"))
    else:
        lines[at : at + 2] = [b"".join(lines[at : at + 2])]
    return b"\n".join(lines)


def _line_ends(data: bytes, rng: Random) -> bytes:
    return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", "\u2028".encode())))


def _encoding(data: bytes, rng: Random) -> bytes:
    text = data.decode("utf-8", errors="replace")
    return text.encode(rng.choice(("utf-16", "utf-8-sig", "latin-1", "utf-32")), errors="replace")


def _zip(data: bytes, rng: Random) -> bytes:
    packed = gzip.compress(data, mtime=0)
    return rng.choice((packed, packed[: _place(packed, rng)], packed * 2, _flip(packed, rng)))


def _nothing(data: bytes, rng: Random) -> bytes:
    return rng.choice((data, b""))


ON_BYTES: Final[tuple[Change, ...]] = (
    *(_flip, _any_byte, _insert, _insert, _insert, _overwrite, _overwrite, _cut, _drop, _repeat),
    *(_lines, _lines, _line_ends, _encoding, _zip, _nothing),
)


# Files of a known form: values and keys change, the form stays.


def _json(data: bytes, rng: Random) -> bytes:
    return json.dumps(_other(json.loads(data), rng), ensure_ascii=rng.random() < 0.7).encode(
        errors="surrogatepass"
    )


def _json_lines(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = _json(lines[at], rng)
    return b"\n".join(lines)


def _toml(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.2:
        return _assignment(data, rng)
    changed = _other(tomllib.loads(data.decode()), rng)
    return tomli_w.dumps(changed).encode(errors="surrogatepass")


def _assignment(data: bytes, rng: Random) -> bytes:
    """``key = value`` with another value, as text."""
    lines = data.split(b"\n")
    known = [at for at, line in enumerate(lines) if b"=" in line]
    if known:
        at = rng.choice(known)
        key = lines[at].partition(b"=")[0]
        value = rng.choice((rng.choice(BYTES), b"0x" + b"f" * 5000, b"[" * rng.choice((9, 200))))
        lines[at] = rng.choice((key + b"=" + value, key + value + b"= 1", value + b" = 1"))
    return b"\n".join(lines)


def _cells(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    delimiter = b"\t" if b"\t" in lines[at] else b"," if b"," in lines[at] else b" "
    cells = lines[at].split(delimiter)
    place, token = rng.randrange(len(cells)), rng.choice(BYTES)
    act = rng.randrange(4)
    if act == 0:
        del cells[place]
    elif act == 1:
        cells.insert(place, token)
    else:
        cells[place] = token
    lines[at] = delimiter.join(cells)
    return b"\n".join(lines)


STRUCTURED: Final[dict[str, Change]] = {
    "json": _json,
    "jsonl": _json_lines,
    "toml": _toml,
    "words": _assignment,
    "csv": _cells,
    "trec": _cells,
}


def _other(tree: Any, rng: Random) -> Any:
    """The tree with one value, key or branch changed."""
    places = list(_places(tree))
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    act = rng.randrange(10)
    if act == 0 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif act == 1:
        del holder[key]
    elif act == 2:
        source, from_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(source[from_key], default=str))
    elif act == 3 and isinstance(holder, list):
        holder.insert(key, rng.choice(VALUES))
    elif act == 3:
        holder[rng.choice(TEXTS)] = rng.choice(VALUES)
    elif act == 4 and isinstance(holder[key], str):
        text, at = holder[key], rng.randint(0, len(holder[key]))
        holder[key] = text[:at] + rng.choice(TEXTS) + text[at:]
    elif act == 5 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 0, 1000, 1e10, 0.5)) + rng.choice((0, 1, 0.1))
    else:
        holder[key] = rng.choice(VALUES)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inner if isinstance(tree, dict | list) else ():
        yield tree, key
        yield from _places(value)
