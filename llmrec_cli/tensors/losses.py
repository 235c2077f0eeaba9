"""Losses as sums and counts: LML, MSL, and the preference losses of DPO's family.

The number of an equation is its paper's.  LML, ATS, S-DPO and DMPO are named without one: they are
written as docs/methods has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmrec_cli.tensors.legal_softmax import HeadWeights, LegalLogits, legal_logits
from llmrec_cli.tensors.trie import Trie

# Losses as sums, and their statistics. The training loop computes the mean.
#
# Shape suffixes: P response positions, A active positions (fan-out > 1), U legal columns of a
# batch, D model width, V vocabulary.


CHUNK = 1 << 24
"""Logits that exist at once in ``vocab_nll``: 64 MB in fp32."""


def vocab_nll(
    hidden_PD: Tensor,
    weight_VD: Tensor,
    target_P: Tensor,
    bias_V: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> Tensor:
    """``-log softmax_V(z)(y)`` per position, over the whole vocabulary; LML, arXiv:2308.08434.

    Positions are taken in chunks of at most ``chunk`` logits (but one row at least).  With a frozen
    head the gradient of the hidden states is computed along with the loss, while a chunk's logits
    are there; with a trained one they are computed again in the backward pass, or kept where they
    fit into one chunk.

    Args:
        hidden_PD: after the final norm; cast to the dtype of the weight for the product.
        weight_VD: frozen or trained.
        target_P: int64 token ids.

    Returns:
        nll_P: nats, fp32 (fp64 stays), with gradient to hidden states, weight and bias.
    """
    rows = max(1, chunk // len(weight_VD))
    trained = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
    if torch.is_grad_enabled() and hidden_PD.requires_grad and not trained:
        nll_P: Tensor = _FrozenNll.apply(hidden_PD, weight_VD, target_P, bias_V, rows)  # type: ignore[no-untyped-call]  # torch's
        return nll_P
    if len(target_P) <= rows:
        return _nll_of_chunk(hidden_PD, weight_VD, target_P, bias_V)
    parts: list[Tensor] = [
        checkpoint(
            _nll_of_chunk, h, weight_VD, y, bias_V, use_reentrant=False, preserve_rng_state=False
        )
        for h, y in zip(torch.split(hidden_PD, rows), torch.split(target_P, rows), strict=True)
    ]
    return torch.cat(parts)


def _nll_of_chunk(
    hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor, bias_V: Tensor | None
) -> Tensor:
    logits_CV = F.linear(hidden_CD.to(weight_VD.dtype), weight_VD, bias_V)
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return F.cross_entropy(logits_CV, target_C, reduction="none")


class _FrozenNll(torch.autograd.Function):
    """``vocab_nll`` of a frozen head: two products per chunk where recomputing takes three."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        target_P: Tensor,
        bias_V: Tensor | None,
        rows: int,
    ) -> Tensor:
        nll, gradients = [], []
        for hidden_CD, target_C in zip(
            torch.split(hidden_PD, rows), torch.split(target_P, rows), strict=True
        ):
            logits_CV = F.linear(hidden_CD.to(weight_VD.dtype), weight_VD, bias_V)
            log_prob_CV = torch.log_softmax(
                logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)), dim=-1
            )
            nll.append(-log_prob_CV.gather(1, target_C[:, None]).squeeze(1))
            error_CV = log_prob_CV.exp_()  # d nll / d z = softmax(z) - onehot(y)
            error_CV.scatter_add_(1, target_C[:, None], -torch.ones_like(nll[-1])[:, None])
            gradients.append(error_CV.to(weight_VD.dtype) @ weight_VD)
        ctx.save_for_backward(torch.cat(gradients))
        ctx.dtype = hidden_PD.dtype
        return torch.cat(nll)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_PD,) = ctx.saved_tensors
        hidden_grad_PD = gradient_PD * grad_P.to(gradient_PD.dtype)[:, None]
        return hidden_grad_PD.to(ctx.dtype), None, None, None, None


