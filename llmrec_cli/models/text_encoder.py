"""Sentence encoders: any transformers model, its last hidden states averaged over a text.

Shape suffixes: B texts, T tokens, D width, I texts of all batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.loading import (
    backbone,
    base_folder,
    check_source,
    load_config,
    loading,
    quiet,
    read_tokenizer,
)
from llmrec_cli.utils.files import hash_file
from llmrec_cli.utils.imports import import_quickly
from llmrec_cli.utils.progress import Advance

_FILES: Final = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True)
class TextReader:
    """An encoder's tokenizer, and how much of a text it reads."""

    tokenizer: Any
    longest: int  # tokens of a text

    def measure_texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, those that are not read too."""
        ids = self.tokenizer(list(texts), add_special_tokens=True, padding=False, verbose=False)
        return [len(one) for one in ids["input_ids"]]

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts are not read to their end."""
        return sum(length > self.longest for length in self.measure_texts(texts))


@dataclass(frozen=True)
class TextEncoder:
    """A model and its tokenizer, to make one vector of each text."""

    model: Any
    reader: TextReader

    def embed_texts(self, texts: Sequence[str], batch: int, advance: Advance) -> Tensor:
        """Vectors [I, D] of length 1, fp32 on the CPU.

        Args:
            batch: texts computed together, of like length.
        """
        lengths = self.reader.measure_texts(texts)
        order = sorted(range(len(texts)), key=lambda at: (lengths[at], at))
        vectors: list[Tensor] = []
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            vectors.append(self._embed_batch([texts[at] for at in some]))
            advance(len(some))
        return torch.cat(vectors)[torch.tensor(order).argsort()]

    def _embed_batch(self, texts: Sequence[str]) -> Tensor:
        encoded = self.reader.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.reader.longest,
            return_tensors="pt",
            verbose=False,
        )
        given = {key: encoded[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            hidden_BTD = self.model(**given).last_hidden_state.float()
        mask_BT1 = given["attention_mask"][..., None]
        mean_BD = (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1)
        found: Tensor = torch.nn.functional.normalize(mean_BD, dim=1).cpu().clone()
        return found


def open_text_reader(source: str, revision: str | None, max_tokens: int, key: str) -> TextReader:
    """What the encoder of a hub id or local folder reads of texts, without its weights.

    Args:
        max_tokens: read of a text at most; fewer where the model has fewer positions.
        key: of the recipe that names it, for messages.

    Raises:
        ArtefactError: it cannot be found or read.
    """
    tokenizer = read_tokenizer(source, revision, key)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ArtefactError(
                f"{backbone(source, key)}: its tokenizer has neither a padding nor an EOS token; "
                "expected one of them"
            )
        tokenizer.pad_token = tokenizer.eos_token  # masked
    tokenizer.padding_side = "right"
    config = load_config(source, revision, key)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or max_tokens
    return TextReader(tokenizer, min(max_tokens, positions, tokenizer.model_max_length))


def load_text_encoder(
    source: str,
    revision: str | None,
    reader: TextReader,
    device: torch.device,
    key: str,
    *,
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """The encoder of a hub id or local folder, in evaluation mode.

    Weights are read from safetensors only, and remote code is never run.

    Args:
        reader: from ``open_text_reader``.
        key: of the recipe that names it, for messages.

    Raises:
        ArtefactError: it cannot be found or read, or is no model of texts.
    """
    with import_quickly():
        import transformers.modeling_utils  # noqa: F401  # what every architecture imports
        from transformers import AutoModel

    check_source(source, revision, key)
    config = load_config(source, revision, key)
    with loading(backbone(source, key)), quiet():
        model, found = AutoModel.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise ArtefactError(
            f"{backbone(source, key)}: has no weights for {missing[0]}; expected a whole model"
        )
    return TextEncoder(model.to(device).eval(), reader)


def hash_text_encoder(source: str, revision: str | None, key: str) -> str:
    """What identifies an encoder: the commit of a hub's repository, or SHA-256 of a folder's files.

    Raises:
        ArtefactError: it cannot be found.
    """
    if source.startswith((".", "/")) and not Path(source).is_dir():
        raise ArtefactError(f"{backbone(source, key)}: no such folder")
    folder, commit = base_folder(source, revision, key)
    if commit is not None:
        return commit
    names = [name for name in _FILES if (folder / name).is_file()]
    names += sorted(path.name for path in folder.glob("*.safetensors"))
    words = "\n".join(f"{name} {hash_file(folder / name)}" for name in names)
    return hashlib.sha256(words.encode()).hexdigest()
