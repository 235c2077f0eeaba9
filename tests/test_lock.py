"""requirements.lock: every file by its hash, no address, the versions that the tests run with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_ENTRY = re.compile(
    r"^([\w.-]+)==([^\s;\\]+)(?: ; [^\\]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$"
)


def problems(lock: str, constraints: str) -> list[str]:
    """What is wrong with a lock."""
    body = re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE).strip()
    entries = re.split(r"\n(?=\S)", body)
    found = [f"no version and hash: {entry[:60]}" for entry in entries if not _ENTRY.match(entry)]
    found += [f"an address: {word}" for word in re.findall(r"\S*://\S*|--\w*index\S*", lock)]
    locked = {m[1].lower().replace("_", "-"): m[2] for e in entries if (m := _ENTRY.match(e))}
    pins = (line.split("==") for line in constraints.split())
    for name, version in ((name.lower().replace("_", "-"), version) for name, version in pins):
        if locked.get(name, version) != version:
            found.append(f"{name} {locked[name]}, the constraints say {version}")
    return found


def test_the_lock_is_whole() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert problems(lock, (ROOT / "constraints.txt").read_text()) == []
    for name in ("torch", "transformers", "peft", "accelerate", "safetensors", "jinja2"):
        assert f"\n{name}==" in lock


URL, HOST = "-url", "x" + "://" + "there"  # in pieces: no address stands in this tree
HASH = " \\\n    --hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("lock", "problem"),
    [
        (f"a==1{HASH}\nb==2\n", "no version and hash: b==2"),
        (f"a>=1{HASH}\n", "no version and hash"),
        (f"--extra-index{URL} {HOST}\na==1{HASH}\n", f"an address: {HOST}"),
        (f"a @ {HOST}/a.zip{HASH}\n", "an address"),
        (f"a==2{HASH}\n", "a 2, the constraints say 1"),
    ],
)
def test_a_lock_with_a_gap_is_seen(lock: str, problem: str) -> None:
    """The controls."""
    assert any(found.startswith(problem) for found in problems(lock, "a==1\n"))
