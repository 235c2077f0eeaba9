"""Packing token sequences that share prefixes into one row each: a prompt with all its answers.

The sequences of a row form a prefix tree.  Its tokens are laid out depth first, so a token's
descendants follow it directly, and a token sees exactly its ancestors and itself: token j is an
ancestor of token i where ``j <= i < end_j``.  A causal model computes for every token what it
would compute in the sequence alone, and every shared prefix once.

Shape suffixes: S sequences, W tokens of the longest sequence, B packed rows, T tokens of the
longest packed row, M distinct tokens (prefix-tree nodes) of all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tree(NamedTuple):
    """Where the tokens of packed rows stand in their prefix trees."""

    position_BT: Tensor  # int64: depth of a token, its position in its sequence alone
    end_BT: Tensor  # int64: the slot after a token's last descendant; its own + 1 at padding

    def to(self, device: torch.device) -> Tree:
        """The same, with its arrays on ``device``."""
        return Tree(*(x.to(device, non_blocking=True) for x in self))


class Packed(NamedTuple):
    """Packed rows, padded on the right, and where each sequence's tokens went."""

    input_ids_BT: Tensor  # int64; 0 at padding
    tree: Tree
    slot_SW: Tensor  # int64: row * T + slot of every token; 0 past a sequence's end


def pack(tokens_SW: Tensor, row_S: Tensor) -> Packed:
    """Lay the sequences of each row out as one prefix tree.

    Args:
        tokens_SW: int64 token ids >= 0, -1 past a sequence's end; each has at least one token.
        row_S: int64, 0..B-1, every row at least once: the row a sequence belongs to.
    """
    order_S = _lexicographic(tokens_SW, row_S)
    sorted_SW, sorted_row_S = tokens_SW[order_S], row_S[order_S]
    inside_SW = sorted_SW >= 0

    # A sequence opens new tokens from where it leaves the sequence before it; in reading order that
    # numbers them depth first.  Further left it shares the tokens last opened above.
    differs_SW = torch.ones_like(inside_SW)
    same_row_S = sorted_row_S[1:] == sorted_row_S[:-1]
    differs_SW[1:] = ((sorted_SW[1:] != sorted_SW[:-1]).cumsum(1) > 0) | ~same_row_S[:, None]
    opens_SW = differs_SW & inside_SW
    number_SW = (opens_SW.flatten().cumsum(0) - 1).view_as(opens_SW)
    node_SW = torch.where(opens_SW, number_SW, -1).cummax(0).values
    end_M = _ends(opens_SW)

    row_M = sorted_row_S[:, None].expand_as(opens_SW)[opens_SW]
    size_B = torch.bincount(row_M)
    slot_M = torch.arange(len(row_M)) - (size_B.cumsum(0) - size_B)[row_M]
    width = int(size_B.max())
    own_slot_T = torch.arange(width)
    shape = (len(size_B), width)
    input_ids_BT = torch.zeros(shape, dtype=torch.int64)
    position_BT = torch.zeros(shape, dtype=torch.int64)
    end_BT = (own_slot_T + 1).repeat(shape[0], 1)
    depth_SW = torch.arange(tokens_SW.shape[1]).expand_as(opens_SW)
    input_ids_BT[row_M, slot_M] = sorted_SW[opens_SW]
    position_BT[row_M, slot_M] = depth_SW[opens_SW]
    end_BT[row_M, slot_M] = slot_M + end_M
    slot_SW = torch.zeros_like(tokens_SW)
    flat_M = row_M * width + slot_M
    slot_SW[order_S] = torch.where(inside_SW, flat_M[node_SW.clamp_min(0)], 0)
    return Packed(input_ids_BT, Tree(position_BT, end_BT), slot_SW)


def sees(end_BT: Tensor) -> Tensor:
    """Which tokens each token attends to: bool [B, T, T], its ancestors and itself.

    Args:
        end_BT: from ``pack``; padding sees itself alone, so that no softmax is empty.
    """
    slot_T = torch.arange(end_BT.shape[1], device=end_BT.device)
    behind_TT = slot_T[None, :] <= slot_T[:, None]
    return behind_TT & (slot_T[None, :, None] < end_BT[:, None, :])


def _lexicographic(tokens_SW: Tensor, row_S: Tensor) -> Tensor:
    """Order of the sequences by row, then token by token, a prefix before what it begins."""
    keys_SW = torch.cat([row_S[:, None], tokens_SW], dim=1)
    place_S = torch.unique(keys_SW, dim=0, return_inverse=True)[1]
    return torch.argsort(place_S, stable=True)


def _ends(opens_SW: Tensor) -> Tensor:
    """How many tokens each new token's subtree has (itself included), in numbering order.

    The subtree of a token that a sequence opened at depth w ends where the next sequence that opens
    a token at depth w or above begins; a row's first sequence opens one at depth 0.
    """
    n_sequences, width = opens_SW.shape
    opened_S = opens_SW.sum(1)
    before_S1 = torch.nn.functional.pad(opened_S.cumsum(0), (1, 0))  # tokens numbered before each
    depth_W = torch.arange(width)
    first_new_S = torch.where(opens_SW, depth_W, width).min(1).values
    ends_SW = torch.where(
        first_new_S[:, None] <= depth_W, torch.arange(n_sequences)[:, None], n_sequences
    )
    next_SW = torch.full_like(ends_SW, n_sequences)
    next_SW[:-1] = ends_SW[1:].flip(0).cummin(0).values.flip(0)
    return before_S1[next_SW][opens_SW] - torch.arange(int(opened_S.sum()))
