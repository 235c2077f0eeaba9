"""What a test leaves in the environment is gone before the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from llmrec_cli.cli.app import silence_libraries

OF_MODULE, OF_TEST = "LLMREC_TESTS_OF_A_MODULE", "LLMREC_TESTS_OF_A_TEST"


@pytest.fixture(scope="module")
def variable() -> Iterator[None]:
    """Set for all tests of this module."""
    os.environ[OF_MODULE] = "set"
    yield
    assert os.environ[OF_MODULE] == "set"


@pytest.mark.usefixtures("variable")
def test_a_variable_is_left_behind() -> None:
    os.environ[OF_TEST] = "left"
    os.environ[OF_MODULE] = "another"
    os.environ.pop("PATH")
    silence_libraries()


@pytest.mark.usefixtures("variable")
def test_and_is_gone_in_the_next_test() -> None:
    assert OF_TEST not in os.environ
    assert os.environ[OF_MODULE] == "set"
    assert "PATH" in os.environ


@pytest.mark.usefixtures("variable")
def test_pytest_keeps_its_own_variable() -> None:
    assert "test_pytest_keeps_its_own_variable" in os.environ["PYTEST_CURRENT_TEST"]
