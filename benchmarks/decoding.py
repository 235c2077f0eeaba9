"""Decoding: Hugging Face's constrained ``generate`` beside ours, and our own prefill as the floor.

The peer is ``generate(num_beams=K)`` with ``prefix_allowed_tokens_fn`` (mask "after") or, because
transformers 5 has no mask "before", with a logits processor that masks and renormalises.  Its
prefixes are looked up in a dictionary, so the callback is as cheap as Python can make it.
Models are random with a sharpened head: a weak one gives all users the same list.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.table import Row, alternate
from llmrec_cli.decoding.search import DecodedLists, DecodeOptions, rank_catalogue, score_all
from llmrec_cli.decoding.tree_cache import TreeCache
from llmrec_cli.tensors.trie import Trie, build_trie, paths

Size = Literal["ci", "full"]
Mask = Literal["before", "after"]
PAD, EOS, FIRST = 0, 1, 2
BEAMS = 10
BAR_EXACT, BAR_BEFORE, BAR_AFTER = 12.0, 10.0, 3.0
CHECKED = 2  # users whose exact lists are held against the scores of all items, which take minutes
WIDE, BAR_WIDE = 20, 15.0
BAR_FLOOR = 1 / 1.5  # at most 1.5 times the prefill, where the model is wide (full size)


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int
    layers: int
    users: int
    prompt: int  # tokens, at most
    items: int
    repeats: int


SHAPES: dict[Size, Shape] = {
    "ci": Shape(8_192, 128, 2, 16, 120, 2_000, 3),
    "full": Shape(32_000, 512, 8, 16, 200, 6_000, 2),
}


def semantic_ids(items: int, seed: int = 0) -> list[list[int]]:
    """Four levels of 256 tokens, skewed as a residual quantiser's codes are."""
    draw = random.Random(seed)
    weights = [1 / (code + 10) for code in range(256)]
    levels = [draw.choices(range(256), weights, k=items) for _ in range(4)]
    return [
        [FIRST + 256 * level + code for level, code in enumerate(codes)] + [EOS]
        for codes in zip(*levels, strict=True)
    ]