def choice_stats(legal: LegalLogits, is_choice_A: Tensor) -> dict[str, Tensor]:
    """Sums over the positions of one choice, from which ``adaptive_temperature`` sets tau.

    Args:
        legal: logits of a micro-batch, without leading dimensions.
        is_choice_A: bool, the positions at the trie node where the choice is made.

    Returns:
        Detached float64 scalars, additive over any split of a batch (in float64 the plain sum of
        squares of logits loses nothing that matters, and needs no shift common to all ranks):
        ``choice_rows``, ``choice_target_sum`` (of ``z(y)``), ``choice_legal`` (how many legal
        logits, targets included), ``choice_legal_sum`` and ``choice_legal_squares`` of those.
    """
    legal_AU = legal.legal_AU() & is_choice_A[:, None]
    logits_AU = legal.logits_AU.detach().masked_fill(~legal_AU, 0).double()
    targets_A = legal.target_logits().detach().masked_fill(~is_choice_A, 0).double()
    return {
        "choice_rows": is_choice_A.sum().double(),
        "choice_target_sum": targets_A.sum(),
        "choice_legal": legal_AU.sum().double(),
        "choice_legal_sum": logits_AU.sum(),
        "choice_legal_squares": logits_AU.square().sum(),
    }


def adaptive_temperature(stats: Mapping[str, float | Tensor], fan_out: int, eta: float) -> float:
    """The temperature at which the target's token has probability about ``eta`` at one choice.

    With Gaussian negatives ``p ~= exp(d / tau - s2 / (2 tau^2)) / N``; ``p = eta`` solved for tau
    is MSL's adaptive temperature (ATS, arXiv:2504.04178, docs/methods/msl.md).

    Args:
        stats: ``choice_stats`` summed over the whole global batch, at least one row.
        fan_out: N, legal tokens of the choice, at least 2.
        eta: wanted average probability, (0, 1), with ``N * eta > 1``.

    Returns:
        tau, not clamped: where no tau reaches eta the square root counts as 0, and where targets
        score below the average legal token the result may be negative.

    Raises:
        ValueError: ``N * eta <= 1``, or statistics of no rows.
    """
    total = {name: float(value) for name, value in stats.items()}
    rows, n = total["choice_rows"], total["choice_legal"]
    scale = math.log(fan_out * eta)  # C
    if scale <= 0 or rows == 0:
        raise ValueError(
            f"needs N * eta > 1 and rows > 0; N = {fan_out}, eta = {eta}, {rows:g} rows"
        )
    mean = total["choice_legal_sum"] / n  # mu-
    variance = (total["choice_legal_squares"] - n * mean**2) / (n - 1)  # s2, unbiased
    gap = total["choice_target_sum"] / rows - mean  # d = mu+ - mu-
    return (gap + math.sqrt(max(0.0, gap**2 - 2 * scale * variance))) / (2 * scale)


# Preference losses on groups of answers: DPO, S-DPO and DMPO (docs/methods/preference.md).
#
# They work on ``D(y|x) = log pi(y|x) - log pi_ref(y|x)``, summed over an answer's tokens, in nats.
#
# Shape suffixes: P response positions, A answers, G groups, K rejected answers of a group, C chosen
# ones: 1, shared by the group, or K, one beside each rejected answer (the rank-pair task).


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
    log_prob_P = score_tokens(
        hidden_PD,
        head,
        trie,
        node_P,
        target_P,
        legal=legal,
        temperature=temperature,
        dense_head=dense_head,
    )
    return sum_over_answers(-log_prob_P, answer_P, answers)


def score_tokens(
    hidden_PD: Tensor,
    head: HeadWeights,
    trie: Trie,
    node_P: Tensor,
    target_P: Tensor,
    *,
    legal: bool,
    temperature: float = 1.0,
    dense_head: bool = False,
) -> Tensor:
    """``log pi(y_t | x, y_<t)`` of each position, [P], nats; arguments as for ``score_answers``.

    Over legal tokens a forced one has 0, without a gradient.
    """
    if not legal:
        return -vocab_nll(hidden_PD, head.weight_VD, target_P, head.bias_V)
    found = legal_logits(hidden_PD, head, trie, node_P, target_P, dense_head=dense_head)
    nll_A = found.nll(temperature)
    return nll_A.new_zeros(len(target_P)).index_add(0, found.active_A, nll_A, alpha=-1)


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
