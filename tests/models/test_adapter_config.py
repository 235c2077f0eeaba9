"""Configurations of other people: JSON that is none, and keys that are no names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.loading import check_adapter


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 5000, r"adapter_config\.json: cannot be read as JSON"),
        (json.dumps({"peft_type": "LORA", "a\nb": 1}), r"adapter_config\.json: a\\nb = 1: exp"),
    ],
)
def test_an_adapters_configuration_is_refused_in_one_line(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ArtefactError, match=message) as told:
        check_adapter(tmp_path)
    assert "\n" not in str(told.value)
