"""ILRec's head: CPO and CPD over several layers, forward and backward from hidden states.

*Per-layer logits*: the head on every position of every layer over the whole vocabulary, dense legal
masks, then the equations as they stand.  *Response only*: the same at response positions.  *Ours*:
one stacked product on the union of the legal columns of branching positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.loss_head import Shape, backward, catalogue
from benchmarks.table import Row, alternate
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Batch, Forward, Head
from llmrec_cli.tensors.trie import build_trie, edges_of, paths

Size = Literal["ci", "full"]
ILREC = find_method("ilrec")
A, LAMBDA = 0.1, 0.1
OPTIONS = ILREC.options.model_validate({"support": "legal", "crr": False, "a": A, "lambda": LAMBDA})
BAR = 60.0  # at the full size, against per-layer logits


SHAPES: dict[Size, Shape] = {
    "ci": Shape(8_192, 128, 4, 60, 1_500, 500, repeats=7),
    "full": Shape(128_256, 1_024, 4, 150, 6_000, 2_000, repeats=3),
}
LAYERS = 4


@dataclass(frozen=True)
class Problem:
    hidden_XBTD: Tensor  # leaf; the last layer first
    weight_VD: Tensor
    inside_BT: Tensor
    legal_PV: Tensor
    batch: Batch


def draw_problem(shape: Shape, seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    trie = build_trie(catalogue(shape.items, shape.first_tokens, shape.vocabulary))
    node_BR, token_BR, length_B = paths(trie, torch.randint(trie.n_leaves, (shape.rows,)))
    prompt = torch.full((shape.rows, shape.prompt), -1)
    node_BT = torch.cat([prompt, node_BR], 1)
    inside_BT = node_BT >= 0
    node_P, target_P = node_BT[inside_BT], torch.cat([prompt, token_BR], 1)[inside_BT]
    legal_PV = torch.zeros(len(node_P), shape.vocabulary, dtype=torch.bool)
    edge_C, owner_C = edges_of(trie, node_P)
    legal_PV[owner_C, trie.edge_token_E[edge_C].long()] = True
    hidden_XBTD = torch.randn(1 + LAYERS, *node_BT.shape, shape.width)
    batch = Batch(
        trie=trie,
        target_P=target_P,
        node_P=node_P,
        answer_P=torch.repeat_interleave(length_B),
        final_P=torch.cat([torch.arange(int(n)) == n - 1 for n in length_B]),
        length_A=length_B,
        answers=shape.rows,
        positions=len(node_P),
    )
    weight_VD = torch.randn(shape.vocabulary, shape.width) / math.sqrt(shape.width)
    return Problem(hidden_XBTD.requires_grad_(), weight_VD, inside_BT, legal_PV, batch)


def ours(p: Problem) -> Tensor:
    """The product's method on hidden states at response positions."""
    hidden_XPD = p.hidden_XBTD[:, p.inside_BT]
    forward = Forward(hidden_XPD[0], Head(p.weight_VD), hidden_XPD[1:])
    sums = ILREC.loss(forward, p.batch, OPTIONS, {})
    return sums.total / sums.count


def peer(p: Problem, *, everywhere: bool) -> Tensor:
    """ILRec steps 1 to 5 (docs/methods/ilrec.md), on dense logits."""
    if everywhere:
        logits_XPV = torch.stack([h @ p.weight_VD.T for h in p.hidden_XBTD])[:, p.inside_BT]
    else:
        logits_XPV = p.hidden_XBTD[:, p.inside_BT] @ p.weight_VD.T
    logits_XPV = logits_XPV.masked_fill(~p.legal_PV, -math.inf)
    last_PV, layers_LPV = logits_XPV[0], logits_XPV[1:]
    target_P1 = p.batch.target_P[:, None]
    with torch.no_grad():
        ensemble_PV = layers_LPV.mean(0)
        threshold_P1 = last_PV.softmax(-1).gather(1, target_P1)
        hard_PV = (ensemble_PV.softmax(-1) >= threshold_P1) & p.legal_PV
        hard_PV.scatter_(1, target_P1, False)
        weight_PV = ensemble_PV.masked_fill(~hard_PV, -math.inf).softmax(-1).nan_to_num(0)
        penalty_PV = (A * weight_PV * last_PV.abs()).nan_to_num(0)
        teacher_PV = last_PV.softmax(-1)
    cpo = F.cross_entropy(last_PV + penalty_PV, p.batch.target_P, reduction="sum")
    apart_LPV = teacher_PV.log() - layers_LPV.log_softmax(-1)
    kl_LP = (teacher_PV * apart_LPV.masked_fill(~p.legal_PV, 0)).sum(-1)
    cpd = kl_LP.mean(0).masked_fill(p.batch.final_P, 0).sum()
    return (cpo + LAMBDA * cpd) / p.batch.positions


def rows(size: Size) -> list[Row]:
    """Against both peers."""
    shape = SHAPES[size]
    problem = draw_problem(shape)
    found = []
    for everywhere in (True, False):
        theirs = _answer(problem, peer(problem, everywhere=everywhere))
        mine = _answer(problem, ours(problem))
        difference = float((theirs - mine).norm() / theirs.norm())
        peer_seconds, our_seconds = alternate(
            partial(backward, peer, problem, everywhere=everywhere),
            partial(backward, ours, problem),
            shape.repeats,
        )
        found.append(
            Row(
                f"ILRec head, {LAYERS} layers, legal columns",
                "per-layer logits" if everywhere else "response positions only",
                peer_seconds,
                our_seconds,
                difference < 1e-4,
                BAR if size == "full" and everywhere else None,
                f"V={shape.vocabulary:,} d={shape.width:,} B={shape.rows}, loss and gradients "
                f"differ by {difference:.0e} (relative)",
            )
        )
    return found


def _answer(problem: Problem, loss: Tensor) -> Tensor:
    """Loss and gradient of the hidden states, as one vector."""
    problem.hidden_XBTD.grad = None
    loss.backward()
    gradient = problem.hidden_XBTD.grad
    assert gradient is not None
    return torch.cat([loss.detach()[None], gradient.flatten()])
