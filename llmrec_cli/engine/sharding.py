"""Tensors that are spread over processes (FSDP): whole for a file, and back in pieces.

For ordinary tensors both functions are the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All pieces of a tensor together; where it is in pieces, every process must call this."""
    found = tensor.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found


def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be in pieces; of the same shape."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            value = distribute_tensor(
                value.to(target.device, target.dtype), target.device_mesh, target.placements
            )
        target.copy_(value)


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor laid out as ``parameter`` is, where it has its shape; else as it is."""
    if value.shape != parameter.shape:
        return value  # a counter
    laid_out = torch.empty_like(parameter, dtype=value.dtype)
    put(laid_out, value)
    return laid_out
