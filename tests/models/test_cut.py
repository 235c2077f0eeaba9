"""Texts cut to a number of tokens: never within a character, never too long."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.tokenizer import Codec, make_codec
from tests.pipeline.sample_backbones import TOKENIZERS

KINDS: tuple[str, ...] = (
    "bytes, BOS and EOS added",
    "metaspace first",
    "metaspace, bytes for what is unknown",
)
KINDS += ("bytes, a space in front", "unigram, EOS added", "word pieces")
TEXTS = [
    "Red kite, large",
    "🪁 and 🛷🛷🛷",
    "日本語の本 日本",
    "a  b\u00a0c",
    "naïve café",
    "</s> x",
    "",
]


def codec_of(name: str) -> Codec:
    made, said = TOKENIZERS[name]
    return make_codec(PreTrainedTokenizerFast(tokenizer_object=made(), **said))


CODECS = {name: codec_of(name) for name in KINDS}


def check(codec: Codec, text: str, most: int) -> str:
    """The text, cut; it holds what it promises."""
    (cut,) = codec.cut([text], most)
    whole = len(codec.encode([text])[0])
    assert text.startswith(cut)
    assert len(codec.encode([cut])[0]) <= most or whole <= most
    assert (cut == text) or whole > most
    return cut


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_beginning_fits(name: str, text: str) -> None:
    lengths = [len(check(CODECS[name], text, most)) for most in range(1, 30)]
    assert lengths == sorted(lengths)
    assert lengths[-1] == len(text)


@pytest.mark.parametrize("name", CODECS)
@given(text=st.text(max_size=40), most=st.integers(1, 12))
def test_of_any_text(name: str, text: str, most: int) -> None:
    check(CODECS[name], text, most)


def test_a_character_of_several_tokens_is_kept_whole_or_left_out() -> None:
    codec = CODECS["bytes, BOS and EOS added"]
    text = "ab☃☃"
    tokens = len(codec.encode([text])[0])
    assert tokens > 4  # bytes
    found = {codec.cut([text], most)[0] for most in range(1, tokens + 1)}
    assert found <= {"a", "ab", "ab☃", text}
    assert {"ab", "ab☃", text} <= found
    assert codec.cut(["☃"], 1) == [""]


def test_texts_are_cut_one_by_one() -> None:
    codec = CODECS["bytes, BOS and EOS added"]
    assert codec.cut([], 3) == []
    assert codec.cut(["Red kite", "a"], 100) == ["Red kite", "a"]
    assert codec.cut(TEXTS, 3) == [codec.cut([text], 3)[0] for text in TEXTS]


def test_a_space_at_the_end_goes() -> None:
    codec = CODECS["metaspace first"]
    cuts: list[Any] = [codec.cut(["Red kite, large kite"], most)[0] for most in range(1, 9)]
    assert not any(cut != cut.rstrip() for cut in cuts)


def test_a_tokenizer_that_knows_no_places_is_refused() -> None:
    class Slow:
        is_fast, name_or_path = False, "own"

    with pytest.raises(ArtefactError, match="tokenizer 'own' does not say where in a text"):
        Codec(Slow(), eos=0, start=0).cut(["Red kite"], 1)


def test_a_large_catalogue_is_cut_a_block_at_a_time() -> None:
    """The places of all tokens of a million descriptions take more memory than a machine has."""
    codec = CODECS["bytes, BOS and EOS added"]
    asked: list[int] = []

    class Counting:
        is_fast = True

        def __call__(self, texts: list[str], **options: Any) -> Any:
            asked.append(len(texts))
            return codec.tokenizer(texts, **options)

    texts = [f"{n} {TEXTS[n % len(TEXTS)]}" for n in range(2500)]
    cuts = Codec(Counting(), codec.eos, codec.start).cut(texts, 3)
    assert max(asked) <= 1024
    assert cuts == [codec.cut([text], 3)[0] for text in texts]
