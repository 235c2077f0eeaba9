"""Logits and log-softmax over legal tokens, without the vocabulary.

A position whose trie node has one legal token has probability 1: no loss, no gradient.  So only the
*active* positions (fan-out > 1) are computed, and only on the union U of their legal tokens: one
matrix product with the rows ``W[U]`` of the head, and one small mask per distinct node.

Shape suffixes: P response positions, A active positions, N distinct nodes among them, U columns
(sorted token ids), C edges, D model width, V vocabulary; ``...`` are optional leading dimensions
of the hidden states, such as layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llmrec_cli.tensors.trie import Trie, edges_of


class HeadWeights(Protocol):
    """A language-model head as its weights; ``methods.contract.Head`` is one."""

    @property
    def weight_VD(self) -> Tensor: ...

    @property
    def bias_V(self) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class LegalLogits:
    """Raw logits of the active positions on the columns U, and which of them are legal.

    Tensors live on the device of the hidden states.  With no active position every A is 0 and the
    sums below are zeros that are still connected to the graph.
    """

    active_A: Tensor  # int64, index into P
    node_A: Tensor  # int64, trie node
    logits_AU: Tensor  # [..., A, U], fp32 (fp64 stays), unmasked, not divided by a temperature
    legal_NU: Tensor  # bool, the legal columns of each distinct node
    node_row_A: Tensor  # int64, row of legal_NU
    target_A: Tensor  # int64, column of the target
    columns_U: Tensor  # int64, token ids, ascending

    def legal_AU(self) -> Tensor:
        """Bool: the legal columns of each active position."""
        return self.legal_NU[self.node_row_A]

    def log_probs(self, tau: float = 1.0) -> Tensor:
        """``log softmax_{V_t}(z / tau)``, [..., A, U]; -inf at illegal columns; tau > 0."""
        return torch.log_softmax(self._mask_logits(tau), dim=-1)

    def nll(self, tau: float = 1.0) -> Tensor:
        """``-log softmax_{V_t}(z / tau)(y)``, [..., A]; tau > 0.  MSL eq. 5, arXiv:2504.04178."""
        masked_AU = self._mask_logits(tau)
        return torch.logsumexp(masked_AU, dim=-1) - _at(masked_AU, self.target_A)

    def target_logits(self) -> Tensor:
        """``z(y)``, [..., A], raw."""
        return _at(self.logits_AU, self.target_A)

    def kth_logits(self, k: int) -> Tensor:
        """The k-th largest legal logit, [..., A], raw; the smallest where fewer than k are legal.

        Args:
            k: at least 1.
        """
        last_A1 = self.legal_AU().sum(1, keepdim=True).clamp_max(k) - 1
        masked_AU = self.logits_AU.masked_fill(~self.legal_AU(), -torch.inf)
        best_AK = masked_AU.topk(min(k, masked_AU.shape[-1]), dim=-1).values
        index = last_A1.expand(*best_AK.shape[:-1], 1)
        return best_AK.gather(-1, index).squeeze(-1)

    def _mask_logits(self, tau: float) -> Tensor:
        return (self.logits_AU / tau).masked_fill(~self.legal_AU(), -torch.inf)


def legal_logits(
    hidden_PD: Tensor,
    head: HeadWeights,
    trie: Trie,
    node_P: Tensor,
    target_P: Tensor,
    *,
    dense_head: bool = False,
) -> LegalLogits:
    """Apply the head to the active positions and their legal columns only.

    Args:
        hidden_PD: [..., P, D], after the final norm; cast to the dtype of the head's weight.
        head: its weight may be frozen, trained, tied to the embedding, or computed (merged LoRA).
        trie: may live on another device than the hidden states: integer work is done where the
            trie is, so a trie on the CPU spares a GPU every synchronisation.
        node_P: int64, trie node of each position.
        target_P: int64, the token chosen there, a legal one.
        dense_head: let autograd build the whole V x D gradient of a trained head (differentiable
            twice, traceable) where the default touches the rows W[U] only.

    Raises:
        ValueError: an active position's target is not legal at its node.
    """
    support = _batch_support(trie, node_P.to(trie.device), target_P.to(trie.device))
    support = support.to(hidden_PD.device)
    hidden_AD = hidden_PD.index_select(-2, support.active_A)
    return LegalLogits(
        logits_AU=_apply_rows(hidden_AD, head, support.columns_U, dense_head), **support._asdict()
    )


class _Support(NamedTuple):
    """The integer side of ``LegalLogits``, under the same names."""

    active_A: Tensor
    node_A: Tensor
    legal_NU: Tensor
    node_row_A: Tensor
    target_A: Tensor
    columns_U: Tensor

    def to(self, device: torch.device) -> _Support:
        return _Support(*(x.to(device, non_blocking=True) for x in self))


def _batch_support(trie: Trie, node_P: Tensor, target_P: Tensor) -> _Support:
    active_A = torch.nonzero(trie.fan_out(node_P) > 1).squeeze(1)
    node_A = node_P[active_A].long()
    node_N, node_row_A = torch.unique(node_A, return_inverse=True)
    edge_C, owner_C = edges_of(trie, node_N)
    columns_U, column_C = torch.unique(trie.edge_token_E[edge_C].long(), return_inverse=True)
    legal_NU = torch.zeros(len(node_N), len(columns_U), dtype=torch.bool, device=node_P.device)
    legal_NU[owner_C, column_C] = True
    target_A = _columns_of(target_P[active_A].long(), columns_U)
    known_A = target_A < len(columns_U)
    legal_A = known_A & legal_NU[node_row_A, torch.where(known_A, target_A, 0)]
    if not bool(legal_A.all()):
        at = int(active_A[~legal_A][0])
        raise ValueError(
            f"position {at}: token {int(target_P[at])} is not legal at trie node {int(node_P[at])}"
        )
    return _Support(active_A, node_A, legal_NU, node_row_A, target_A, columns_U)


def _columns_of(token_A: Tensor, columns_U: Tensor) -> Tensor:
    """Column of each token; ``len(columns_U)``, out of range, for a token that has none."""
    n_columns = len(columns_U)
    if n_columns == 0:
        return torch.zeros_like(token_A)
    at_A = torch.searchsorted(columns_U, token_A)
    found_A = columns_U[at_A.clamp_max(n_columns - 1)] == token_A
    return torch.where(found_A, at_A, n_columns)


def _apply_rows(hidden_AD: Tensor, head: HeadWeights, columns_U: Tensor, dense: bool) -> Tensor:
    weight_VD = head.weight_VD
    weight_UD = (
        weight_VD.index_select(0, columns_U)
        if dense or not _accumulates(weight_VD)
        else _take_rows(weight_VD, columns_U)
    )
    logits_AU = hidden_AD.to(weight_VD.dtype) @ weight_UD.T
    if head.bias_V is not None:
        logits_AU = logits_AU + head.bias_V.index_select(0, columns_U)
    return logits_AU.to(torch.promote_types(logits_AU.dtype, torch.float32))  # fp32 once, here


def _accumulates(weight: Tensor) -> bool:
    """A plain trained parameter: its gradient is summed in ``.grad``, not passed further back.

    Subclasses (DTensor, quantized parameters) keep their own gradient rules.
    """
    plain = type(weight) in (Tensor, torch.nn.Parameter)
    return plain and weight.is_leaf and weight.requires_grad and torch.is_grad_enabled()


def _take_rows(weight_VD: Tensor, rows_U: Tensor) -> Tensor:
    taken: Tensor = _TakeRows.apply(weight_VD, rows_U)  # type: ignore[no-untyped-call] # torch's
    return taken


class _TakeRows(torch.autograd.Function):
    """``weight_VD[rows_U]`` for a leaf, distinct rows; the backward pass touches only those rows.

    The gradient goes through autograd's own accumulation, so hooks, tied embeddings and data
    parallelism work as ever.  If ``.grad`` exists, the rows travel as a sparse tensor, which
    autograd adds to it in place; if not, as a dense one, which becomes ``.grad`` without a copy.
    """

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, rows_U: Tensor) -> Tensor:
        ctx.weight_VD = weight_VD  # not saved for backward: its values are not needed, its .grad is
        ctx.save_for_backward(rows_U)
        return weight_VD.index_select(0, rows_U)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_UD: Tensor) -> tuple[Tensor, None]:
        (rows_U,) = ctx.saved_tensors
        weight_VD = ctx.weight_VD
        if weight_VD.grad is None:
            return torch.zeros_like(weight_VD).index_copy_(0, rows_U, grad_UD), None
        sparse = torch.sparse_coo_tensor(
            rows_U[None], grad_UD, weight_VD.shape, check_invariants=False, is_coalesced=True
        )
        return sparse, None


def _at(values_AU: Tensor, column_A: Tensor) -> Tensor:
    index = column_A.expand(values_AU.shape[:-1]).unsqueeze(-1)
    return values_AU.gather(-1, index).squeeze(-1)
