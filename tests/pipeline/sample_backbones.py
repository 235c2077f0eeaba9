"""Tiny checkpoints in the hub's layout, one for every way in which tokenizers differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM

TITLES = (
    "Red kite",
    "Blue kite",
    "Red kite, large",
    "red KITE",
    "Café Noir",
    "Cafe noir",
    "  leading and trailing  ",
    "two  spaces  inside",
    "Sledge & rope",
    "Don't stop , now .",
    "a <mask> b",
    "a<mask>b",
    "</s>x and [SEP]y",
    "<|endoftext|>",
    "日本語の本",
    "🪁 and 🛷",
    "naïve",
    "A title of quite some words, which none of the small tokenizers cuts short",
)
TEXTS = [f'"{title}"' for title in TITLES] + ["The user has bought the following items before"] * 3
UNK, PAD = "<unk>", "<pad>"
SPECIAL = [UNK, "<s>", "</s>", PAD]
Json = dict[str, Any]


def trained(tokenizer: Tokenizer, special: list[str] | None = None) -> Tokenizer:
    """A tokenizer of 400 tokens, trained on the titles."""
    special = SPECIAL if special is None else special
    kinds: dict[str, Callable[[], Any]] = {
        "BPE": lambda: trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
            if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
            else [],
        ),
        "Unigram": lambda: trainers.UnigramTrainer(
            vocab_size=160, special_tokens=special, unk_token=UNK, show_progress=False
        ),
        "WordPiece": lambda: trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=special, show_progress=False
        ),
    }
    tokenizer.train_from_iterator(TEXTS, kinds[type(tokenizer.model).__name__]())
    return tokenizer


def wrapped(tokenizer: Tokenizer, head: str = "", tail: str = "") -> Tokenizer:
    """With a post-processor that puts special tokens around every text."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (head, tail) if token]
    single = " ".join(part for part in (head, "$A", tail) if part)
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, ["<|endoftext|>", *SPECIAL])


def byte_level_prefixed() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def metaspace(scheme: str, *, bytes_too: bool = False) -> Tokenizer:
    """As Llama 2's sentencepiece: a space becomes a letter, and one may stand in front."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=bytes_too, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))] if bytes_too else SPECIAL
    if not bytes_too:
        return trained(tokenizer)
    learner = trainers.BpeTrainer(vocab_size=440, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, learner)
    plain = json.loads(tokenizer.to_str())  # bytes are no special tokens, only training said so
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] in SPECIAL]
    made: Tokenizer = Tokenizer.from_str(json.dumps(plain))
    return made


def unigram() -> Tokenizer:
    """As T5's: ends every text in EOS, knows no BOS, and finds EOS in text, where it is spelt."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(" {2,}", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return wrapped(trained(tokenizer, ["<unk>", "<eos>", "<pad>"]), tail="<eos>")


def word_piece() -> Tokenizer:
    """As BERT's: lower case, no accents, no white space; decoding does not give the text back."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token=special[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return wrapped(trained(tokenizer, special), "[CLS]", "[SEP]")


def cutting_and_padding() -> Tokenizer:
    """Whose own file says to cut after four tokens and to pad to 64."""
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64, pad_id=tokenizer.token_to_id("<pad>"), pad_token=PAD)
    return tokenizer


def greedy_added_tokens() -> Tokenizer:
    """With a word of its own that eats the white space around it."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("kite", single_word=True, lstrip=True)])
    return tokenizer


EOS = {"eos_token": "</s>"}
ALL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
UNIGRAM = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
BERT = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
Made = tuple[Callable[[], Tokenizer], Json]  # what is made, and what tokenizer_config.json says
TOKENIZERS: Mapping[str, Made] = {
    "bytes, EOS alone": (byte_level, {"eos_token": "<|endoftext|>"}),
    "bytes, BOS is EOS is PAD": (
        byte_level,
        dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
    ),
    "bytes, BOS that nothing adds": (byte_level, ALL),
    "bytes, BOS added": (lambda: wrapped(byte_level(), "<s>"), ALL),
    "bytes, BOS and EOS added": (lambda: wrapped(byte_level(), "<s>", "</s>"), ALL),
    "bytes, PAD is EOS": (lambda: wrapped(byte_level(), "<s>"), {**ALL, "pad_token": "</s>"}),
    "bytes, UNK and EOS": (byte_level, {"unk_token": "<unk>", **EOS}),
    "bytes, a space in front": (byte_level_prefixed, EOS),
    "bytes, spaces cleaned up": (byte_level, {**ALL, "clean_up_tokenization_spaces": True}),
    "bytes, add_bos_token": (byte_level, {**ALL, "add_bos_token": True, "add_eos_token": True}),
    "bytes, a short model_max_length": (byte_level, {**ALL, "model_max_length": 3}),
    "bytes, left sides": (
        byte_level,
        {**ALL, "padding_side": "left", "truncation_side": "left"},
    ),
    "bytes, cut and padded": (cutting_and_padding, ALL),
    "bytes, added tokens strip": (greedy_added_tokens, ALL),
    "bytes, a chat template": (byte_level, {**ALL, "chat_template": "{{ messages[0].content }}"}),
    "bytes, a broken chat template": (byte_level, {**ALL, "chat_template": "{% for {{ x"}),
    "metaspace always": (lambda: wrapped(metaspace("always"), "<s>"), ALL),
    "metaspace first": (lambda: wrapped(metaspace("first"), "<s>"), ALL),
    "metaspace never": (lambda: metaspace("never"), ALL),
    "metaspace, bytes for what is unknown": (
        lambda: wrapped(metaspace("first", bytes_too=True), "<s>"),
        ALL,
    ),
    "unigram, EOS added": (unigram, UNIGRAM),
    "word pieces": (word_piece, BERT),
}


def write_checkpoint(
    folder: Path,
    tokenizer: Tokenizer,
    said: Json,
    *,
    vocabulary: int | None = None,
    hidden: int = 16,
) -> None:
    """A Llama of two layers with random weights, and the tokenizer's files.

    Args:
        vocabulary: rows of the embedding; None: the tokenizer's, rounded up to 64.
    """
    size = vocabulary or -(-tokenizer.get_vocab_size() // 64) * 64
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,  # far from uniform: a wrong token changes a list
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config_file = {"tokenizer_class": "PreTrainedTokenizerFast", **said}
    (folder / "tokenizer_config.json").write_text(json.dumps(config_file))


def write_raw(folder: Path, titles: Sequence[str] = TITLES) -> None:
    """Reviews and metadata of a shop that sells ``titles``, in the 2018 format; 30 users."""
    known = [{"asin": f"item{n:02d}", "title": title} for n, title in enumerate(titles)]
    bought = [
        {
            "reviewerID": f"user{user}",
            "asin": f"item{(user * 7 + time * 5) % len(titles):02d}",
            "overall": 5.0,
            "unixReviewTime": 1_500_000_000 + user + 86_400 * time,
        }
        for user in range(30)
        for time in range(6)
    ]
    for name, lines in (("meta", known), ("reviews", bought)):
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


RECIPE = """
[data]
format = "amazon2018"
reviews = "./reviews.json"
metadata = "./meta.json"
k_core = 0
history = 4
[prompt]
template = "items"
[model]
backbone = "./base"
[train]
rows = "window"
max_steps = 1
batch = 8
validate_rows = 4
learning_rate = 1e-2
[eval]
rows = 8
resamples = 100
"""
