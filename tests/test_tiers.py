"""The fast tier starts no process that it does not account for."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest

QUICK = [sys.executable, "-S", "-c", ""]
REFUSED = pytest.fail.Exception


def test_a_fast_test_starts_no_python() -> None:
    with pytest.raises(REFUSED, match=r"a fast test starts a process \(python"):
        subprocess.run(QUICK, check=True)
    with pytest.raises(REFUSED, match="starts a process"):
        subprocess.run("exit", shell=True, check=True)  # noqa: S602 - it is refused
    with pytest.raises(REFUSED, match=r"\(fork\)"):
        os.fork()
    with pytest.raises(REFUSED, match="spawnv_passfds"):
        multiprocessing.get_context("spawn").Process().start()


def test_other_programs_may_be_started() -> None:
    assert subprocess.run(["true"], check=False).returncode == 0


@pytest.mark.starts_python("this is the control")
def test_a_test_with_a_reason_starts_python() -> None:
    assert subprocess.run(QUICK, check=False).returncode == 0


@pytest.mark.slow
def test_a_slow_test_starts_python() -> None:
    assert subprocess.run(QUICK, check=False).returncode == 0
