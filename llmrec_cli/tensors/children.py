"""Log-probabilities of a trie node's children, from the hidden state that reached it.

Only legal columns of the output head are multiplied.  The vocabulary-wide sum that mask = "after"
needs is taken a block of columns at a time and never stored.

Shape suffixes: P positions, D model width, V vocabulary, U columns, F children of a node (padded),
C edges.  Scores are fp32 whatever the model's type; -inf is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmrec_cli.tensors.trie import Trie, edges_of

NONE = -1
_LOGITS_AT_ONCE = 1 << 24  # elements of one logit block: 64 MB in fp32
_GATHER_COST = 64  # one gathered multiply-add costs about as much as this many inside a gemm


@dataclass(frozen=True, slots=True)
class Scorer:
    """What turns a hidden state at a trie node into log-probabilities of the node's children."""

    trie: Trie
    weight_VD: Tensor
    bias_V: Tensor | None
    temperature: float  # > 0
    over_vocab: bool  # normalise over the vocabulary (mask "after"), not over legal tokens


def child_log_probs(scorer: Scorer, hidden_PD: Tensor, node_P: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the legal tokens at each node (docs/evaluation.md).

    Returns:
        log_prob_PF: fp32, at most 0, -inf past a node's last child.
        child_PF: int64 trie node behind each token, in ascending token order, NONE past the end.
    """
    trie = scorer.trie
    count_P = trie.fan_out(node_P).long()
    widest = int(count_P.max()) if len(count_P) > 0 else 0
    place_F = torch.arange(widest, device=node_P.device)
    legal_PF = place_F < count_P[:, None]
    edge_PF = trie.edge_start_N1[node_P].long()[:, None] + place_F
    child_PF = torch.where(legal_PF, edge_PF + 1, NONE)
    log_prob_PF = torch.full(legal_PF.shape, -torch.inf, device=node_P.device)
    log_prob_PF[:, :1] = 0.0  # a forced token has probability 1 among the legal ones
    asked_P = (count_P > 1) | scorer.over_vocab
    if bool(asked_P.any()):
        asked = (hidden_PD[asked_P], node_P[asked_P], edge_PF[asked_P], legal_PF[asked_P])
        logits_PF = _child_logits(scorer, *asked)
        total_P = vocab_logsumexp(scorer, asked[0]) if scorer.over_vocab else logits_PF.logsumexp(1)
        # Rounding may leave 1e-7 above 0; "scores only fall" must hold to the last bit.
        log_prob_PF[asked_P] = (logits_PF - total_P[:, None]).clamp_max(0)
    return log_prob_PF, child_PF


def forced_log_probs(scorer: Scorer, hidden_PD: Tensor, node_P: Tensor) -> Tensor:
    """Log-probability (mask "after") of the only legal token at each node; fp32, at most 0."""
    token_P = scorer.trie.edge_token_E[scorer.trie.edge_start_N1[node_P].long()].long()
    logits_P = _dot(scorer, hidden_PD, token_P)
    return (logits_P - vocab_logsumexp(scorer, hidden_PD)).clamp_max(0)


def vocab_logsumexp(scorer: Scorer, hidden_PD: Tensor) -> Tensor:
    """log sum_v exp(z_v / temperature) over the whole vocabulary, a block of columns at a time."""
    step = max(1, _LOGITS_AT_ONCE // len(hidden_PD))
    hidden_PD = hidden_PD.float() / scorer.temperature
    blocks = []
    for at in range(0, len(scorer.weight_VD), step):
        logits_PU = hidden_PD @ scorer.weight_VD[at : at + step].float().T
        if scorer.bias_V is not None:
            logits_PU += scorer.bias_V[at : at + step].float() / scorer.temperature
        blocks.append(logits_PU.logsumexp(1))
    return torch.stack(blocks).logsumexp(0)


def _child_logits(
    scorer: Scorer, hidden_PD: Tensor, node_P: Tensor, edge_PF: Tensor, legal_PF: Tensor
) -> Tensor:
    """Logits / temperature of the children, -inf elsewhere; never a vocabulary-wide block."""
    trie = scorer.trie
    distinct_N: Tensor = torch.unique(node_P)
    edges, _ = edges_of(trie, distinct_N)
    column_U: Tensor = torch.unique(trie.edge_token_E[edges].long())
    logits_PF = torch.full(edge_PF.shape, -torch.inf, device=hidden_PD.device)
    if int(legal_PF.sum()) * _GATHER_COST < len(node_P) * len(column_U):
        # Few children each: a dot product per edge beats a gemm over the union of columns.
        token_C = trie.edge_token_E[edge_PF[legal_PF]].long()
        logits_PF[legal_PF] = _dot(scorer, hidden_PD[legal_PF.nonzero()[:, 0]], token_C)
        return logits_PF
    token_PF = trie.edge_token_E[torch.where(legal_PF, edge_PF, 0)].long()
    place_PF = torch.searchsorted(column_U, token_PF).clamp_max(len(column_U) - 1)
    weight_UD = scorer.weight_VD[column_U].float() / scorer.temperature
    bias_U = None
    if scorer.bias_V is not None:
        bias_U = scorer.bias_V[column_U].float() / scorer.temperature
    step = max(1, _LOGITS_AT_ONCE // len(column_U))
    for at in range(0, len(node_P), step):
        rows = slice(at, at + step)
        logits_RU = torch.nn.functional.linear(hidden_PD[rows].float(), weight_UD, bias_U)
        logits_PF[rows] = logits_RU.gather(1, place_PF[rows])
    return logits_PF.masked_fill_(~legal_PF, -torch.inf)


def _dot(scorer: Scorer, hidden_CD: Tensor, token_C: Tensor) -> Tensor:
    """Logit / temperature of one token per row, in blocks of bounded size."""
    step = max(1, _LOGITS_AT_ONCE // hidden_CD.shape[1])
    blocks = [
        torch.linalg.vecdot(hidden_CD[at : at + step].float(), scorer.weight_VD[rows].float())
        for at in range(0, len(token_C), step)
        for rows in [token_C[at : at + step]]
    ]
    logits_C = torch.cat(blocks)
    if scorer.bias_V is not None:
        logits_C += scorer.bias_V[token_C].float()
    return logits_C / scorer.temperature
