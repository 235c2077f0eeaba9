"""The check of a backbone: a few tokens are computed in two ways, also on a small copy."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from llmrec_cli.config.model import TREE_ATTENTION
from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue
from llmrec_cli.errors import ArtefactError, LlmrecError, NumbersError
from llmrec_cli.methods.contract import Head
from llmrec_cli.models.language_model import Policy, find_body, inner_config
from llmrec_cli.models.loading import first_line, quiet
from llmrec_cli.tensors.packing import pack
from llmrec_cli.tensors.trie import Trie, build_trie

# A small random copy of a model: the same architecture with small widths.
#
# It runs in milliseconds on the CPU. So an architecture can be checked without its weights, and
# beyond windows that would be long and slow.


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


# The check of a backbone: llmrec's calls must give the same logits as one plain call.
#
# llmrec calls a model in parts: it applies the head to the body's hidden states, packs answers
# after one prompt with a mask and positions, and decodes with a cache. A model that changes logits
# after the head, or ignores masks or positions, would silently give wrong losses and lists. So a
# few random tokens are computed in both ways, and compared.
#
# Shape suffixes: R rows of equal length, T tokens, D model width, V vocabulary, L leaves.


CAUSAL, HEAD, PADDING = "causal order", "head", "padding"
PACKED, TREE, CACHE = "packed rows", "tree", "cache"
CALL: Final = "plain call"
_PACKING: Final = (PACKED, TREE)
# Largest difference that is rounding, as a share of the logits' spread at a position.
_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.03}
_COARSE: Final = 0.15  # bfloat16, and whatever is quantized
_FLATTEST: Final = 0.05  # nat; of a smaller spread, the rounding of log V is no small share
_LARGE: Final = 100.0  # a logit that no soft cap leaves alone
_WINDOW: Final = 10  # of a twin: some prompts are shorter, some longer
_LONGEST: Final = 1024  # tokens that the model itself is fed, where it has no twin
_WINDOWS: Final = (  # keys of configurations: lengths behind which something changes
    "sliding_window",
    "window_size",
    "sliding_window_size",
    "local_attention",
    "attention_window_size",
    "attention_chunk_size",
    "index_topk",
    "original_max_position_embeddings",
)
_METHOD: Final = 1  # raised where the look itself changes: verdicts of before are void
_ROTARY: Final = "original_max_position_embeddings"  # where a rotary scaling begins
_AS_THEY_ARE: Final = (None, "default", "linear", "proportional")  # scalings without a length
_HEAD_KEYS: Final = (
    "final_logit",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_logit",
    "logits_soft_cap",
)
_NO_PART: Final = ("_name_or_path", "transformers_version", "dtype", "architectures", "use_cache")


@dataclass(frozen=True)
class ProbeVerdict:
    """What a look at a backbone found; plain values, so that a manifest can keep it.

    Attributes:
        key: ``probe_key`` of what was looked at.
        tolerance: the largest difference that is rounding, as a share of the logits' spread.
        differences: the largest difference of each part that could be computed, in that unit.
        faults: what is wrong with a part; empty where all agree.
        windows: windows that rows may pass, in tokens.
        past: what is wrong behind such a window.
        unseen: why nobody looked behind such a window.
        works: an attention implementation with which nothing is wrong; None: none was found.
    """

    key: str
    tolerance: float
    differences: dict[str, float]
    faults: dict[str, str]
    windows: dict[str, int] = field(default_factory=dict)
    past: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)
    works: str | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def read_verdict(found: object, key: str) -> ProbeVerdict | None:
    """A verdict that a manifest holds, if it is about the same thing."""
    if not isinstance(found, dict) or found.get("key") != key:
        return None
    try:
        return ProbeVerdict(**found)
    except TypeError:  # of another version
        return None


def probe_key(config: Any, reach: int, *about: object) -> str:
    """What a verdict depends on: architecture, windows within reach, versions, and ``about``."""
    known = {name: value for name, value in config.to_dict().items() if name not in _NO_PART}
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "peft")]
    windows = windows_within(config, reach)
    text = json.dumps([known, windows, versions, _METHOD, *about], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def probe(model: Any, key: str, reach: int, precision: torch.dtype | None = None) -> ProbeVerdict:
    """Look at a model as it is: its weights, dtype, device and adapter.

    Modes, attention and the random state are afterwards as they were; nothing keeps a gradient.
    What lies behind a window is looked at in a small random twin of the model.

    Args:
        key: ``probe_key``.
        reach: tokens of the longest row that will be fed.
        precision: of autocast, for attention kernels that take no fp32; None: as the weights are.

    Raises:
        NumbersError: the model's own logits are NaN or infinite.
    """
    begun = time.perf_counter()
    with quiet():
        verdict = replace(_probe(model, reach, precision), key=key)
    return replace(verdict, seconds=round(time.perf_counter() - begun, 3))


def _probe(model: Any, reach: int, precision: torch.dtype | None) -> ProbeVerdict:
    verdict = _look(model, precision)
    if verdict.tolerance > _TOLERANCE[torch.float32]:
        verdict.faults.update(_look_closer(model, verdict))
    windows = windows_within(inner_config(model), reach)
    for name, tokens in windows.items() if set(verdict.faults) <= set(_PACKING) else ():
        verdict.windows[name] = tokens
        seen = look_past(model, name, tokens, precision)
        if isinstance(seen, str):
            verdict.unseen[name] = seen
        elif seen.faults:
            verdict.past[name] = ": ".join(next(iter(seen.faults.items())))
    if verdict.faults:
        return replace(verdict, works=_what_works(model, precision))
    return verdict


def _look_closer(model: Any, verdict: ProbeVerdict) -> dict[str, str]:
    """What rounding hides in a model: faults of its small twin, which computes in float32."""
    twin = find_twin(inner_config(model), _masked_attention(model))
    if twin is None:
        return {}
    seen = _look(twin, None)
    known = seen.faults.keys() & seen.differences.keys() & verdict.differences.keys()
    return {
        part: f"{seen.faults[part]} (in a small random copy, in float32)"
        for part in seen.faults
        if part in known - verdict.faults.keys()
    }


def _masked_attention(model: Any) -> str:
    """A model's attention, or what the decoder takes in place of one that knows no masks."""
    attention = attention_of(model)
    return attention if attention in TREE_ATTENTION else "sdpa"