def titles(items: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """About ten tokens, two or three of them a choice: series, volumes and one-off titles."""
    draw = random.Random(seed)
    heads = [draw.randrange(FIRST, vocabulary) for _ in range(items // 3)]

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(FIRST, vocabulary) for _ in range(draw.randint(low, high))]

    made: list[list[int]] = []
    while len(made) < items:
        stem = [draw.choice(heads), *tokens(0, 4)]
        volumes = draw.choice([1, 1, 1, 2, 4])
        made += [[*stem, *tokens(2, 8), EOS] for _ in range(volumes)]
    return made[:items]


def model_of(shape: Shape) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 32,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # logits of standard deviation 2
        model.get_output_embeddings().weight.normal_(std=2 / shape.width**0.5)
    return model


def prompts_of(shape: Shape, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [
        [draw.randrange(FIRST, shape.vocabulary) for _ in range(draw.randint(n // 2, n))]
        for n in [shape.prompt] * shape.users
    ]


class _MaskAndRenormalise(LogitsProcessor):
    def __init__(self, legal: dict[tuple[int, ...], list[int]], prompt_width: int):
        self._legal, self._width = legal, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, -torch.inf)
        for row, sequence in enumerate(input_ids[:, self._width :].tolist()):
            mask[row, self._legal.get(tuple(sequence), [PAD])] = 0
        return (scores + mask).log_softmax(-1)


def generate(
    model: Any,
    catalogue: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    mask: Mask,
    beams: int = BEAMS,
) -> list[list[list[int]]]:
    """The peer's lists of token sequences, EOS included."""
    legal: dict[tuple[int, ...], set[int]] = {}
    for item in catalogue:
        for at, token in enumerate(item):
            legal.setdefault(tuple(item[:at]), set()).add(token)
    listed = {prefix: list(tokens) for prefix, tokens in legal.items()}
    width = max(map(len, prompts))
    if mask == "after":
        constraint: dict[str, Any] = {
            "prefix_allowed_tokens_fn": lambda _, row: listed.get(
                tuple(row[width:].tolist()), [PAD]
            )
        }
    else:
        processor = _MaskAndRenormalise(listed, width)
        constraint = {"logits_processor": LogitsProcessorList([processor])}
    sequences = model.generate(
        input_ids=torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=max(map(len, catalogue)),
        length_penalty=0.0,
        early_stopping=False,
        do_sample=False,
        **constraint,
    )
    lists = [row[: row.index(EOS) + 1] for row in sequences[:, width:].tolist()]
    return [lists[at : at + beams] for at in range(0, len(lists), beams)]


def _token_lists(trie: Trie, ranked: DecodedLists) -> list[list[list[int]]]:
    _, token_LT, length_L = paths(trie, torch.arange(trie.n_leaves))
    return [
        [token_LT[leaf, : length_L[leaf]].tolist() for leaf in row if leaf >= 0]
        for row in ranked.leaf_BK.tolist()
    ]


def _beam_row(
    name: str, shape: Shape, catalogue: list[list[int]], mask: Mask, beams: int, bar: float
) -> Row:
    model, prompts, trie = model_of(shape), prompts_of(shape), build_trie(catalogue)
    options = DecodeOptions(k=beams, search="beam", beams=beams, mask=mask)
    theirs: list[list[list[list[int]]]] = []  # of every repeat: a generation takes long
    ours: list[DecodedLists] = []
    seconds = alternate(
        lambda: theirs.append(generate(model, catalogue, prompts, mask, beams)),
        lambda: ours.append(rank_catalogue(model, trie, prompts, options)),
        shape.repeats,
    )
    agrees = theirs[-1] == _token_lists(trie, ours[-1])
    return Row(f"beam {beams}, {name}, mask {mask}", "HF generate", *seconds, agrees, bar)


def _exact_row(name: str, shape: Shape, catalogue: list[list[int]]) -> Row:
    model, prompts, trie = model_of(shape), prompts_of(shape), build_trie(catalogue)
    options = DecodeOptions(k=BEAMS)
    theirs: list[list[list[list[int]]]] = []
    ours: list[DecodedLists] = []
    seconds = alternate(
        lambda: theirs.append(generate(model, catalogue, prompts, "before")),
        lambda: ours.append(rank_catalogue(model, trie, prompts, options)),
        shape.repeats,
    )
    ranked = ours[-1]
    true_BK = score_all(model, trie, prompts[:CHECKED], options).topk(BEAMS).indices
    found = [
        sum(item in best for item in row)
        for row, best in zip(theirs[-1], _token_lists(trie, ranked), strict=True)
    ]
    return Row(
        f"exact top {BEAMS}, {name}",
        "HF generate (not exact)",
        *seconds,
        bool((ranked.leaf_BK[:CHECKED] == true_BK).all()) and ranked.proven,
        BAR_EXACT,
        f"the peer's beam found {sum(found) / len(found) / BEAMS:.0%} of the true top {BEAMS}",
    )


def _floor_row(
    name: str, size: Size, shape: Shape, catalogue: list[list[int]], options: DecodeOptions
) -> Row:
    model, prompts, trie = model_of(shape), prompts_of(shape), build_trie(catalogue)

    @torch.no_grad()
    def prefill() -> None:
        TreeCache(model.get_decoder(), prompts, torch.device("cpu"))

    floor, ours = alternate(
        prefill,
        lambda: rank_catalogue(model, trie, prompts, options),
        2 * shape.repeats,
    )
    what = f"exact top {options.k}" if options.search == "exact" else f"beam {options.k}"
    bar = BAR_FLOOR if size == "full" else None
    return Row(
        f"{what}, {name}, beside the floor", "our prefill alone", floor, ours, agrees=True, bar=bar
    )


def rows(size: Size) -> Iterator[Row]:
    """All comparisons at one size."""
    shape = SHAPES[size]
    catalogues = {
        "semantic IDs": semantic_ids(shape.items),
        "titles": titles(shape.items, shape.vocabulary),
    }
    for name, catalogue in catalogues.items():
        yield _exact_row(name, shape, catalogue)
        yield _beam_row(name, shape, catalogue, "before", BEAMS, BAR_BEFORE)
        yield _beam_row(name, shape, catalogue, "after", BEAMS, BAR_AFTER)
        if size == "full":
            yield _beam_row(name, shape, catalogue, "before", WIDE, BAR_WIDE)
        yield _floor_row(name, size, shape, catalogue, DecodeOptions(k=BEAMS))
        beam = DecodeOptions(k=BEAMS, search="beam", beams=BEAMS)
        yield _floor_row(name, size, shape, catalogue, beam)
