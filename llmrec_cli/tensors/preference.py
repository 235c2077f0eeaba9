"""Preference losses on groups of answers: DPO, S-DPO and DMPO (docs/methods/preference.md).

They work on ``D(y|x) = log pi(y|x) - log pi_ref(y|x)``, summed over an answer's tokens, in nats.

Shape suffixes: P response positions, A answers, G groups, K rejected answers of a group, C chosen
ones: 1, shared by the group, or K, one beside each rejected answer (the rank-pair task).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llmrec_cli.tensors.losses import vocab_nll
from llmrec_cli.tensors.masked import HeadWeights, legal_logits
from llmrec_cli.tensors.trie import Trie


def score_answers(
    hidden_PD: Tensor,
    head: HeadWeights,
    trie: Trie,
    node_P: Tensor,
    target_P: Tensor,
    answer_P: Tensor,
    answers: int,
    *,
    legal: bool,
    temperature: float = 1.0,
    dense_head: bool = False,
) -> Tensor:
    """``log pi(y|x)`` of each answer of a batch, [A], nats.

    Args:
        hidden_PD: after the final norm, at the position before each target.
        node_P, target_P: trie node of each position, and the token chosen there.
        answer_P: int64, 0..answers-1: the answer a position belongs to.
        legal: normalised over legal tokens, else over the vocabulary.
        temperature: divides the logits, > 0; 1 over the vocabulary.
        dense_head: as ``legal_logits``.
    """
    if not legal:
        nll_P = vocab_nll(hidden_PD, head.weight_VD, target_P, head.bias_V)
        return sum_over_answers(nll_P, answer_P, answers)
    found = legal_logits(hidden_PD, head, trie, node_P, target_P, dense_head=dense_head)
    return sum_over_answers(found.nll(temperature), answer_P[found.active_A], answers)


def sum_over_answers(nll_P: Tensor, answer_P: Tensor, answers: int) -> Tensor:
    """``log pi(y|x) = sum_t log pi(y_t | x, y_<t)`` of each answer.

    Args:
        nll_P: negative log-probabilities of tokens, nats.
        answer_P: int64, 0..answers-1: the answer a token belongs to; one without tokens gets 0.

    Returns:
        log_prob_A, nats, in the dtype of ``nll_P``.
    """
    return nll_P.new_zeros(answers).index_add(0, answer_P, nll_P, alpha=-1)


def dpo(chosen_GC: Tensor, rejected_GK: Tensor, beta: float) -> Tensor:
    """``mean_i -log sigmoid(beta D_w - beta D_i)`` per group, nats; DPO eq. 7, arXiv:2305.18290.

    With K = 1 it is DPO.  With K > 1, and ``log pi`` in place of D, it is the first term of the
    released DMPO code, whose reference cancels and whose mean is outside of the sigmoid.

    Args:
        chosen_GC, rejected_GK: D of the answers, nats; C = 1 or K, and K >= 1.
        beta: > 0.
    """
    return _cost(_against(chosen_GC, rejected_GK, beta)).mean(1)


def sdpo(chosen_GC: Tensor, rejected_GK: Tensor, beta: float) -> Tensor:
    """``-log sigmoid(-log sum_i exp(beta D_i - beta D_w))`` per group, nats.

    S-DPO, arXiv:2406.09215.  Arguments as for ``dpo``, which it equals at K = 1.
    """
    return _cost(_against(chosen_GC, rejected_GK, beta).logsumexp(1))


def dmpo(chosen_GC: Tensor, rejected_GK: Tensor, beta: float) -> Tensor:
    """``-log sigmoid(beta D_w - 1/k sum_i beta D_i)`` per group, nats: the mean is inside.

    DMPO, arXiv:2405.16127.  Arguments as for ``dpo``, which it equals at K = 1.
    """
    return _cost(_against(chosen_GC, rejected_GK, beta).mean(1))


def _cost(against: Tensor) -> Tensor:
    return -F.logsigmoid(-against)


def _against(chosen_GC: Tensor, rejected_GK: Tensor, beta: float) -> Tensor:
    """``beta (D_i - D_w)``, [G, K]: what speaks for each rejected answer."""
    if chosen_GC.shape[1] not in (1, rejected_GK.shape[1]):
        raise ValueError(
            f"{chosen_GC.shape[1]} chosen answers beside {rejected_GK.shape[1]} rejected ones: "
            "expected one, or as many"
        )
    return beta * (rejected_GK - chosen_GC)
