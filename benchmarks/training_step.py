"""One MSL training step, forward and backward, and one pass over a user's items.

*Released MSL*: one row per window, logits at every position, a dense vocabulary mask built for the
batch, mean over response positions.  *Response only*: the same with logits at response positions.
*Ours*: forced tails cut, legal columns at branching positions.  The last rows compare a user's
windows, one by one, with the same windows in one causal pass (``rows = "sequence"``) and, behind
prompts that end in words of their own, in one packed row (``rows = "user"``), all ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.loss_head import catalogue
from benchmarks.table import Row as Timed
from benchmarks.table import alternate
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward
from llmrec_cli.models.language_model import Policy
from llmrec_cli.tensors.trie import Trie, build_trie, edges_of
from llmrec_cli.training.collator import Collator, MicroBatch
from llmrec_cli.training.rows import Row, as_windows

Size = Literal["ci", "full"]


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int
    layers: int
    rows: int
    history: int  # items
    repeats: int


SHAPES: dict[Size, Shape] = {
    "ci": Shape(16_384, 128, 2, 8, 8, 3),
    "full": Shape(128_256, 512, 8, 8, 10, 3),
}
BAR_RELEASED, BAR_RESPONSE_ONLY = 3.5, 1.25  # at the full size
MSL = find_method("msl")
OPTIONS = MSL.options()


@dataclass(frozen=True)
class Problem:
    policy: Policy
    trie: Trie
    items: list[list[int]]
    rows: list[Row]


def draw_problem(shape: Shape, seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    items = catalogue(6_000, 2_000, shape.vocabulary)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 32,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.requires_grad_(False)  # as under LoRA
    draw = random.Random(seed)
    rows = []
    for _ in range(shape.rows):
        history = draw.choices(range(len(items)), k=draw.randint(shape.history // 2, shape.history))
        prompt = [1, *(token for item in history for token in items[item])]
        rows.append(Row(np.array(prompt, dtype=np.int32), (draw.randrange(len(items)),)))
    return Problem(Policy(model), build_trie(items), items, rows)


def ours(p: Problem, rows: Sequence[Row]) -> Tensor:
    """Our step's loss, divided by all response positions."""
    micro = Collator(p.trie, cut_forced=True)(rows)
    hidden_XPD = p.policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)
    forward = Forward(hidden_XPD[0], p.policy.head())
    sums = MSL.loss(forward, micro.batch, OPTIONS, {})
    return sums.total / sums.count


def dense_log_probs(policy: Policy, micro: MicroBatch, *, legal: bool, everywhere: bool) -> Tensor:
    """The peers' log-probabilities of the targets, [P]: logits of the whole vocabulary.

    Args:
        legal: over legal tokens, by a dense mask, or over the vocabulary.
        everywhere: logits at every position, or at response positions only.
    """
    model, take_P = policy.model, micro.take_P
    hidden_BTD = model.model(input_ids=micro.input_ids_BT, use_cache=False).last_hidden_state
    hidden_XD = hidden_BTD.flatten(0, 1)
    logits_XV = model.lm_head(hidden_XD if everywhere else hidden_XD[take_P])
    at_P = take_P if everywhere else torch.arange(len(take_P), device=take_P.device)
    if legal:
        trie = micro.batch.trie
        legal_XV = torch.ones_like(logits_XV, dtype=torch.bool)
        legal_XV[at_P] = False
        edge_C, owner_C = edges_of(trie, micro.batch.node_P)
        legal_XV[at_P[owner_C], trie.edge_token_E[edge_C].long()] = True
        logits_XV = logits_XV.masked_fill(~legal_XV, -torch.inf)
    log_prob_XV = logits_XV.log_softmax(-1)
    log_prob_P: Tensor = log_prob_XV[at_P].gather(1, micro.batch.target_P[:, None]).squeeze(1)
    return log_prob_P


def peer(p: Problem, *, everywhere: bool) -> Tensor:
    """Dense masks: at every position, or at response positions only."""
    micro = Collator(p.trie, cut_forced=False)(p.rows)
    return -dense_log_probs(p.policy, micro, legal=True, everywhere=everywhere).mean()


def rows(size: Size) -> list[Timed]:
    """A step against both peers, and rows of many windows against windows."""
    shape = SHAPES[size]
    problem = draw_problem(shape)
    return [
        _step_row(problem, shape, "released MSL", True, BAR_RELEASED if size == "full" else None),
        _step_row(
            problem,
            shape,
            "response positions only",
            False,
            BAR_RESPONSE_ONLY if size == "full" else None,
        ),
        *_history_rows(problem, shape),
    ]


def _step_row(
    problem: Problem, shape: Shape, name: str, everywhere: bool, bar: float | None
) -> Timed:
    theirs = _gradient(problem, peer(problem, everywhere=everywhere))
    agrees = _same(theirs, _gradient(problem, ours(problem, problem.rows)))
    peer_seconds, our_seconds = alternate(
        lambda: peer(problem, everywhere=everywhere).backward(),
        lambda: ours(problem, problem.rows).backward(),
        shape.repeats,
    )
    return Timed("training step, frozen head", name, peer_seconds, our_seconds, agrees, bar)


def _history_rows(problem: Problem, shape: Shape) -> list[Timed]:
    """Users' windows one by one, beside the same windows in one row a user, both ours."""
    draw = random.Random(1)
    start, tail = np.array([1], dtype=np.int32), np.array([2, 3, 4, 5], dtype=np.int32)
    items = range(len(problem.items))
    sequences, users = [], []
    for _ in range(shape.rows // 4):  # every user has 2 x history windows
        targets = tuple(draw.choices(items, k=2 * shape.history))
        sequences.append(Row(start, targets))
        prompts = [
            np.concatenate([window.prompt, tail])
            for window in as_windows(sequences[-1], problem.items)
        ]
        users.append(Row(prompts[0], targets, prompts=tuple(prompts)))
    return [
        _beside_windows(problem, shape, 'rows = "sequence"', sequences),
        _beside_windows(problem, shape, 'rows = "user"', users),
    ]


def _beside_windows(problem: Problem, shape: Shape, name: str, made: list[Row]) -> Timed:
    windows = [window for row in made for window in as_windows(row, problem.items)]
    theirs = _gradient(problem, ours(problem, windows))
    agrees = _same(theirs, _gradient(problem, ours(problem, made)))
    peer_seconds, our_seconds = alternate(
        lambda: ours(problem, windows).backward(),
        lambda: ours(problem, made).backward(),
        shape.repeats,
    )
    tokens = [Collator(problem.trie, cut_forced=True)(rows).tokens for rows in (windows, made)]
    detail = f"{tokens[0] / tokens[1]:.1f} times fewer tokens"
    return Timed(name, "one row per window", peer_seconds, our_seconds, agrees, None, detail)


def _same(theirs: Tensor, mine: Tensor) -> bool:
    return bool((theirs - mine).norm() <= 1e-4 * theirs.norm())


def _gradient(problem: Problem, loss: Tensor) -> Tensor:
    """Loss and the gradient of the first layer's query weights, as one vector."""
    problem.policy.zero_grad()
    loss.backward()
    weight = problem.policy.model.model.layers[0].self_attn.q_proj.weight
    gradient = weight.grad.flatten().clone()
    problem.policy.zero_grad()
    return torch.cat([loss.detach()[None], gradient / gradient.norm()])
