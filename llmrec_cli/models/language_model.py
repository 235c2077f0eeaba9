"""A causal language model as a policy: hidden states, head, and attention over trees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_cli.config.model import TREE_ATTENTION
from llmrec_cli.errors import ArtefactError
from llmrec_cli.methods.contract import Head
from llmrec_cli.tensors.packing import Tree, sees

# Attention over a tree of tokens: the 4D masks that Hugging Face models take.


_SHARE_KEYS = "TRANSFORMERS_SDPA_FORCE_GQA"


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


@contextmanager
def share_keys(device: torch.device) -> Iterator[None]:
    """On a CPU, query heads of one group read its keys and values where they are.

    Under a mask, transformers copies them for every query head, in each layer of each call: CUDA
    has no kernel for both, the CPU has.  A value that the user gave the variable stays; a version
    of transformers that does not know it copies.
    """
    if device.type != "cpu" or _SHARE_KEYS in os.environ:
        yield
        return
    os.environ[_SHARE_KEYS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_SHARE_KEYS, None)  # another thread's search may have ended first


def _as_mask(config: Any, sees_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    if config._attn_implementation == "sdpa":
        return sees_BTS[:, None]
    zero = torch.zeros((), dtype=dtype, device=sees_BTS.device)
    return torch.where(sees_BTS[:, None], zero, torch.finfo(dtype).min)


# Policies: a causal language model as a body and a head, which are called separately.


class Policy(nn.Module):
    """A causal language model seen as its body and its head.

    ``forward(input_ids_BT, take_P)`` returns hidden states at the flat positions ``take_P`` of the
    padded batch, after the final norm.  Rows are padded on the right, so a causal model needs no
    mask; packed rows say in ``tree`` what each token sees.

    Returns:
        hidden_XPD: the last hidden states, then those of the ``layers`` layers before the last,
        nearest first: [1 + layers, P, D].
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids_BT: Tensor, take_P: Tensor, *, tree: Tree | None = None, layers: int = 0
    ) -> Tensor:
        decoder = find_body(self.model)
        output = decoder(
            input_ids=input_ids_BT,
            use_cache=False,
            output_hidden_states=layers > 0,
            **_tree_arguments(decoder, tree),
        )
        last_PD: Tensor = output.last_hidden_state.flatten(0, 1)[take_P]
        if layers == 0:
            return last_PD[None]
        check_depth(decoder.config, layers)
        norm = final_norm(decoder)
        before = output.hidden_states[-2 : -2 - layers : -1]
        return torch.stack([last_PD, *(norm(h.flatten(0, 1)[take_P]) for h in before)])

    def head(self) -> Head:
        """The head's weights, shared with the model."""
        return head_weights(self.model)


@contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """Every pass but training's: no dropout, no gradients; afterwards each module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _tree_arguments(decoder: Any, tree: Tree | None) -> dict[str, Any]:
    if tree is None:
        return {}
    check_layers(decoder.config)
    check_implementation(decoder.config)
    distance_BTT = tree.position_BT[:, :, None] - tree.position_BT[:, None, :]
    dtype = next(decoder.parameters()).dtype
    mask = tree_masks(decoder.config, sees(tree.end_BT), distance_BTT, dtype)
    return {"attention_mask": mask, "position_ids": tree.position_BT}


def check_depth(config: Any, layers: int) -> None:
    """Refuse more intermediate layers than a model has.

    Raises:
        ArtefactError: expected fewer; the last layer and the embeddings are not among them.
    """
    if layers >= config.num_hidden_layers:
        raise ArtefactError(
            f"{layers} layers before the last are asked for: the backbone has "
            f"{config.num_hidden_layers}, so at most {config.num_hidden_layers - 1} stand there"
        )


def final_norm(decoder: Any) -> nn.Module:
    """The norm between the last layer and the head.

    Raises:
        ArtefactError: an architecture whose norm goes by another name.
    """
    names = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
    for name in names:
        if isinstance(getattr(decoder, name, None), nn.Module):
            found: nn.Module = getattr(decoder, name)
            return found
    raise ArtefactError(
        f"model type {decoder.config.model_type!r}: no final norm found under {', '.join(names)}"
    )


def find_body(model: Any) -> Any:
    """The part of a causal LM below its head, LoRA layers included.

    What a model does to its logits after the head is not seen here: ``decoding.probe`` looks at
    that before a model is used.
    """
    return _unwrap_model(model).get_decoder()


def head_weights(model: Any) -> Head:
    """The output head's weights as they act: with a LoRA delta, or trained rows of new tokens.

    Raises:
        ArtefactError: no head, or one whose weights are no floating-point numbers (quantized).
    """
    layer = _unwrap_model(model).get_output_embeddings()
    if layer is None:
        raise ArtefactError("no output head: expected one linear layer over the vocabulary")
    weight_VD: Tensor = layer.weight
    if hasattr(layer, "get_delta_weight") and not (layer.merged or layer.disable_adapters):
        for adapter in layer.active_adapters:
            weight_VD = weight_VD + layer.get_delta_weight(adapter)
    if not weight_VD.is_floating_point():
        raise ArtefactError(f"output head of type {weight_VD.dtype}: expected floating point")
    return Head(weight_VD, getattr(layer, "bias", None))


def inner_config(model: Any) -> Any:
    """The configuration of a causal LM, below its adapter."""
    return _unwrap_model(model).config


def _unwrap_model(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