def look_past(
    model: Any, name: str, tokens: int, precision: torch.dtype | None
) -> ProbeVerdict | str:
    """Look behind a window, in a twin whose window is short; where there is none, in the model.

    Returns:
        the verdict, or why there is none.
    """
    config, attention = inner_config(model), _masked_attention(model)
    known = find_twin(config, attention)
    short = find_twin(with_window(config, name, _WINDOW), attention)
    if known is not None and short is not None and not _look(known, None).faults:
        return _look(short, None)
    if tokens > _LONGEST:
        return f"it has no small twin, and {tokens:,} tokens are too many to look at"
    return _look(model, precision, before=tokens - _WINDOW)


def explain_attention(config: Any, attention: str, reach: int) -> str | None:
    """Why a model cannot be loaded with an attention implementation, and what works instead.

    Returns:
        None: the attention is not the reason, as far as a small twin tells.
    """
    if find_twin(config, attention) is not None:
        return None
    for other in TREE_ATTENTION:
        twin = find_twin(config, other)
        if twin is not None:
            told = f"model.attention = {attention!r}: model type {config.model_type!r} has no such"
            wrong = refusal(probe(twin, "", reach), config, packs=True)
            if wrong is None:
                return f'{told} attention; what works: model.attention = "{other}"'
            return f'{told} attention; with "{other}": {wrong}'
    return None


