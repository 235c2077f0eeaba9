"""Commands from the server: what a test finds is what it would find in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.slow

FAKE = """
from llmrec_cli.cli.app import silence_libraries
silence_libraries()
import atexit, os, signal, sys
atexit.register(lambda: print("left"))
print("begun", repr(sys.stdin.read()), os.getcwd())
match sys.argv[1:]:
    case ["bytes"]:
        sys.stdout.flush()
        os.write(1, b"\\xff caf\\xc3\\xa9\\r\\nnext\\r")
    case ["words"]:
        sys.exit("no such thing")
    case ["number"]:
        sys.exit(7)
    case ["error"]:
        raise ValueError("broken")
    case ["interrupt"]:
        raise KeyboardInterrupt
    case ["killed"]:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    case ["environment"]:
        from huggingface_hub import constants
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        print(sorted(os.environ.items()), constants.HF_HUB_DISABLE_PROGRESS_BARS)
    case ["much"]:
        print("x" * 5_000_000)
"""


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that does as it is told, in the working folder of the command."""
    (tmp_path / "fake.py").write_text(FAKE)


def both(cwd: Path, *words: str) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
    """Code, output and the last line of the errors: from the server, and from its own process."""
    command = [sys.executable, "-m", "fake", *words]
    own = subprocess.run(
        command,
        cwd=cwd,
        env=dict(os.environ),  # readline adds LINES and COLUMNS to what a process inherits
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
    )
    served = warm.run(cwd, words, "fake")
    assert served is not None
    first, second = (
        (done.returncode, done.stdout, "".join(done.stderr.splitlines()[-1:]))
        for done in (served, own)
    )
    return first, second


@pytest.mark.parametrize(
    "word",
    ["nothing", "environment", "bytes", "words", "number", "error", "interrupt", "killed", "much"],
)
def test_a_command_ends_as_in_a_process_of_its_own(tmp_path: Path, word: str) -> None:
    served, own = both(tmp_path, word)
    assert served == own


def test_commands_at_once_do_not_get_each_other_s_answers(tmp_path: Path) -> None:
    assert warm.run(tmp_path, ("nothing",), "fake") is not None
    with warm._busy:
        assert warm.run(tmp_path, ("nothing",), "fake") is None


def test_another_environment_is_none_of_the_server_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warm.run(tmp_path, ("nothing",), "fake") is not None
    monkeypatch.setenv("LLMREC_OF_A_TEST", "1")
    assert warm.run(tmp_path, ("nothing",), "fake") is None


def test_a_server_has_the_session_s_environment_whoever_is_the_first_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm._start().stop()
    warm._start.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("LLMREC_OF_A_TEST", "1")
        assert warm.run(tmp_path, ("nothing",), "fake") is None
    assert warm.run(tmp_path, ("nothing",), "fake") is not None


def test_after_a_server_that_was_killed_there_is_another(tmp_path: Path) -> None:
    process = warm._start().process
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match=r"tests\.warm ended with -9"):
        warm.run(tmp_path, ("nothing",), "fake")
    assert warm.run(tmp_path, ("nothing",), "fake") is not None
    assert warm._start().process.pid != process.pid
