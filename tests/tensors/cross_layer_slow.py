"""ILRec's terms the slow way: one position and one token at a time (docs/methods/ilrec.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmrec_cli.tensors.cross_layer import Choices, Rewards

INF = math.inf


def rewards(reward_PU: Tensor) -> Rewards:
    """R of every column, as pairs."""
    position_E, column_E = torch.ones_like(reward_PU).nonzero(as_tuple=True)
    return Rewards(position_E, column_E, reward_PU.double().flatten())


def dense(found: Rewards, positions: int, columns: int) -> Tensor:
    zeros_PU = torch.zeros((positions, columns), dtype=torch.float64)
    return zeros_PU.index_put((found.position_E, found.column_E), found.share_E)


def slow(
    logits_XPU: Tensor,
    target_P: Tensor,
    final_P: Tensor,
    choices: Choices,
    reward_PU: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """ILRec steps 1 to 6, one position and one token at a time."""
    cpo, cpd, crr, sizes = [], [], [], []
    for p, y in enumerate(target_P.tolist()):
        legal = [
            v for v in range(logits_XPU.shape[2]) if float(logits_XPU[0, p, v].detach()) > -INF
        ]
        z = {v: logits_XPU[0, p, v] for v in legal}
        by_layer = [{v: layer[p, v] for v in legal} for layer in logits_XPU[1:]]
        scale = len(by_layer) if choices.ensemble == "mean" else 1
        zb = {v: sum(layer[v].detach() for layer in by_layer) / scale for v in legal}
        if choices.negatives_from == "final":
            zb = {v: z[v].detach() for v in legal}
        if choices.space == "probability":
            value, least = softmax(zb), choices.phi * softmax(z)[y]
        else:
            value, least = zb, choices.phi * z[y]
        hard = [v for v in legal if v != y and value[v] >= least]
        weight = softmax({v: zb[v] for v in hard})
        pushed = {
            v: z[v] + choices.a * weight.get(v, 0.0) * abs(float(z[v].detach())) for v in legal
        }
        cpo.append(-softmax(pushed)[y].log())
        kl = [
            divergence({v: x.detach() for v, x in softmax(z).items()}, layer) for layer in by_layer
        ]
        silent = bool(final_P[p]) or not choices.distil or not kl
        cpd.append(torch.zeros_like(cpo[0]) if silent else torch.stack(kl).mean())
        q = {}
        if reward_PU is not None:
            kept = {
                v: float(reward_PU[p, v]) ** (1 / choices.reward_temperature) for v in (*hard, y)
            }
            mass = sum(kept.values())
            q = {v: torch.as_tensor(r / mass) for v, r in kept.items() if r > 0}
        crr.append(divergence(q, z) if q else torch.zeros_like(cpo[0]))
        sizes.append(len(hard))
    return torch.stack(cpo), torch.stack(cpd), torch.stack(crr), sizes


def softmax(values: dict[int, Tensor]) -> dict[int, Tensor]:
    total = sum(x.exp() for x in values.values())
    return {v: x.exp() / total for v, x in values.items()}


def divergence(q: dict[int, Tensor], logits: dict[int, Tensor]) -> Tensor:
    p = softmax(logits)
    return torch.stack([x * (x / p[v]).log() for v, x in q.items()]).sum()


def draw(positions: int = 7, columns: int = 6, layers: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(positions)
    logits_XPU = 1.5 * torch.randn(1 + layers, positions, columns, dtype=torch.float64)
    illegal_PU = torch.rand(positions, columns) < 0.25
    target_P = torch.randint(columns, (positions,))
    illegal_PU = illegal_PU.scatter(1, target_P[:, None], False)
    reward_PU = torch.rand(positions, columns, dtype=torch.float64)
    reward_PU[reward_PU < 0.3] = 0
    reward_PU = reward_PU.masked_fill(illegal_PU, 0)
    return logits_XPU.masked_fill(illegal_PU, -INF), target_P, reward_PU