def find_twin(config: Any, attention: str) -> Any:
    """A small random twin of a model that can be called; None: it has none.

    Args:
        config: of the model.
    """
    try:
        with quiet(), torch.no_grad():
            twin = build_twin(config, attention)
            twin(input_ids=torch.arange(VOCABULARY // 2, VOCABULARY)[None])
    except Exception as error:
        _raise_memory(error)
        return None
    return twin


def refusal(verdict: ProbeVerdict, config: Any, *, packs: bool) -> str | None:
    """What differs, and what works; None: nothing differs.

    Args:
        packs: several answers will be computed behind one prompt.
    """
    told = f"model type {config.model_type!r}"
    wrong = {part: what for part, what in verdict.faults.items() if packs or part not in _PACKING}
    if wrong:
        part, what = next(iter(wrong.items()))
        if part == HEAD and (keys := _head_keys(config)):
            what = f"{what} ({', '.join(keys)})"
        return f"{told}: {part}: {what}; {_advice(verdict, wrong)}"
    for name, what in verdict.past.items():
        tokens = verdict.windows[name]
        return (
            f"{told}: past {name} = {tokens:,} tokens: {what}; what works: rows of up to "
            f"{tokens:,} tokens (lower prompt.max_tokens), or another backbone "
            "(docs/architectures.md)"
        )
    return None


def _advice(verdict: ProbeVerdict, wrong: Mapping[str, str]) -> str:
    if verdict.works is not None:
        return f'what works: model.attention = "{verdict.works}"'
    if set(wrong) <= set(_PACKING):
        return 'what works: separate rows (rows = "window", a method without negatives)'
    return "nothing that was tried works: choose another backbone (docs/architectures.md)"


def _head_keys(config: Any) -> list[str]:
    """Settings by which a configuration says that logits are changed."""
    known = vars(config.get_text_config()).items()
    named = {k: v for k, v in known if k.startswith(_HEAD_KEYS) and type(v) in (int, float)}
    return [f"{name} = {value}" for name, value in named.items() if value not in (0, 1)]


def windows_within(config: Any, reach: int) -> dict[str, int]:
    """Lengths below ``reach`` behind which a configuration says that something changes."""
    text = config.get_text_config()
    found = {name: vars(text).get(name) for name in _WINDOWS}
    if "local" not in (getattr(text, "attention_layers", None) or ("local",)):
        found["window_size"] = None
    if scaled := _list_scaled(text):
        given = [table[_ROTARY] for table in scaled if isinstance(table.get(_ROTARY), int)]
        found[_ROTARY] = min(given, default=getattr(text, "max_position_embeddings", None))
    lengths = {name: n for name, n in found.items() if isinstance(n, int) and 0 < n < reach}
    return lengths


def with_window(config: Any, name: str, tokens: int) -> Any:
    """A copy of a configuration in which a window ends after ``tokens``."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    if hasattr(text, name):
        setattr(text, name, tokens)
    if name == _ROTARY:
        for table in _list_scaled(text):
            table[name] = tokens
            if table.get("rope_type") == "dynamic":  # begins where the positions end
                text.max_position_embeddings = tokens
    return changed


def _list_scaled(text: Any) -> list[dict[str, Any]]:
    """Settings of rotary positions that depend on a length."""
    return [table for table in rotary_tables(text) if table.get("rope_type") not in _AS_THEY_ARE]


def attention_of(model: Any) -> str:
    """The attention implementation that a model runs."""
    return str(inner_config(model).get_text_config()._attn_implementation)


def _what_works(model: Any, precision: torch.dtype | None) -> str | None:
    """Another attention implementation with which nothing differs, found by trying."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = attention_of(model)
    for other in TREE_ATTENTION:
        if other == attention:
            continue
        try:
            base.set_attn_implementation(other)
            if attention_of(model) == other and not _look(model, precision).faults:
                return other
        except Exception as error:
            _raise_memory(error)
        finally:
            base.set_attn_implementation(attention)
    return None


@dataclass(frozen=True)
class _Sample:
    """Random rows, and what the model alone says of them."""

    prompts: list[list[int]]
    leaves: list[list[int]]  # of equal length
    trie: Trie
    log_probs: list[Tensor]  # of each prompt: log p of every token after each, [R, T, V] fp32

    def row(self, prompt: int, leaf: int) -> list[int]:
        """A prompt and the leaf behind it, but for its last token."""
        return self.prompts[prompt] + self.leaves[leaf][:-1]

    def score_expected(self, prompt: int, leaf: int) -> Tensor:
        """log_TV of ``row``."""
        return self.log_probs[prompt][leaf]

    def scores(self, prompt: int) -> Tensor:
        """score_L: log-probability of every leaf."""
        start = len(self.prompts[prompt]) - 1
        leaf_LJ = torch.tensor(self.leaves)
        log_LJV = self.log_probs[prompt][:, start : start + leaf_LJ.shape[1]]
        return log_LJV.gather(2, leaf_LJ[:, :, None])[:, :, 0].sum(1)

    @property
    def spread(self) -> float:
        """Standard deviation of the log-probabilities at a position, the largest."""
        return max(float(log_RTV.std(2).max()) for log_RTV in self.log_probs)


def _look(model: Any, precision: torch.dtype | None, before: int = 0) -> ProbeVerdict:
    """The parts alone.

    Args:
        before: tokens that all prompts have in front.
    """
    with _still(model, precision):
        verdict = ProbeVerdict("", _tolerance(model, precision), {}, {})
        try:
            sample = _draw_probe(model, before)
        except Exception as error:
            verdict.faults[CALL] = _said(error)
            return verdict
        for part, (compare, wrong) in _PARTS.items():
            try:
                found = compare(model, sample)
            except Exception as error:
                verdict.faults[part] = _said(error)
                continue
            verdict.differences[part] = float(f"{found:.3g}")
            if not found <= verdict.tolerance:
                verdict.faults[part] = (
                    f"{wrong}: the difference is {found:.2g} of the logits' spread, rounding is "
                    f"below {verdict.tolerance:.2g}"
                )
        return verdict


@contextmanager
def _still(model: Any, precision: torch.dtype | None) -> Iterator[None]:
    """No gradients and no dropout; modes afterwards as they were."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    device = next(model.parameters()).device
    cast = nullcontext() if precision is None else torch.autocast(device.type, precision)
    try:
        with torch.no_grad(), cast:
            yield
    finally:
        for module in training:
            module.training = True


def _tolerance(model: Any, precision: torch.dtype | None) -> float:
    """By the coarsest numbers that the model computes with."""
    kinds = {p.dtype for p in model.parameters()} | {precision or torch.float32}
    shares = [_TOLERANCE.get(kind, _COARSE) for kind in kinds]
    if torch.cuda.is_available() and torch.backends.cuda.matmul.allow_tf32:
        shares.append(_TOLERANCE[torch.float16])
    return max(shares)


def _said(error: Exception) -> str:
    """What is wrong with a part that raised.

    Raises:
        NumbersError, MachineError: what says nothing of the part.
        Exception: no memory.
    """
    if isinstance(error, ArtefactError):
        return str(error)
    _raise_memory(error)
    if isinstance(error, LlmrecError):
        raise error
    return f"cannot be computed ({type(error).__name__}: {first_line(error)})"


def _raise_memory(error: Exception) -> None:
    if "memory" in str(error).lower() or "OutOfMemory" in type(error).__name__:
        raise error


def _draw_probe(model: Any, before: int) -> _Sample:
    """Prompts of 17, 12 and 6 tokens, the first two alike in their first 9, and three leaves."""
    usable = _plain_tokens(model)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(usable), (before,), generator=generator).tolist()
    front = [usable[at] for at in drawn]
    order = torch.randperm(len(usable), generator=generator).tolist() * 40
    picked = [usable[at] for at in order[:40]]
    shared = front + picked[:9]
    prompts = [shared + picked[9:17], shared + picked[17:20], front + picked[20:26]]
    first, second, third, end, other = picked[26:31]
    leaves = [[first, second, end], [first, third, end], [other, second, end]]
    log_probs = []
    for prompt in prompts:
        rows = torch.tensor([prompt + leaf[:-1] for leaf in leaves], device=model.device)
        log_RTV = model(input_ids=rows).logits.float().log_softmax(2).cpu()
        if not bool(log_RTV.isfinite().all()):
            raise NumbersError("the backbone's own output is NaN or infinite: its weights are bad")
        log_probs.append(log_RTV)
    return _Sample(prompts, leaves, build_trie(leaves), log_probs)


def _plain_tokens(model: Any) -> list[int]:
    """Token ids that a configuration does not name (padding, ends, images); 4,096 at most."""
    config = inner_config(model)
    rows = model.get_input_embeddings().weight.shape[0]
    size = getattr(config.get_text_config(), "vocab_size", rows)
    named: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if "token" in name:
                numbers = value if isinstance(value, list) else [value]
                named.update(number for number in numbers if isinstance(number, int))
    return [token for token in range(min(rows, size, 4096)) if token not in named]


def _log_probs(policy: Policy, hidden_TD: Tensor) -> Tensor:
    return _logits(policy.head(), hidden_TD).log_softmax(1).cpu()


def _logits(head: Head, hidden_TD: Tensor) -> Tensor:
    """logits_TV fp32; with a LoRA delta, the head is finer than the body."""
    weight_VD = head.weight_VD
    return nn.functional.linear(hidden_TD.to(weight_VD.dtype), weight_VD, head.bias_V).float()


def _largest(found: Tensor, expected: Tensor, sample: _Sample) -> float:
    """Root mean square of the differences at a position, the largest, as a share of the spread.

    Args:
        found, expected: [..., V] or scores.

    Returns:
        infinity where something is no number.
    """
    worst = (found - expected).square().mean(-1).sqrt().max()
    return float(worst) / max(sample.spread, _FLATTEST) if bool(worst.isfinite()) else float("inf")


def _causal(model: Any, sample: _Sample) -> float:
    """The model alone: whether it says the same of a prompt, whatever follows."""
    prompt = torch.tensor(sample.prompts[:1], device=model.device)
    log_TV = model(input_ids=prompt).logits[0].float().log_softmax(1).cpu()
    return _largest(log_TV, sample.score_expected(0, 0)[: len(log_TV)], sample)


def _head(model: Any, sample: _Sample) -> float:
    """Body and head beside the whole model: with the logits that it has, and with large ones."""
    policy = Policy(model)
    row_1T = torch.tensor([sample.row(0, 0)], device=model.device)
    hidden_TD = policy(row_1T, torch.arange(row_1T.shape[1], device=model.device))[0]
    natural = _largest(_log_probs(policy, hidden_TD), sample.score_expected(0, 0), sample)
    head = policy.head()
    logits_TV = _logits(head, hidden_TD)
    scale = _LARGE / float(logits_TV.abs().max().clamp_min(1e-12))
    large_TD = hidden_TD * scale
    expected_TV = _logits_of(model, row_1T, large_TD)
    if expected_TV is None:
        return natural
    found_TV = _logits(head, large_TD)
    differs_T = (found_TV - expected_TV).square().mean(1).sqrt() / expected_TV.std(1)
    return max(natural, float(differs_T.max()))


def _logits_of(model: Any, row_1T: Tensor, hidden_TD: Tensor) -> Tensor | None:
    """What the whole model makes of hidden states; None: it does not take them from its body."""
    replaced = False

    def replace_hidden(module: nn.Module, args: object, output: Any) -> Any:
        nonlocal replaced
        if getattr(output, "last_hidden_state", None) is not None:
            output.last_hidden_state = hidden_TD[None]
            replaced = True
        return output

    handle = find_body(model).register_forward_hook(replace_hidden)
    try:
        logits_TV: Tensor = model(input_ids=row_1T).logits[0].float()
    finally:
        handle.remove()
    return logits_TV if replaced else None


def _measure_padding(model: Any, sample: _Sample) -> float:
    """Rows of unlike lengths in one batch, padded on the right, without a mask."""
    rows = [sample.row(0, 0), sample.row(1, 1), sample.row(2, 2)]
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    policy = Policy(model)
    hidden_PD = policy(ids_BT, torch.arange(ids_BT.numel(), device=model.device))[0]
    log_BTV = _log_probs(policy, hidden_PD).view(len(rows), width, -1)
    expected = (
        sample.score_expected(0, 0),
        sample.score_expected(1, 1),
        sample.score_expected(2, 2),
    )
    found = zip(log_BTV, expected, strict=True)
    return max(_largest(log_TV[: len(e_TV)], e_TV, sample) for log_TV, e_TV in found)


def _make_packed_check(
    sequences: Sequence[tuple[int, int, int]],
) -> Callable[[Any, _Sample], float]:
    """(row, prompt, leaf) of each sequence of a packed batch, to its largest difference."""

    def compare(model: Any, sample: _Sample) -> float:
        rows = [sample.row(prompt, leaf) for _, prompt, leaf in sequences]
        width = max(map(len, rows))
        tokens_SW = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
        laid = pack(tokens_SW, torch.tensor([row for row, _, _ in sequences]))
        policy, device = Policy(model), model.device
        take_P = laid.slot_SW.flatten().to(device)
        hidden_PD = policy(laid.input_ids_BT.to(device), take_P, tree=laid.tree.to(device))[0]
        log_SWV = _log_probs(policy, hidden_PD).view(len(rows), width, -1)
        return max(
            _largest(log_WV[: len(row)], sample.score_expected(prompt, leaf), sample)
            for log_WV, row, (_, prompt, leaf) in zip(log_SWV, rows, sequences, strict=True)
        )

    return compare


def _measure_cache(model: Any, sample: _Sample) -> float:
    """The decoder's lists: with a beginning that prompts share, and without."""
    worst = 0.0
    options = DecodeOptions(k=len(sample.leaves), mask="after")
    trie = sample.trie
    for asked in ((0, 1), (0, 2)):
        ranked = rank_catalogue(model, trie, [sample.prompts[at] for at in asked], options)
        for at, leaf_K, score_K in zip(asked, ranked.leaf_BK, ranked.score_BK, strict=True):
            score_L = score_K[torch.argsort(leaf_K)]
            leaf_of_row = trie.leaf_of_item_I.long().cpu()
            worst = max(worst, _largest(score_L[leaf_of_row], sample.scores(at), sample))
    return worst


_Part = tuple[Callable[[Any, _Sample], float], str]
_PARTS: Final[dict[str, _Part]] = {  # how to compare, and what a difference means
    CAUSAL: (_causal, "what follows a token changes what is said at it, this is no causal model"),
    HEAD: (_head, "the logits are changed after the output head"),
    PADDING: (_measure_padding, "rows padded in one batch are not what each is alone"),
    PACKED: (_make_packed_check(((0, 0, 0), (0, 0, 2))), "the mask or the positions are ignored"),
    TREE: (
        _make_packed_check(((0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 0), (1, 2, 1))),
        "the mask or the positions are ignored",
    ),
    CACHE: (_measure_cache, "the decoder's cache, mask or positions are ignored"),
}
