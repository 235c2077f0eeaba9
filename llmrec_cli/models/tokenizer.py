"""Tokenizers: the embedded byte-level BPE, and the token ids that every stage relies on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmrec_cli.errors import ArtefactError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Codec:
    """Text to token ids, with the special ids taken from the tokenizer and never from constants.

    Text is text: what reads like a special token in a title or a wording is spelt out.
    """

    tokenizer: Any
    eos: int
    start: int  # what a prompt of bare items begins with: BOS where there is one, else EOS

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, nothing added (responses: they follow a prompt)."""
        return self._ids(texts, special=False)

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as the beginning of a sequence: BOS where the model wants it."""
        prompts = self._ids(texts, special=True)
        return [ids[:-1] if ids and ids[-1] == self.eos else ids for ids in prompts]

    def spell(self, ids: Sequence[int]) -> str:
        """The text of some token ids; special tokens by their names."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            split_special_tokens=True,  # "</s>" in a title is letters, and ends nothing
            padding=False,  # whatever the tokenizer's own file says
            truncation=False,
            verbose=False,  # of lengths: what the backbone has room for is asked elsewhere
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def make_codec(tokenizer: Any) -> Codec:
    """Wrap a Hugging Face tokenizer.

    Raises:
        ArtefactError: the tokenizer has no EOS token; an item could not end.
    """
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None:
        raise ArtefactError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token: items cannot end; "
            "choose a backbone whose tokenizer defines eos_token"
        )
    return Codec(tokenizer, eos=int(eos), start=int(eos if bos is None else bos))


def add_item_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Give a tokenizer the tokens of semantic IDs, as special tokens.

    They are looked up, never found in text: ``<a_1>`` in a title or a wording stays letters.
    """
    tokenizer.add_tokens(list(tokens), special_tokens=True)


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``, as an ordinary Hugging Face tokenizer.

    Args:
        texts: the catalogue's titles and the prompt's wording; may be empty.
        vocabulary: largest size, special tokens and the 256 bytes included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
