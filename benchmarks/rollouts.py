"""One GRPO step with 16 rollouts a prompt: what the policy answers, its reference, its gradient.

*Peer*: as the released trainers do it.  Hugging Face's ``generate`` with 16 constrained beams, then
one row per rollout with the whole prompt, forward for the reference and forward and backward for
the policy, logits of the vocabulary at response positions.  *Ours*: exact search, then one packed
row per prompt, legal columns at branching positions.  A beam is not exact, so both losses are
compared on the peer's rollouts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoding import (
    SHAPES,
    Shape,
    Size,
    generate,
    model_of,
    prompts_of,
    semantic_ids,
    titles,
)
from benchmarks.loss_head import backward
from benchmarks.table import Row as Timed
from benchmarks.table import alternate
from benchmarks.training_step import dense_log_probs
from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward
from llmrec_cli.models.language_model import Policy
from llmrec_cli.tensors.trie import Trie, build_trie
from llmrec_cli.training.collator import Collator
from llmrec_cli.training.reference import with_reference
from llmrec_cli.training.rows import Row

K, BAR = 16, 8.0
GRPO = find_method("grpo")
OPTIONS: Any = GRPO.options.model_validate({"k": K, "rank": False})
Lists = list[tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """Prompts with a target that half of the policy's own lists have."""

    model: Any
    catalogue: list[list[int]]
    trie: Trie
    rows: list[Row]

    @property
    def prompts(self) -> list[list[int]]:
        return [row.prompt.tolist() for row in self.rows]


def draw_case(shape: Shape, catalogue: list[list[int]]) -> Case:
    model, trie, draw = model_of(shape), build_trie(catalogue), random.Random(0)
    case = Case(model, catalogue, trie, [])
    for prompt in prompts_of(shape):
        case.rows.append(Row(np.array(prompt, dtype=np.int32), (0,)))
    for at, own in enumerate(find_exact(case)):
        target = draw.choice(own) if at % 2 else draw.randrange(len(catalogue))
        case.rows[at] = replace(case.rows[at], targets=(target,))
    return case


def find_exact(case: Case) -> Lists:
    """Ours: the policy's first K entries, as items."""
    found = rank_catalogue(case.model, case.trie, case.prompts, DecodeOptions(k=K))
    first_L = case.trie.item_order_I[case.trie.item_start_L1[:-1].long()]
    return [tuple(row) for row in first_L[found.leaf_BK].tolist()]


def find_by_beam(case: Case) -> Lists:
    """The peer's: what a beam of K keeps."""
    item_of = {tuple(tokens): item for item, tokens in enumerate(case.catalogue)}
    lists = generate(case.model, case.catalogue, case.prompts, "before", K)
    return [tuple(item_of[tuple(tokens)] for tokens in row) for row in lists]


def our_loss(case: Case, lists: Lists) -> Tensor:
    """Packed rows through the product's own collator and method."""
    rows = [replace(row, rollouts=(own,)) for row, own in zip(case.rows, lists, strict=True)]
    micro, policy = Collator(case.trie, cut_forced=True)(rows), Policy(case.model)

    def run() -> Forward:
        hidden_XPD = policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)
        return Forward(hidden_XPD[0], policy.head())

    assert GRPO.log_probs is not None
    with torch.no_grad():
        reference_P = GRPO.log_probs(run(), micro.batch, OPTIONS)
    sums = GRPO.loss(run(), with_reference(micro, reference_P).batch, OPTIONS, {})
    return sums.total / sums.count


def peer_loss(case: Case, lists: Lists, *, legal: bool) -> Tensor:
    """A row per rollout; GRPO's equation on log-probabilities of tokens."""
    apart = [
        replace(row, targets=(item,))
        for row, own in zip(case.rows, lists, strict=True)
        for item in own
    ]
    micro, policy = Collator(case.trie, cut_forced=False)(apart), Policy(case.model)
    score = partial(dense_log_probs, policy, micro, legal=legal, everywhere=False)
    with torch.no_grad():
        reference_P = score()
    log_prob_P = score()
    entry_I = case.trie.leaf_of_item_I
    hit_A = torch.tensor(
        [
            float(entry_I[item] == entry_I[row.targets[0]])
            for row, own in zip(case.rows, lists, strict=True)
            for item in own
        ]
    )
    reward_GK = hit_A.view(-1, K)
    advantage_GK = (reward_GK - reward_GK.mean(1, keepdim=True)) / (
        reward_GK.std(1, keepdim=True) + OPTIONS.epsilon
    )
    ratio_P = (log_prob_P - log_prob_P.detach()).exp()
    kl_P = (reference_P - log_prob_P).exp() - (reference_P - log_prob_P) - 1
    answer_P, length_A = micro.batch.answer_P, micro.batch.length_A
    cost_P = -(ratio_P * advantage_GK.flatten()[answer_P] - OPTIONS.beta * kl_P)
    return (torch.zeros(len(apart)).index_add(0, answer_P, cost_P) / length_A).mean()


def our_step(case: Case) -> Tensor:
    return our_loss(case, find_exact(case))


def peer_step(case: Case) -> Tensor:
    return peer_loss(case, find_by_beam(case), legal=False)


def rows(size: Size) -> Iterator[Timed]:
    """Semantic IDs and titles."""
    shape = SHAPES[size]
    kinds = {
        "semantic IDs": semantic_ids(shape.items),
        "titles": titles(shape.items, shape.vocabulary),
    }
    for name, catalogue in kinds.items():
        case = draw_case(shape, catalogue)
        kept, exact = find_by_beam(case), find_exact(case)
        theirs = _gradient(case, peer_loss(case, kept, legal=True))
        mine = _gradient(case, our_loss(case, kept))
        peer_seconds, our_seconds = alternate(
            partial(backward, peer_step, case), partial(backward, our_step, case), shape.repeats
        )
        found = sum(len({*own} & {*true}) for own, true in zip(kept, exact, strict=True))
        yield Timed(
            f"GRPO step, {K} rollouts, {name}",
            "HF generate, one row per rollout",
            peer_seconds,
            our_seconds,
            bool((theirs - mine).norm() <= 1e-3 * theirs.norm()),
            BAR,
            f"the peer's beam found {found / len(kept) / K:.0%} of the true top {K}",
        )


def _gradient(case: Case, loss: Tensor) -> Tensor:
    """The gradient of the first layer's query weights."""
    case.model.zero_grad()
    loss.backward()
    gradient: Tensor = case.model.model.layers[0].self_attn.q_proj.weight.grad.flatten().clone()
    case.model.zero_grad()
    return gradient
