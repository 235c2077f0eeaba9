"""Secrets that came along in an address, an override or the environment: never written, never said.

What is taken out: user and password of a URL; tokens by their well-known forms; values of
environment variables whose names say what they are (HF_TOKEN, WANDB_API_KEY, AWS_SECRET_...).
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

HIDDEN: Final = "[secret]"
_IN_URL: Final = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_TOKEN: Final = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[\w-]{20,})"
)
_NAME: Final = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL")
_PLACES: Final = ("_PATH", "_FILE", "_DIR")  # where a secret lies is none
_SHORTEST: Final = 8  # what is shorter would also be found by chance


def redacted(text: str) -> str:
    """``text`` without secrets."""
    shown = _TOKEN.sub(HIDDEN, _IN_URL.sub(HIDDEN, text))
    for name, value in os.environ.items():
        secret = _NAME.search(name.upper()) and not name.upper().endswith(_PLACES)
        if secret and len(value) >= _SHORTEST:
            shown = shown.replace(value, HIDDEN)
    return shown


def redacted_in(value: Any) -> Any:
    """The same for every text in lists and dictionaries."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_in(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_in(inner) for inner in value]
    return value
