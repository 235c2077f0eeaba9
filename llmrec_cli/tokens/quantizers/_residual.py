"""Residual quantization with given codebooks: each level takes what the ones before have left.

Shape suffixes: I items, K width, L levels, C codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmrec_cli.tokens.quantizers._kmeans import find_nearest_codes


@dataclass(frozen=True)
class Residuals:
    """The codes of some vectors, and what each level leaves of them."""

    code_IL: Tensor
    left_LID: list[Tensor]  # behind each level
    last_IK: Tensor  # before the last level


def quantize_residual(
    vectors_IK: Tensor, book_LCK: Tensor, price_LC: Tensor | None = None
) -> Residuals:
    """The nearest code of every level, the first of equally near ones.

    Args:
        price_LC: what each code costs beside its squared distance; None: nothing.
    """
    codes, left = [], [vectors_IK]
    for level, book_CK in enumerate(book_LCK):
        price_C = None if price_LC is None else price_LC[level]
        nearest_I, _ = find_nearest_codes(left[-1], book_CK, price_C)
        codes.append(nearest_I)
        left.append(left[-1] - book_CK[nearest_I])
    return Residuals(torch.stack(codes, dim=1), left[1:], left[-2])
