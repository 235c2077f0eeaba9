"""Slow, obvious ways of decoding that the fast ones are compared with, and small worlds to try.

Not a test file.  The peers know nothing of llmrec's trie beyond its leaf numbers: they hold the
catalogue as a dictionary from prefix to legal tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

EOS, PAD, VOCAB = 1, 0, 61
Tokens = tuple[int, ...]
Mask = Literal["before", "after"]


def small_model(kind: str, seed: int, sharpness: float = 8.0, **changes: Any) -> PreTrainedModel:
    """Two random layers; ``sharpness`` scales the output head: 1 is near uniform, 8 is peaked."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "eos_token_id": EOS,
        "bos_token_id": 2,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
        **changes,
    }
    if kind == "qwen3":
        model: PreTrainedModel = Qwen3ForCausalLM(Qwen3Config(head_dim=8, **sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(sharpness / 8)
    return model.eval()


def awkward_catalogue(seed: int, n_items: int = 40) -> list[list[int]]:
    """Shared prefixes, duplicates, one-token titles, a forced start and long forced chains."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(n: int, below: int = VOCAB) -> list[int]:
        return torch.randint(3, below, (n,), generator=draw).tolist()

    items = [tokens(int(n)) for n in torch.randint(1, 5, (n_items,), generator=draw)]
    items += [[*items[0], *tokens(2)], [*items[1], *tokens(9)], tokens(12), [5], [6]]
    stem = tokens(6)
    items += [[*stem, *tokens(2, below=12)] for _ in range(8)]
    items += [items[2], items[3]]
    return [[*item, EOS] for item in items]


def ragged_prompts(seed: int, lengths: Sequence[int] = (9, 3, 14, 1, 6)) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1000 + seed)
    return [torch.randint(3, VOCAB, (n,), generator=draw).tolist() for n in lengths]


def legal_tokens(catalogue: Sequence[Sequence[int]]) -> dict[Tokens, list[int]]:
    """Every prefix of the catalogue and the tokens that may follow it; nothing: PAD."""
    legal: dict[Tokens, set[int]] = {}
    for item in catalogue:
        for at in range(len(item)):
            legal.setdefault(tuple(item[:at]), set()).add(item[at])
    return {prefix: sorted(tokens) for prefix, tokens in legal.items()}


@torch.no_grad()
def slow_scores(
    model: PreTrainedModel,
    leaves: Sequence[Tokens],
    prompt: Sequence[int],
    mask: str = "before",
    temperature: float = 1.0,
) -> Tensor:
    """One leaf at a time, no cache, no padding; float64 after the model's own logits."""
    legal = legal_tokens(leaves)
    scores = []
    for leaf in leaves:
        logits = model(torch.tensor([[*prompt, *leaf[:-1]]])).logits[0].double() / temperature
        total = 0.0
        for at, token in enumerate(leaf):
            row = logits[len(prompt) - 1 + at]
            among = row[legal[leaf[:at]]] if mask == "before" else row
            total += float(row[token] - among.logsumexp(0))
        scores.append(total)
    return torch.tensor(scores)


def share_of_tokens(
    probability: dict[Tokens, float], legal: dict[Tokens, list[int]], prefix: Tokens
) -> list[float]:
    """D3's guide: of each legal token the mass of the items below it, over that of all of them."""
    below = [
        sum(p for item, p in probability.items() if item[: len(prefix) + 1] == (*prefix, token))
        for token in legal[prefix]
    ]
    return [mass / sum(below) for mass in below]


@torch.no_grad()
def slow_guided_beam(
    model: PreTrainedModel,
    probability: dict[Tokens, float],
    prompt: Sequence[int],
    n_beams: int,
    mask: str,
    weight: float,
) -> list[tuple[Tokens, float]]:
    """Hugging Face's beam search in plain Python, every token's score with D3's guide in it.

    Args:
        probability: of every item under the guide; all items, they are the catalogue too.
    """
    legal = legal_tokens(list(probability))
    finished: list[tuple[float, Tokens]] = []
    running: list[tuple[float, Tokens]] = [(0.0, ())]
    while running:
        candidates = []
        for score, prefix in running:
            logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1].double()
            among = logits[legal[prefix]] if mask == "before" else logits
            shares = share_of_tokens(probability, legal, prefix)
            for token, share in zip(legal[prefix], shares, strict=True):
                step = float(logits[token] - among.logsumexp(0)) + weight * math.log(share)
                candidates.append((score + step, (*prefix, token)))
        best = sorted(candidates, key=lambda one: -one[0])[: 2 * n_beams]
        finished += [one for one in best[:n_beams] if one[1] in probability]
        finished = sorted(finished, key=lambda one: -one[0])[:n_beams]
        running = [one for one in best if one[1] not in probability][:n_beams]
        if len(finished) == n_beams and running and running[0][0] <= finished[-1][0]:
            break
    return [(tokens, score) for score, tokens in finished]


class D3Processor(LogitsProcessor):
    """The guide of D3 as its authors' code computes it, for ``generate``; mask "after".

    ``alpha`` times the language model's log-probability of a legal token, and ``1 - alpha`` times
    the guide's.  Of each user a dictionary from item to probability under the guide.
    """

    def __init__(
        self, probabilities: Sequence[dict[Tokens, float]], alpha: float, n_beams: int, width: int
    ) -> None:
        self._probabilities, self._alpha = probabilities, alpha
        self._n_beams, self._width = n_beams, width
        self._legal = legal_tokens(list(probabilities[0]))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        language, joined = scores.log_softmax(-1), torch.full_like(scores, -torch.inf)
        for row, sequence in enumerate(input_ids[:, self._width :].tolist()):
            prefix = tuple(sequence)
            tokens, shares = self._legal.get(prefix, [PAD]), [1.0]
            if prefix in self._legal:
                probability = self._probabilities[row // self._n_beams]
                shares = share_of_tokens(probability, self._legal, prefix)
            guide = torch.tensor(shares).log()
            joined[row, tokens] = self._alpha * language[row, tokens] + (1 - self._alpha) * guide
        return joined


class _MaskAndRenormalise(LogitsProcessor):
    """Mask "before", which transformers 5 lacks: illegal tokens out, then a new softmax."""

    def __init__(self, legal: dict[Tokens, list[int]], prompt_width: int):
        self._legal, self._width = legal, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        masked = torch.full_like(scores, -torch.inf)
        for row, sequence in enumerate(input_ids[:, self._width :].tolist()):
            tokens = self._legal.get(tuple(sequence), [PAD])
            masked[row, tokens] = scores[row, tokens].log_softmax(0)
        return masked


def hugging_face_lists(
    model: PreTrainedModel,
    catalogue: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    n_beams: int,
    mask: str,
    length_penalty: float,
    processor: LogitsProcessor | None = None,
) -> list[list[tuple[Tokens, float]]]:
    """(tokens, score) lists of ``generate``; places that hold no real item are dropped.

    Args:
        processor: what masks and scores tokens, in place of ``mask``.
    """
    legal = legal_tokens(catalogue)
    width = max(map(len, prompts))
    input_ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    constraint: dict[str, Any]
    if processor is not None:
        constraint = {"logits_processor": LogitsProcessorList([processor])}
    elif mask == "after":
        constraint = {
            "prefix_allowed_tokens_fn": lambda _, row: legal.get(tuple(row[width:].tolist()), [PAD])
        }
    else:
        constraint = {"logits_processor": LogitsProcessorList([_MaskAndRenormalise(legal, width)])}
    out = model.generate(
        input_ids=input_ids,
        attention_mask=attention,
        num_beams=n_beams,
        num_return_sequences=n_beams,
        max_new_tokens=max(map(len, catalogue)) + 1,
        length_penalty=length_penalty,
        early_stopping=False,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **constraint,
    )
    items = {tuple(item) for item in catalogue}
    lists: list[list[tuple[Tokens, float]]] = [[] for _ in prompts]
    for row, (sequence, score) in enumerate(
        zip(out.sequences[:, width:].tolist(), out.sequences_scores.tolist(), strict=True)
    ):
        end = sequence.index(EOS) + 1 if EOS in sequence else 0
        if tuple(sequence[:end]) in items and score > -1e6:
            lists[row // n_beams].append((tuple(sequence[:end]), score))
    return lists
