"""Attention over a tree of tokens: the 4D masks that Hugging Face models take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmrec_cli.errors import ArtefactError
from llmrec_cli.recipe.model import TREE_ATTENTION


def tree_masks(
    config: Any, sees_BTS: Tensor, distance_BTS: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The mask in the form that the model's attention takes, one per kind of layer.

    Args:
        config: of the model's body; its attention is one of ``TREE_ATTENTION``.
        sees_BTS: bool, which of S keys each of T tokens attends to; no row is empty.
        distance_BTS: positions between token and key, for layers with a sliding window.
        dtype: of the model's activations.
    """
    window = getattr(config, "sliding_window", None)
    full = _as_mask(config, sees_BTS, dtype)
    if window is None:
        return full
    near = _as_mask(config, sees_BTS & (distance_BTS < window), dtype)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # Mistral: every layer slides, and one mask is expected
        return near
    return {"full_attention": full, "sliding_attention": near}


def check_layers(config: Any) -> None:
    """Refuse layers that would silently ignore a tree's mask.

    Raises:
        ArtefactError: a layer that is neither full nor sliding attention.
    """
    known = {"full_attention", "sliding_attention"}
    unknown = set(getattr(config, "layer_types", None) or ()) - known
    if unknown:
        raise ArtefactError(
            f"model type {config.model_type!r} has layers of type {', '.join(sorted(unknown))}: "
            "expected full or sliding attention"
        )


def check_implementation(config: Any) -> None:
    """Refuse attention kernels that take no mask.

    Raises:
        ArtefactError: packed rows would attend to one another.
    """
    if config._attn_implementation not in TREE_ATTENTION:
        raise ArtefactError(
            f"model.attention = {config._attn_implementation!r}: packed answers need a mask; "
            f"expected one of {', '.join(TREE_ATTENTION)}"
        )


def _as_mask(config: Any, sees_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    if config._attn_implementation == "sdpa":
        return sees_BTS[:, None]
    zero = torch.zeros((), dtype=dtype, device=sees_BTS.device)
    return torch.where(sees_BTS[:, None], zero, torch.finfo(dtype).min)
