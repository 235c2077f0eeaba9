"""Tokenizers: the embedded byte-level BPE, and the token ids that every stage relies on."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from llmrec_cli.errors import ArtefactError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


OPEN, CLOSE = "\x02", "\x03"  # around a token of a wording; titles in prompts have no such signs
_CUT_AT_ONCE: Final = 1024  # texts that are cut together
_LOOKS_SPECIAL: Final = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn)>|\[/?INST\]"
)


@dataclass(frozen=True)
class Codec:
    """Text to token ids, with the special ids taken from the tokenizer and never from constants.

    Text is text: what reads like a special token in a title is spelt out. A wording may have such
    tokens: ``mark_words`` finds them before titles are put in, and ``encode_prompts`` and
    ``encode_words`` keep what is marked.
    """

    tokenizer: Any
    eos: int
    start: int  # what a prompt of bare items begins with: BOS where there is one, else EOS
    specials: frozenset[str] = frozenset()  # tokens that a wording may have

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, nothing added (responses: they follow a prompt)."""
        return _spell_out(self.tokenizer, texts, added=False)

    def encode_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text of marked words, nothing added."""
        return self._encode_marked(texts, added=False)

    def encode_prompts(self, texts: Sequence[str], *, whole: bool = False) -> list[list[int]]:
        """Token ids of each text of marked words as the beginning of a sequence.

        BOS comes first where the model wants it, once, even if the wording begins with it.

        Args:
            whole: the texts have all that their sequences begin with, as those of a chat have.
        """
        if whole:
            return self.encode_words(texts)
        bos, eos = self._added_tokens
        prompts = self._encode_marked(texts, added=True)
        if bos is not None:
            prompts = [ids[1:] if ids[:2] == [bos, bos] else ids for ids in prompts]
        return [ids[:-1] if eos is not None and ids[-1:] == [eos] else ids for ids in prompts]

    def mark_words(self, words: str) -> str:
        """A piece of a wording, its special tokens marked."""
        return self._pattern.sub(rf"{OPEN}\g<0>{CLOSE}", words) if self.specials else words

    def cut(self, texts: Sequence[str], most: int) -> list[str]:
        """What each text begins with, in at most ``most`` tokens.

        It ends behind a token, and where a token is a part of a character, before that character.

        Raises:
            ArtefactError: the tokenizer cannot say where in a text its tokens end.
        """
        if not self.tokenizer.is_fast:
            raise ArtefactError(
                f"tokenizer {self.tokenizer.name_or_path!r} does not say where in a text a token "
                "ends, so no description can be cut: expected a tokenizer.json"
            )
        blocks = range(0, len(texts), _CUT_AT_ONCE)
        return [
            cut for at in blocks for cut in self._cut_block(texts[at : at + _CUT_AT_ONCE], most)
        ]

    def _cut_block(self, texts: Sequence[str], most: int) -> list[str]:
        """``cut`` of a few texts: where all their tokens end takes some hundred bytes a token."""
        shortened = list(texts)
        waiting = {
            at: sorted({0, *ends[:most]})
            for at, ends in enumerate(self._list_ends(texts))
            if len(ends) > most
        }
        while waiting:  # cut off, a text may be read as other tokens, and more of them
            beginnings = [texts[at][: ends.pop()].rstrip() for at, ends in waiting.items()]
            for at, text, ids in zip(
                list(waiting), beginnings, self.encode(beginnings), strict=True
            ):
                if len(ids) <= most or not waiting[at]:
                    shortened[at] = text
                    del waiting[at]
        return shortened

    def _list_ends(self, texts: Sequence[str]) -> list[list[int]]:
        """For each token of each text, where its last, perhaps unfinished, character ends."""
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=True,
            padding=False,
            truncation=False,
            verbose=False,
        )
        return [[end for _, end in spans] for spans in encoded["offset_mapping"]]

    def find_unknown(self, words: str) -> list[str]:
        """What looks like a special token in a piece of a wording, and is none here."""
        known = self.tokenizer.get_vocab()
        return [found for found in _LOOKS_SPECIAL.findall(words) if found not in known]

    def spell(self, ids: Sequence[int]) -> str:
        """The text of some token ids; special tokens by their names."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _encode_marked(self, texts: Sequence[str], *, added: bool) -> list[list[int]]:
        if not any(OPEN in text for text in texts):
            return _spell_out(self.tokenizer, texts, added=added)
        tokenizer, number_of = self._marking
        encoded = _spell_out(tokenizer, texts, added=added)
        return [[number_of.get(token, token) for token in ids] for ids in encoded]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.specials, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, longest_first)))

    @cached_property
    def _added_tokens(self) -> tuple[int | None, int | None]:
        """BOS and EOS, where the tokenizer puts them around a text."""
        (plain,) = _spell_out(self.tokenizer, ["a"], added=False)
        (whole,) = _spell_out(self.tokenizer, ["a"], added=True)
        begins = len(whole) > len(plain) and whole[0] == self.tokenizer.bos_token_id
        ends = len(whole) > len(plain) and whole[-1] == self.eos
        return whole[0] if begins else None, self.eos if ends else None

    @cached_property
    def _marking(self) -> tuple[Any, dict[int, int]]:
        """A copy of the tokenizer with a token for each marked one, and whose numbers they are.

        Special tokens are spelt out in it, and those that are added here are none.

        Raises:
            ArtefactError: the tokenizer finds no token in a text.
        """
        from tokenizers import AddedToken

        tokenizer = copy.deepcopy(self.tokenizer)
        number_of = dict[int, int]()
        for number, token in self.tokenizer.added_tokens_decoder.items():
            if token.content in self.specials:
                marked = f"{OPEN}{token.content}{CLOSE}"
                strips = {"lstrip": token.lstrip, "rstrip": token.rstrip}
                tokenizer.add_tokens(AddedToken(marked, normalized=False, special=False, **strips))
                number_of[tokenizer.convert_tokens_to_ids(marked)] = number
                if _spell_out(tokenizer, [marked], added=False)[0][-1:] != [
                    tokenizer.convert_tokens_to_ids(marked)
                ]:
                    raise ArtefactError(
                        f"tokenizer {self.tokenizer.name_or_path!r} finds no special token such as "
                        f"{token.content!r} in a prompt: expected a tokenizer.json"
                    )
        return tokenizer, number_of


def _spell_out(tokenizer: Any, texts: Sequence[str], *, added: bool) -> list[list[int]]:
    """Token ids; special tokens are letters, as ``</s>`` in a title, which ends nothing.

    Args:
        added: with the tokens that the tokenizer puts around a text.
    """
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=added,
        return_attention_mask=False,
        split_special_tokens=True,
        padding=False,  # whatever the tokenizer's own file says
        truncation=False,
        verbose=False,  # of lengths: what the backbone has room for is asked elsewhere
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def make_codec(tokenizer: Any, item_tokens: Iterable[str] = ()) -> Codec:
    """Wrap a Hugging Face tokenizer.

    Args:
        item_tokens: tokens of semantic IDs, which are letters in a wording.

    Raises:
        ArtefactError: the tokenizer has no EOS token; an item could not end.
    """
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None:
        raise ArtefactError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token: items cannot end; "
            "choose a backbone whose tokenizer defines eos_token"
        )
    own = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    specials = frozenset(own).difference(item_tokens)
    return Codec(tokenizer, int(eos), int(eos if bos is None else bos), specials)


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
