"""Pushing to the hub: its own client against a hub on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from llmrec_cli.errors import MachineError, RecipeError
from llmrec_cli.serving import export
from tests.serving.fake_hub import fake_hub

LOGIN = "hf_secret"


def test_pushing_creates_a_private_repository(tmp_path: Path) -> None:
    files = {"README.md": b"---\nlicense: mit\n---\n", "model.safetensors": bytes(range(256))}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with fake_hub() as server:
        api = HfApi(endpoint=server.address, token=LOGIN)
        url = export.push(tmp_path, "acme/toys", public=False, api=api)
        assert url == f"{server.address}/acme/toys"
        assert server.private == {"acme/toys": True}
        [uploaded] = server.commits
        assert uploaded == files
        export.push(tmp_path, "acme/public", public=True, api=api)
        assert server.private["acme/public"] is False
        with pytest.raises(RecipeError, match="exists and is public; add --public"):
            export.push(tmp_path, "acme/public", public=False, api=api)
        assert len(server.commits) == 2


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_push_that_fails_is_one_line_without_the_token(tmp_path: Path, status: int) -> None:
    with fake_hub() as server:
        server.refuse, server.says = status, f"your token\n {LOGIN}\nis wrong"
        api = HfApi(endpoint=server.address, token=LOGIN)
        with pytest.raises(MachineError) as error:
            export.push(tmp_path, "acme/toys", public=False, api=api)
    message = str(error.value)
    assert message.startswith("--push-to acme/toys: not pushed: ")
    assert message.endswith(f"; the export is in {tmp_path}")
    assert str(status) in message
    assert LOGIN not in message
    assert "\n" not in message


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with fake_hub() as server:
        pass  # nobody listens there any more
    api = HfApi(endpoint=server.address, token=LOGIN)
    with pytest.raises(MachineError, match=r"not pushed: .*refused.*; the export is in"):
        export.push(tmp_path, "acme/toys", public=False, api=api)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "-a", "acme/x..y"])
def test_names_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(RecipeError, match=r"--dataset .*: expected a name on the hub, OWNER/NAME"):
        export.check_hub_id("--dataset", name)
    export.check_hub_id("--dataset", "acme/Toys-2.0_x")
