"""Artefacts that try to run code, and the canary that tells whether one did."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.utils.files import HASHES_FILE

MODULE = "hostile_canary"  # importable where a test says so; its import is the canary's death


class Payload:
    """Unpickled, it leaves the file ``canary``."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (code(self.canary),)


def code(canary: Path) -> str:
    """Python that leaves the file."""
    return f"open({str(canary)!r}, 'w').close()\n"


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def zipped(canary: Path) -> bytes:
    """What ``torch.save`` writes."""
    import io

    stream = io.BytesIO()
    torch.save({"weight": Payload(canary)}, stream)
    return stream.getvalue()


def change_json(path: Path, changes: Mapping[str, Any]) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **changes}))


def sign(folder: Path) -> None:
    """Make the hashes fit, as whoever forges a folder would."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    found = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in names
        if name != HASHES_FILE
    }
    text = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / HASHES_FILE).write_text(text + "\n")


def write_base(folder: Path) -> None:
    """A tiny Llama with its tokenizer, as an ordinary Hugging Face folder."""
    tokenizer = train_tokenizer(["The user has bought these items before"], vocabulary=400)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **size)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_raw(folder: Path, titles: Sequence[str]) -> None:
    """Reviews and metadata of a shop that sells ``titles``, in the 2018 format; 40 users."""
    items = [f"item{number:03d}" for number in range(len(titles))]
    with (folder / "meta.json").open("w", encoding="ascii") as file:
        for item, title in zip(items, titles, strict=True):
            file.write(json.dumps({"asin": item, "title": title}) + "\n")
    with (folder / "reviews.json").open("w", encoding="ascii") as file:
        for user in range(40):
            for time in range(7):
                review = {
                    "reviewerID": f"user{user}",
                    "asin": items[(user * 7 + time * 3) % len(items)],
                    "overall": 5.0,
                    "unixReviewTime": 1_500_000_000 + user + 86_400 * time,
                }
                file.write(json.dumps(review) + "\n")


RECIPE = """
[data]
format = "amazon2018"
reviews = "./reviews.json"
metadata = "./meta.json"
k_core = 0
history = 5
[model]
backbone = "scratch"
scratch = { hidden = 16, layers = 2, heads = 2, feed_forward = 16, vocabulary = 400 }
[train]
rows = "sequence"
max_steps = 2
batch = 8
validate_rows = 5
learning_rate = 3e-3
[eval]
rows = 20
resamples = 100
"""
