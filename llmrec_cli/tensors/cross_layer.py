"""ILRec's three losses from the logits of several layers (arXiv:2602.17410, docs/methods/ilrec.md).

Logits of columns that are not legal are -inf, so one code serves the whole vocabulary and the legal
tokens.  Values are per position; sums are the method's business.  The paper
does not number steps 1 to 7: we do, on that page.

Shape suffixes: P response positions, L intermediate layers, X = 1 + L layers, the last one first,
U columns: vocabulary tokens, or the legal columns of a batch; V vocabulary, D model width, E legal
tokens of all positions (trie edges), C some of them, or the positions of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmrec_cli.tensors.losses import CHUNK
from llmrec_cli.tensors.trie import LeafMass, Trie, edges_of


@dataclass(frozen=True, slots=True)
class Choices:
    """What is computed, and how."""

    a: float = 0.1  # strength of CPO's penalty; 0: L_CPO is plain cross-entropy
    phi: float = 1.0  # threshold, as a multiple of the target's own, > 0
    ensemble: Literal["mean", "sum"] = "mean"
    space: Literal["probability", "logit"] = "probability"
    negatives_from: Literal["ensemble", "final"] = "ensemble"
    distil: bool = True  # compute CPD
    reward_temperature: float = 1.0  # T_r > 0


class Rewards(NamedTuple):
    """R, where it may be above 0: at the legal tokens of each position."""

    position_E: Tensor  # int64, index into P
    column_E: Tensor  # int64, column of the token
    share_E: Tensor  # float64, >= 0: its share of the item mass at the position's node


class Terms(NamedTuple):
    """Losses in nats, and counts without gradient, of each position."""

    cpo_P: Tensor
    cpd_P: Tensor  # 0 without CPD
    crr_P: Tensor  # 0 without rewards
    negatives_P: Tensor  # how many self-hard negatives
    negatives_LP: Tensor  # how many each intermediate layer would give alone


def cross_layer_terms(
    last_PU: Tensor,
    layers_LPU: Tensor,
    target_P: Tensor,
    final_P: Tensor,
    choices: Choices,
    rewards: Rewards | None = None,
) -> Terms:
    """All terms of ILRec's loss.

    Args:
        last_PU, layers_LPU: logits z^L and z^l, fp32 or fp64; -inf at illegal columns.
        target_P: int64, column of the target, a legal one.
        final_P: bool, the answer's last token (EOS) is predicted here: no CPD.
        rewards: None: no CRR.

    Returns:
        Gradient flows through ``last_PU`` in CPO and CRR, through ``layers_LPU`` in CPD, and
        through nothing else.
    """
    source_PU = _source(last_PU.detach(), layers_LPU.detach(), choices)
    hard_PU = self_hard(source_PU, last_PU, target_P, choices)
    weight_PU = negative_weights(source_PU, hard_PU)
    crr_P = cpd_P = last_PU.new_zeros(len(target_P))
    if choices.distil and len(layers_LPU):
        cpd_P = distillation(last_PU, layers_LPU).mean(0).masked_fill(final_P, 0)
    if rewards is not None:
        among_PU = hard_PU.scatter(1, target_P[:, None], True)
        crr_P = reward_divergence(last_PU, rewards, among_PU, choices.reward_temperature)
    return Terms(
        cpo_P=penalised_nll(last_PU, weight_PU, target_P, choices.a),
        cpd_P=cpd_P,
        crr_P=crr_P,
        negatives_P=hard_PU.sum(1),
        negatives_LP=self_hard(layers_LPU, last_PU, target_P, choices).sum(2),
    )


def vocab_terms(
    hidden_XPD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_P: Tensor,
    final_P: Tensor,
    choices: Choices,
    rewards: Callable[[slice], Rewards | None] = lambda part: None,
    *,
    chunk: int = CHUNK,
) -> Terms:
    """``cross_layer_terms`` over the whole vocabulary.

    Positions are taken in chunks of at most ``chunk`` logits of all layers (but one position at
    least), computed again in the backward pass; what fits into one chunk is kept instead.

    Args:
        hidden_XPD: after the final norm, the last layer first; cast to the dtype of the weight for
            the product.
        rewards: those of some positions (counted from the first of them), or None: no CRR.
    """

    def of_chunk(hidden_XCD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, at: slice) -> Terms:
        last_CV = _logits(hidden_XCD[0], weight_VD, bias_V)
        with torch.set_grad_enabled(torch.is_grad_enabled() and choices.distil):
            layers_LCV = _logits(hidden_XCD[1:], weight_VD, bias_V)
        return cross_layer_terms(
            last_CV, layers_LCV, target_P[at], final_P[at], choices, rewards(at)
        )

    rows = max(1, chunk // (len(weight_VD) * len(hidden_XPD)))
    if len(target_P) <= rows:
        return of_chunk(hidden_XPD, weight_VD, bias_V, slice(None))
    parts = []
    for start in range(0, len(target_P), rows):
        at = slice(start, start + rows)
        arguments = (hidden_XPD[:, at], weight_VD, bias_V, at)
        parts.append(
            checkpoint(of_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        )
    return Terms(*(torch.cat(values, dim=-1) for values in zip(*parts, strict=True)))


def self_hard(source_XU: Tensor, last_PU: Tensor, target_P: Tensor, choices: Choices) -> Tensor:
    """``N = {v != y : softmax(zb)(v) >= phi * softmax(z^L)(y)}``: bool, no gradient; ILRec step 2.

    With ``space = "logit"`` (the released code's) ``zb(v) >= phi * z^L(y)``.  Illegal columns are
    never in N.

    Args:
        source_XU: zb, [..., P, U], logits in which negatives are looked for.
        last_PU: z^L.
    """
    source_XU, last_PU = source_XU.detach(), last_PU.detach()
    if choices.space == "probability":
        least_P1 = _at(last_PU.log_softmax(1), target_P) + math.log(choices.phi)
        hard_XU = source_XU.log_softmax(-1) >= least_P1
    else:
        hard_XU = source_XU >= choices.phi * _at(last_PU, target_P)
    target_X1 = target_P[:, None].expand(*source_XU.shape[:-1], 1)
    return hard_XU.scatter(-1, target_X1, False)


def negative_weights(source_PU: Tensor, hard_PU: Tensor) -> Tensor:
    """``w = softmax(zb restricted to N)``, 0 elsewhere; no gradient; ILRec step 3.

    Where N is empty, all are 0.
    """
    within_PU = source_PU.detach().masked_fill(~hard_PU, -torch.inf)
    return within_PU.softmax(1).masked_fill(~hard_PU, 0)


def penalised_nll(last_PU: Tensor, weight_PU: Tensor, target_P: Tensor, a: float) -> Tensor:
    """L_CPO: ``CE(z^L + a w |z^L|, y)`` of each position; ILRec step 4, CPO.

    The penalty ``a w |z^L|`` is a margin without gradient, so the gradient of the logits is
    ``softmax(z^) - [v = y]``.  A gradient through ``|z|`` would scale the push on a negative whose
    logit is below 0 by ``1 - a w``: weaker than plain cross-entropy's, and none at ``a w = 1``.
    """
    penalty_PU = (a * weight_PU * last_PU.detach().abs()).masked_fill(weight_PU == 0, 0)
    return F.cross_entropy(last_PU + penalty_PU, target_P, reduction="none")


def distillation(last_PU: Tensor, layers_LPU: Tensor) -> Tensor:
    """L_CPD: ``KL(softmax(z^L) || softmax(z^l))``, [L, P]; ILRec step 5.

    The last layer teaches: no gradient flows through it.
    """
    illegal_PU = last_PU == -torch.inf
    teacher_PU = last_PU.detach().log_softmax(1)
    p_PU = teacher_PU.exp()
    entropy_P = -(p_PU * teacher_PU.masked_fill(illegal_PU, 0)).sum(1)
    log_prob_LPU = layers_LPU.log_softmax(2).masked_fill(illegal_PU, 0)
    return -torch.einsum("pu,lpu->lp", p_PU, log_prob_LPU) - entropy_P


def reward_divergence(
    last_PU: Tensor, rewards: Rewards, among_PU: Tensor, temperature: float
) -> Tensor:
    """L_CRR: ``KL(q || softmax(z^L))``, [P], ``q = softmax_C(log R / T_r)``; ILRec step 6.

    Args:
        rewards: R; no gradient.
        among_PU: bool, ``C = N + {y}``; a position where R is 0 on all of C has no loss.
        temperature: T_r > 0.
    """
    position_E, column_E, share_E = rewards
    kept_E = among_PU[position_E, column_E] & (share_E > 0)
    position_C, column_C = position_E[kept_E], column_E[kept_E]
    log_q_C = _log_softmax_by(position_C, share_E[kept_E].log() / temperature, len(last_PU))
    log_q_C = log_q_C.to(last_PU.dtype)
    log_p_C = last_PU.log_softmax(1)[position_C, column_C]
    divergence_C = log_q_C.exp() * (log_q_C - log_p_C)
    return last_PU.new_zeros(len(last_PU)).index_add(0, position_C, divergence_C)


def token_rewards(
    trie: Trie,
    mass: LeafMass,
    node_P: Tensor,
    answer_P: Tensor,
    columns_U: Tensor | None = None,
) -> Rewards:
    """``R_t(v)``: the share of a node's item mass that lies below its child ``v``; ILRec step 6.

    Args:
        mass: one row per answer; the trie may live on another device.
        node_P, answer_P: int64, where each position stands.
        columns_U: token ids, ascending, that hold every legal token of the positions; None: the
            columns are the vocabulary.

    Returns:
        The shares of a node's children sum to 1, or are all 0 where it has no mass.
    """
    edge_E, position_E = edges_of(trie, node_P.to(trie.device))
    token_E = trie.edge_token_E[edge_E].long().to(node_P.device)
    child_E, position_E = (edge_E + 1).to(node_P.device), position_E.to(node_P.device)
    total_P = mass.of_nodes(answer_P, node_P)
    share_E = mass.of_nodes(answer_P[position_E], child_E) / total_P[position_E]
    column_E = token_E if columns_U is None else torch.searchsorted(columns_U, token_E)
    return Rewards(position_E, column_E, share_E.nan_to_num(0.0))


def _source(last_PU: Tensor, layers_LPU: Tensor, choices: Choices) -> Tensor:
    """``zb``, where negatives are looked for: intermediate layers, or the last; ILRec step 1."""
    if choices.negatives_from == "final":
        return last_PU
    return layers_LPU.mean(0) if choices.ensemble == "mean" else layers_LPU.sum(0)


def _logits(hidden_XD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_XV = F.linear(hidden_XD.to(weight_VD.dtype), weight_VD, bias_V)
    return logits_XV.to(torch.promote_types(logits_XV.dtype, torch.float32))


def _log_softmax_by(group_C: Tensor, value_C: Tensor, groups: int) -> Tensor:
    """Log-softmax of the finite values of each group."""
    top_G = value_C.new_full((groups,), -torch.inf).scatter_reduce(0, group_C, value_C, "amax")
    value_C = value_C - top_G[group_C]
    sum_G = value_C.new_zeros(groups).index_add(0, group_C, value_C.exp())
    return value_C - sum_G[group_C].log()


def _at(values_PU: Tensor, column_P: Tensor) -> Tensor:
    return values_PU.gather(1, column_P[:, None])
