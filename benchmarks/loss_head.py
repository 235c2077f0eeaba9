"""The MSL loss head: forward and backward from hidden states, the peer's way beside ours.

*Released MSL*: logits of every prompt and response position, a dense boolean vocabulary mask of the
same shape (handed in ready-made), -inf where illegal, log-softmax, mean.  *Response only*: the same
at the response positions alone.  *Ours*: branching positions and the union of their legal tokens.
All compute the same loss and the same gradients of hidden states and head.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, ParamSpec

import torch
from torch import Tensor

from benchmarks.table import Row, alternate
from llmrec_cli.methods.contract import Head
from llmrec_cli.tensors.legal_softmax import legal_logits
from llmrec_cli.tensors.trie import Trie, build_trie, edges_of, paths

Size = Literal["ci", "full"]
Loss = Callable[[], Tensor]

P = ParamSpec("P")


def backward(loss: Callable[P, Tensor], *args: P.args, **options: P.kwargs) -> None:
    """One pass forward and backward, the work that rows time."""
    loss(*args, **options).backward()


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int
    rows: int
    prompt: int  # tokens
    items: int
    first_tokens: int  # root fan-out
    repeats: int


SHAPES: dict[Size, Shape] = {
    "ci": Shape(16_384, 256, 4, 100, 1_500, 500, repeats=7),
    "full": Shape(128_256, 2_048, 16, 200, 6_000, 2_000, repeats=3),
}
BAR_RELEASED, BAR_RESPONSE_ONLY = 500.0, 40.0  # at the full size


def catalogue(items: int, first_tokens: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Titles shaped like a book catalogue's: two branching positions, the rest forced.

    Title = first token (``first_tokens`` different ones, some far more common), a forced stem of up
    to three tokens, a token that tells the titles with this stem apart, a forced tail, EOS.
    """
    draw = random.Random(seed)
    eos, words = vocabulary - 1, range(vocabulary - 1)
    firsts = draw.sample(words, first_tokens)
    stems = {first: draw.choices(words, k=draw.randrange(4)) for first in firsts}
    chosen = firsts + draw.choices(firsts, [1 / (r + 5) for r in range(first_tokens)], k=items)
    telling = {first: iter(draw.sample(words, chosen.count(first))) for first in firsts}
    return [
        [first, *stems[first], next(telling[first]), *draw.choices(words, k=draw.randrange(5)), eos]
        for first in chosen[:items]
    ]


@dataclass(frozen=True)
class Problem:
    trie: Trie
    hidden_BTD: Tensor  # leaf: what the model's body would hand over
    weight_VD: Tensor  # leaf: the head
    node_BT: Tensor  # -1 outside the response
    target_BT: Tensor
    legal_BTV: Tensor  # the peer's mask, all legal outside the response


def draw_problem(shape: Shape, *, trained: bool, seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    trie = build_trie(catalogue(shape.items, shape.first_tokens, shape.vocabulary))
    node_BR, token_BR, _ = paths(trie, torch.randint(trie.n_leaves, (shape.rows,)))
    prompt = torch.full((shape.rows, shape.prompt), -1)
    node_BT = torch.cat([prompt, node_BR], 1)
    target_BT = torch.cat([prompt, token_BR], 1)
    legal_BTV = torch.ones(*node_BT.shape, shape.vocabulary, dtype=torch.bool)
    for b, t in torch.nonzero(node_BT >= 0).tolist():
        edges, _ = edges_of(trie, node_BT[b, t][None])
        legal_BTV[b, t] = False
        legal_BTV[b, t, trie.edge_token_E[edges].long()] = True
    hidden_BTD = torch.randn(*node_BT.shape, shape.width)
    weight_VD = torch.randn(shape.vocabulary, shape.width) / math.sqrt(shape.width)
    weight_VD.requires_grad_(trained)
    return Problem(trie, hidden_BTD.requires_grad_(), weight_VD, node_BT, target_BT, legal_BTV)


def released(p: Problem) -> Tensor:
    logits_BTV = p.hidden_BTD @ p.weight_VD.T
    log_probs_BTV = logits_BTV.masked_fill(~p.legal_BTV, -math.inf).log_softmax(-1)
    chosen_BT = log_probs_BTV.gather(-1, p.target_BT.clamp_min(0)[..., None]).squeeze(-1)
    return -chosen_BT[p.node_BT >= 0].mean()


def response_only(p: Problem) -> Tensor:
    inside_BT = p.node_BT >= 0
    logits_PV = p.hidden_BTD[inside_BT] @ p.weight_VD.T
    log_probs_PV = logits_PV.masked_fill(~p.legal_BTV[inside_BT], -math.inf).log_softmax(-1)
    return -log_probs_PV.gather(-1, p.target_BT[inside_BT][:, None]).mean()


def ours(p: Problem) -> Tensor:
    inside_BT = p.node_BT >= 0
    node_P, target_P = p.node_BT[inside_BT], p.target_BT[inside_BT]
    legal = legal_logits(p.hidden_BTD[inside_BT], Head(p.weight_VD), p.trie, node_P, target_P)
    return legal.nll().sum() / len(node_P)


def rows(size: Size) -> list[Row]:
    """Frozen and trained head, against both peers."""
    shape, result = SHAPES[size], []
    for trained in (False, True):
        problem = draw_problem(shape, trained=trained)
        for peer, name, bar in (
            (released, "released MSL", BAR_RELEASED),
            (response_only, "response positions only", BAR_RESPONSE_ONLY),
        ):
            result.append(_compare(shape, problem, peer, name, bar if size == "full" else None))
        del problem  # gigabytes at the full size
    return result


def _compare(
    shape: Shape, problem: Problem, peer: Callable[[Problem], Tensor], name: str, bar: float | None
) -> Row:
    expected, difference = _answer(problem, peer), 0.0
    for a, b in zip(expected, _answer(problem, ours), strict=True):
        difference = max(difference, float((a - b).norm() / a.norm()))
    del expected
    _clear(problem, to_none=False)  # an optimiser that zeroes gradients in place, for both
    peer_seconds, our_seconds = alternate(
        lambda: peer(problem).backward(), lambda: ours(problem).backward(), shape.repeats
    )
    _clear(problem, to_none=True)
    trained = "trained" if problem.weight_VD.requires_grad else "frozen"
    return Row(
        name=f"loss head, {trained} head",
        peer=name,
        peer_seconds=peer_seconds,
        our_seconds=our_seconds,
        agrees=difference < 1e-4,
        bar=bar,
        detail=f"V={shape.vocabulary:,} d={shape.width:,} B={shape.rows}, loss and gradients "
        f"differ by {difference:.0e} (relative)",
    )


def _answer(problem: Problem, loss: Callable[[Problem], Tensor]) -> list[Tensor]:
    """Loss, gradient of the hidden states and, where trained, of the head."""
    _clear(problem, to_none=True)
    total = loss(problem)
    total.backward()
    gradients = (problem.hidden_BTD.grad, problem.weight_VD.grad)
    return [total.detach(), *(g.clone() for g in gradients if g is not None)]


def _clear(problem: Problem, *, to_none: bool) -> None:
    for leaf in (problem.hidden_BTD, problem.weight_VD):
        if leaf.requires_grad:
            leaf.grad = None if to_none else torch.zeros_like(leaf)
