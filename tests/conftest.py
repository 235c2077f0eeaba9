"""Fixtures that every test may use, and what a fast test may not do.

``make test`` runs what is not marked ``slow``: no process that imports torch, and no experiment but
the one that all share.  A fast test that starts a Python process fails, unless it says by the
marker ``starts_python`` why that process is a quick one.
"""

from __future__ import annotations

import functools
import multiprocessing.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from filelock import FileLock
from hypothesis import settings

from llmrec_cli.training.launch import SIGNALS
from tests import warm

_PYTHON = re.compile(r"(python|pypy)[\d.]*|llmrec|accelerate|torchrun|mkdocs|pytest")
_RUNNING: list[pytest.Item] = []  # the test whose set-up, call or teardown is going on

settings.register_profile("no clock", deadline=None)  # an example may take its time
settings.load_profile("no clock")

ROOT = Path(__file__).resolve().parents[1]
LONGEST = (  # files that take a minute or more each
    "integration/test_launch.py",
    "integration/test_processes.py",
    "integration/test_pretrained.py",
    "integration/test_pipeline.py",
    "integration/test_alignments.py",
    "docs/test_docs_pretrained.py",
    "robustness/test_torture.py",
    "integration/test_zero_shot.py",
    "robustness/test_refusals.py",
    "training/test_distributed.py",
    "docs/test_docs_additions.py",
    "robustness/test_races.py",
    "training/test_resume.py",
    "sweep/test_sweep.py",
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Genuine public data beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no genuine data beside the checkout (expected {folder.relative_to(ROOT.parent)})"
        )
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, made once a machine from a package.

    Tests that need it skip where the script that makes it or the package registry is absent.
    """
    script = ROOT.parent / "shared" / "tools" / "pretrained.py"
    if not script.is_file():
        pytest.skip("no script beside the checkout that makes a pretrained model")
    folder = Path(tempfile.gettempdir()) / f"llmrec-tests-{os.getuid()}" / "smollm2"
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            done = subprocess.run([sys.executable, script, part], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no pretrained model to be had: {done.stderr.strip()[-300:]}")
            part.rename(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The folder of what is made once for all workers of this session."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "shared"
    folder.mkdir(exist_ok=True)
    os.environ["TESTS_SHARED"] = str(folder)
    warm.begin()


def keep_environment() -> Iterator[None]:
    """Afterwards every variable is what it was.

    Some libraries set variables when they are imported, and so does ``silence_libraries``.  A test
    that came later would find another environment than alone, and ``tests.warm`` would refuse it.
    """
    before = dict(os.environ)
    yield
    own = {name: os.environ[name] for name in ["PYTEST_CURRENT_TEST"] if name in os.environ}
    if {**os.environ} != before | own:
        os.environ.clear()
        os.environ.update(before | own)


environment_of_module = pytest.fixture(keep_environment, scope="module", autouse=True)
environment_of_test = pytest.fixture(keep_environment, autouse=True)


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    """Afterwards every signal means what it meant, whatever the test installs."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: compressed ones hold the time, and each of several
    workers must find the same names."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: no worker is left alone with one at the end."""
    place = {ROOT / "tests" / name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse a name with an address in memory: every worker would find another one."""
    if " at 0x" in item.nodeid:
        raise pytest.UsageError(f"{item.nodeid}: an object without a name of its own; give ids")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Know which test runs: fixtures of a module are set up within its first test."""
    _RUNNING.append(item)
    try:
        return (yield)
    finally:
        _RUNNING.remove(item)


def pytest_sessionstart() -> None:
    """Every way to start a process is asked about first."""
    started = subprocess.Popen.__init__

    def start(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        word = args if isinstance(args, str | bytes | os.PathLike) else next(iter(args))
        name = Path(os.fsdecode(options.get("executable") or word).split(" ")[0]).name
        if _PYTHON.fullmatch(name) or options.get("shell"):
            refuse_child(name)
        started(self, args, *rest, **options)

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background: all processes
        signal.signal(signal.SIGINT, signal.default_int_handler)  # that tests start would ignore it
    patch = pytest.MonkeyPatch()
    # Typer builds all commands anew for each command line; a user's process has only one.
    patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
    patch.setattr(subprocess.Popen, "__init__", start)
    for owner, name in ((os, "fork"), (os, "forkpty"), (multiprocessing.util, "spawnv_passfds")):
        patch.setattr(owner, name, _asking(getattr(owner, name), name))


def _asking(start: Callable[..., Any], name: str) -> Callable[..., Any]:
    def asking(*args: Any) -> Any:
        refuse_child(name)
        return start(*args)

    return asking


def refuse_child(name: str) -> None:
    """Fail the running test if it is a fast one and gave no reason for a Python process."""
    for item in _RUNNING:
        if not any(item.iter_markers("slow")) and not any(item.iter_markers("starts_python")):
            pytest.fail(f"a fast test starts a process ({name}): mark it slow, or starts_python")
