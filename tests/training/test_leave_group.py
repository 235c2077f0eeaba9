"""A command leaves its process group before Python ends: Gloo's threads could abort it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmrec_cli.cli import app
from llmrec_cli.errors import UserError
from llmrec_cli.training.launch import leave_group


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """This process alone in a group."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_main(monkeypatch: pytest.MonkeyPatch, ended: BaseException | None) -> int:
    """The exit code of a command line whose command ends so."""

    def command() -> None:
        if ended is not None:
            raise ended

    monkeypatch.setattr(app, "_command", command)
    with pytest.raises(SystemExit) as raised:
        app.main()
    code = raised.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.usefixtures("group")
def test_a_finished_command_leaves_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.all_reduce(torch.ones(1))
    assert run_main(monkeypatch, None) == 0
    assert not torch.distributed.is_initialized()
    leave_group()  # there is none any more


@pytest.mark.usefixtures("group")
def test_a_failed_command_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, UserError("broken")) != 0
    assert torch.distributed.is_initialized()
