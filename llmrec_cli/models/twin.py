"""A small random twin of a model: the same architecture, with every width cut down.

It computes in milliseconds on the CPU what the model itself computes in another size, so that an
architecture can be looked at without its weights, and past windows that would be long and dear.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import torch

VOCABULARY: Final = 96
_LAYERS: Final = 8  # kept where the configuration does not list the kind of each
# Names of widths and counts, as configurations spell them, and the most that a twin has of each;
# the first rule that a name fits holds.
_SMALL: Final = (
    (r"hidden_size|n_embd|d_model|dim|emb_dim|embedding_size|word_embed_proj_dim", 64),
    (r"attention_hidden_size|lru_width|hidden_size_per_layer_input|input_hidden_size", 64),
    (r"(?!num_|n_).*(intermediate|ffn|inner|mlp|feed_forward)\w*(size|dim|width)|n_inner", 64),
    (r"(encoder|decoder)_ffn_dim|d_ff|ffn_hidden_size|dim_ff|d_inner|expert_dim|n_shared", 64),
    (r"num_key_value_heads|num_kv_heads|multi_query_group_num|num_attention_groups", 2),
    (r"(num|n)_(attention_)?heads?|n_head|(encoder|decoder)_attention_heads", 4),
    (r"\w+_num_heads|num_\w+_heads|mamba_n_heads", 4),
    (r"(global_|v_|mamba_d_|attention_)?head_dim|d_kv|kv_channels|\w+_head_dim|mamba_d_head", 16),
    (r"qk_rope_head_dim|qk_nope_head_dim|rotary_dim|index_head_dim", 8),
    (r"\w*lora_rank|\w*_rank|state_size|mamba_d_state|ssm_state_size", 16),
    (r"vocab_size(_per_layer_input)?|tgt_vocab_size|encoder_hash_byte_group_vocab", VOCABULARY),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok\w*|moe_topk|moe_k|top_k_experts|n_shared_experts", 2),
    (r"n_group|topk_group|num_expert_groups?|num_limited_groups", 1),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_target_positions", 2048),
)
_RULES: Final = [(re.compile(names), most) for names, most in _SMALL]
_TOKEN: Final = re.compile(r"\w*token_(id|index)s?")
_DEPTH: Final = re.compile(r"(num_)?(en|de)coder_layers")
_PARTS_OF_HEAD: Final = ("short_factor", "long_factor")  # one number for every two of a head


def build_twin(config: Any, attention: str, *, layers: int = _LAYERS) -> Any:
    """A random model with the architecture of ``config``, in evaluation mode, on the CPU.

    The caller's random state is untouched; the same configuration gives the same weights.

    Args:
        config: of a causal language model; it is not changed.
        layers: kept at most, where the configuration does not list the kind of each layer.

    Raises:
        Exception: whatever the library says of a configuration that cannot be cut down.
    """
    from transformers import AutoModelForCausalLM

    small = shrunken(config, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            small, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False
        )
        _draw(model)
    return model.eval()


def _draw(model: Any) -> None:
    """Weights far from zero and from one another: what ignores a mask must show."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.is_floating_point():
            width = parameter.shape[-1]
            parameter.data.normal_(0, 1.5 / width**0.5)


def shrunken(config: Any, layers: int = _LAYERS) -> Any:
    """A copy of a configuration with small widths; kinds of layers, windows and scales stay."""
    small = _alike(copy.deepcopy(config))
    for part in _parts(small):
        _shrink(part, layers)
    return small


def _alike(config: Any) -> Any:
    """The same configuration with the same widths in all of its layers."""
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "sub_configs"):
            setattr(config, name, _alike(part))
    if not getattr(config, "is_heterogeneous", False):
        return config
    return type(config)(**(config.to_dict() | {"per_layer_config": {}}))


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "sub_configs"):
            yield from _parts(part)


def _shrink(config: Any, layers: int) -> None:
    mapped = {config.attribute_map.get(name, name): name for name in config.attribute_map}
    heads = getattr(config, "num_attention_heads", None)
    wide_kv = getattr(config, "num_key_value_heads", None)
    _keep_layers(config, layers)
    for name, value in list(vars(config).items()):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if _TOKEN.fullmatch(name):
            setattr(config, name, min(value, VOCABULARY - 1))
            continue
        known = mapped.get(name, name)
        most = next(
            (m for rule, m in _RULES if rule.fullmatch(name) or rule.fullmatch(known)), None
        )
        if most is not None and value > most:
            setattr(config, name, most)
    if heads == 3:  # by which the small width cannot be divided
        config.num_attention_heads = 4
    if heads is not None and wide_kv == heads:
        config.num_key_value_heads = config.num_attention_heads
    _fit_rotary(config)


def _keep_layers(config: Any, layers: int) -> None:
    """One layer of every kind, where kinds are listed; else the first ones."""
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        return
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds and len(kinds) == count:
        kept = sorted({*range(min(2, count)), *(kinds.index(kind) for kind in set(kinds))})
    else:
        kept = list(range(min(count, layers)))
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(config, name, [value[at] for at in kept])
        if _DEPTH.fullmatch(name) and isinstance(value, int):
            setattr(config, name, min(value, len(kept)))
    with suppress(NotImplementedError):  # an encoder and a decoder, each with its own
        config.num_hidden_layers = len(kept)


def _fit_rotary(config: Any) -> None:
    """Per-frequency factors of a rotary scaling: as many as the small head has."""
    width = getattr(config, "head_dim", None)
    if not isinstance(width, int):
        heads = getattr(config, "num_attention_heads", None)
        hidden = getattr(config, "hidden_size", None)
        if not isinstance(heads, int) or not isinstance(hidden, int):
            return
        width = hidden // heads
    for found in rotary_tables(config):
        pairs = int(width * found.get("partial_rotary_factor", 1.0)) // 2
        for name in _PARTS_OF_HEAD:
            if isinstance(found.get(name), list):
                found[name] = found[name][:pairs]
        if isinstance(section := found.get("mrope_section"), list):
            found["mrope_section"] = [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4][
                : len(section)
            ]


def rotary_tables(config: Any) -> list[dict[str, Any]]:
    """The settings of a configuration's rotary positions: one table, or one per kind of layer."""
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict):
        return []
    inner = [table for table in found.values() if isinstance(table, dict)]
    return inner or [found]
