"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmrec_cli.engine.stop import SIGNALS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Genuine public data beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no genuine data beside the checkout (expected {folder.relative_to(ROOT.parent)})"
        )
    return folder


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
