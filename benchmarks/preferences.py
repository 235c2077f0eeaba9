"""One DMPO step with k negatives, forward and backward: one row per answer, and packed rows.

*Concatenated rows*: the usual preference trainer, k + 1 rows each with the whole prompt, logits at
every position, log-probabilities gathered.  *Response only*: the same rows with logits at response
positions.  *Ours*: one packed row per prompt; over legal tokens also cut after the last branching
position.  The reference's log-probabilities are handed in, as after a precomputation.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.loss_head import backward
from benchmarks.table import Row as Timed
from benchmarks.table import alternate
from benchmarks.training_step import Problem, Shape, dense_log_probs, draw_problem
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward
from llmrec_cli.training.collator import Collator
from llmrec_cli.training.reference import with_reference
from llmrec_cli.training.rows import Row, as_windows

Size = Literal["ci", "full"]
Support = Literal["vocab", "legal"]
DMPO = find_method("dmpo")
SHAPES: dict[Size, dict[str, Shape]] = {
    "ci": {"": Shape(8_192, 128, 2, 4, 8, 3)},
    "full": {
        "": Shape(32_000, 512, 8, 4, 40, 2),  # vocabulary and prompts as long as for book titles
        ", V = 128,256, short prompts": Shape(128_256, 512, 8, 4, 10, 2),
    },
}
BARS: dict[tuple[Support, int, bool], float] = {  # support, k, logits everywhere
    ("vocab", 3, True): 4.5,
    ("vocab", 7, True): 9.0,
    ("vocab", 3, False): 2.5,
    ("vocab", 7, False): 4.0,
    ("legal", 3, True): 6.0,
    ("legal", 7, True): 10.0,
    ("legal", 3, False): 3.0,
    ("legal", 7, False): 6.0,
}


@dataclass(frozen=True)
class Case:
    """Rows with negatives, and every answer behind its own prompt."""

    problem: Problem
    support: Support
    k: int
    packed: list[Row]
    apart: list[Row]
    reference_A: Tensor


def draw_case(shape: Shape, support: Support, k: int) -> Case:
    problem = draw_problem(shape)
    draw = random.Random(k)
    packed = [
        replace(row, negatives=(tuple(draw.sample(range(len(problem.items)), k)),))
        for row in problem.rows
    ]
    apart = [
        replace(window, targets=(item,), negatives=())
        for row in packed
        for window in as_windows(row, problem.items)
        for item in (*window.targets, *window.negatives[0])
    ]
    reference_A = torch.tensor([draw.uniform(-40, -20) for _ in apart])
    return Case(problem, support, k, packed, apart, reference_A)


def ours(case: Case) -> Tensor:
    """Packed rows through the product's own collator and method."""
    options = DMPO.options.model_validate({"k": case.k, "support": case.support})
    collate = Collator(case.problem.trie, cut_forced=case.support == "legal", rejected=True)
    micro = with_reference(collate(case.packed), case.reference_A)
    policy = case.problem.policy
    hidden_XPD = policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)
    sums = DMPO.loss(Forward(hidden_XPD[0], policy.head()), micro.batch, options, {})
    return sums.total / sums.count


def peer(case: Case, *, everywhere: bool) -> Tensor:
    """k + 1 rows per prompt; DMPO's equation on summed log-probabilities."""
    micro = Collator(case.problem.trie, cut_forced=False)(case.apart)
    legal = case.support == "legal"
    log_prob_P = dense_log_probs(case.problem.policy, micro, legal=legal, everywhere=everywhere)
    log_prob_A = torch.zeros(micro.batch.answers).index_add(0, micro.batch.answer_P, log_prob_P)
    d_GA = (log_prob_A - case.reference_A).view(-1, case.k + 1)
    margin_G = 0.1 * (d_GA[:, 0] - d_GA[:, 1:].mean(1))
    return -torch.nn.functional.logsigmoid(margin_G).mean()


def rows(size: Size) -> list[Timed]:
    """Both supports, k = 3 and 7, against both peers."""
    timed = []
    for (name, shape), (support, k, everywhere) in itertools.product(SHAPES[size].items(), BARS):
        if size == "ci" and k == 7 and everywhere:
            continue  # as for k = 3, only longer
        case = draw_case(shape, support, k)
        theirs, mine = (_gradient(case, loss) for loss in (peer(case, everywhere=True), ours(case)))
        peer_seconds, our_seconds = alternate(
            partial(backward, peer, case, everywhere=everywhere),
            partial(backward, ours, case),
            shape.repeats,
        )
        timed.append(
            Timed(
                f"DMPO k = {k}, {support} log-probs{name}",
                "concatenated rows" if everywhere else "response positions only",
                peer_seconds,
                our_seconds,
                torch.allclose(theirs, mine, rtol=1e-3, atol=1e-5),
                BARS[support, k, everywhere] if size == "full" and not name else None,
                _tokens(case),
            )
        )
    return timed


def _tokens(case: Case) -> str:
    collate = Collator(case.problem.trie, cut_forced=case.support == "legal", rejected=True)
    apart = Collator(case.problem.trie, cut_forced=False)(case.apart).tokens
    return f"{apart / collate(case.packed).tokens:.1f} times fewer tokens"


def _gradient(case: Case, loss: Tensor) -> Tensor:
    """Loss and the direction of the first layer's query gradient, as one vector."""
    case.problem.policy.zero_grad()
    loss.backward()
    gradient = case.problem.policy.model.model.layers[0].self_attn.q_proj.weight.grad.flatten()
    direction = gradient / gradient.norm()
    case.problem.policy.zero_grad()
    return torch.cat([loss.detach()[None], direction])
