"""Backbones are looked at before they are used: what differs is refused, what agrees passes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, FalconH1Config

from llmrec_cli.config.model import ModelSection
from llmrec_cli.decoding.probe import (
    CACHE,
    CAUSAL,
    HEAD,
    PACKED,
    TREE,
    ProbeVerdict,
    attention_of,
    build_twin,
    explain_attention,
    find_twin,
    probe,
    probe_key,
    read_verdict,
    refusal,
    shrunken,
)
from llmrec_cli.errors import NumbersError
from llmrec_cli.models.loading import add_lora

FAR = 1 << 40  # tokens: past every window
ROTARY = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
CAP = {"text_config": {"model_type": "gemma4_text", "final_logit_softcapping": 30.0}}


def config(name: str, **settings: Any) -> Any:
    return CONFIG_MAPPING[name](**settings)


def twin(name: str, attention: str = "sdpa", **settings: Any) -> Any:
    return build_twin(config(name, **settings), attention)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma3_text"])
def test_what_agrees_passes_also_past_its_window(name: str, attention: str) -> None:
    found = probe(twin(name, attention), "", FAR)
    assert (found.faults, found.past, found.unseen) == ({}, {}, {})
    assert set(found.windows) == (
        {"sliding_window"} if name in ("mistral", "gemma3_text") else set()
    )
    assert all(share < 1e-5 for share in found.differences.values())


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads", "hidden"),
    [
        ("llama", 9, 3, 576),  # SmolLM2-135M
        ("llama", 15, 5, 960),  # SmolLM2-360M
        ("llama", 32, 8, 4096),  # Llama-3 8B
        ("qwen2", 14, 2, 896),  # Qwen2.5-0.5B
        ("qwen2", 28, 4, 3584),  # Qwen2.5-7B
        ("llama", 3, 3, 192),
        ("llama", 6, 1, 384),
    ],
)
def test_real_counts_of_heads_have_a_twin(
    name: str, heads: int, kv_heads: int, hidden: int
) -> None:
    asked = config(
        name, num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=hidden
    )
    found = find_twin(asked, "sdpa")
    assert found is not None
    small = found.config
    assert (small.num_key_value_heads == small.num_attention_heads) == (kv_heads == heads)
    assert probe(found, "", FAR).faults == {}


WRONG: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a soft cap in text_config": (
        "gemma4",
        "sdpa",
        CAP,
        r"head: the logits are changed after the output head.*\(final_logit_softcapping = 30.0\)",
    ),
    "scaled logits": ("cohere", "sdpa", {}, r"head: the logits are changed.*logit_scale = 0.0625"),
    "an encoder": ("bert", "sdpa", {}, "causal order: .* this is no causal model"),
    "an encoder's head": ("bert", "sdpa", {"is_decoder": True}, "head: the logits are changed"),
    "alibi of its own": ("mpt", "eager", {}, "packed rows: the mask or the positions are ignored"),
    "a mask of two axes": ("bloom", "eager", {}, "packed rows: cannot be computed \\(ValueError"),
    "no attention": ("rwkv", "eager", {}, "packed rows: the mask or the positions are ignored"),
    "positions of its own": ("bart", "sdpa", {}, "packed rows: the mask or the positions"),
    "linear attention": ("qwen3_next", "sdpa", {}, "layers of type linear_attention"),
    "a window of its own": (
        "gpt_neo",
        "eager",
        {"window_size": 256},
        "past window_size = 256 tokens: .*; what works: rows of up to 256 tokens",
    ),
    "rotary scaling by length": (
        "llama",
        "sdpa",
        {"rope_parameters": {"rope_type": "dynamic", **ROTARY}},
        "past original_max_position_embeddings = 64 tokens: .*; what works: rows of up to 64",
    ),
    "two rotary scalings": (
        "phi3",
        "sdpa",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0] * 48,
                "long_factor": [8.0] * 48,
                **ROTARY,
            },
        },
        "past original_max_position_embeddings = 64 tokens: ",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_differs_is_named(case: str) -> None:
    name, attention, settings, words = WRONG[case]
    model = twin(name, attention, **settings)
    told = refusal(probe(model, "", FAR), model.config, packs=True)
    assert told is not None
    assert told.startswith(f"model type '{name}'")
    assert "\n" not in told
    assert re.search(words, told), told


def test_rows_within_a_window_need_no_look_behind_it() -> None:
    model = twin("gpt_neo", "eager", window_size=256)
    assert refusal(probe(model, "", 256), model.config, packs=True) is None


def test_a_multiplied_head_is_seen() -> None:
    small = FalconH1Config(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        lm_head_multiplier=0.5,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(small).eval()
    told = refusal(probe(model, "", 0), model.config, packs=True)
    assert told is not None
    assert "head: the logits are changed" in told
    assert "(lm_head_multiplier = 0.5)" in told


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_soft_cap_shows_where_all_logits_are_still_small(dtype: torch.dtype) -> None:
    """As of weights drawn a moment ago: a cap of 30 does nothing to logits below 1."""
    small = shrunken(config("gemma3_text", final_logit_softcapping=30.0))
    model = AutoModelForCausalLM.from_config(small, dtype=dtype).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    assert HEAD in probe(model, "", 0).faults


def test_logits_that_are_nearly_equal_are_not_a_difference() -> None:
    model = twin("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-4)
    assert probe(model, "", 0).faults == {}


def test_rounding_of_half_precision_passes_and_hides_nothing() -> None:
    assert probe(twin("llama").bfloat16(), "", 0).faults == {}
    found = probe(twin("bart").bfloat16(), "", 0)
    assert PACKED in found.faults


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_nothing_changes_by_looking() -> None:
    section = ModelSection(backbone="x", tuning="lora")
    model = add_lora(twin("llama"), section, []).train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    before = torch.get_rng_state()
    found = probe(model, "", FAR)
    assert found.faults == {}
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert attention_of(model) == "sdpa"


def test_weights_that_are_no_numbers_are_not_a_matter_of_architecture() -> None:
    model = twin("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NumbersError, match="NaN or infinite"):
        probe(model, "", 0)


def test_what_works_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of True and False is refused by this attention, one of numbers is not."""
    model = twin("llama")
    plain = type(model.model).forward

    def forward(body: Any, *args: Any, attention_mask: Any = None, **named: Any) -> Any:
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            raise TypeError("expected numbers")
        return plain(body, *args, attention_mask=attention_mask, **named)

    monkeypatch.setattr(type(model.model), "forward", forward)
    found = probe(model, "", 0)
    assert set(found.faults) == {PACKED, TREE, CACHE}
    assert attention_of(model) == "sdpa"
    told = refusal(found, model.config, packs=True)
    assert told is not None
    assert told.endswith('what works: model.attention = "eager"')


def test_an_attention_that_a_model_lacks_is_told_with_what_works() -> None:
    neo = config("gpt_neo")
    assert explain_attention(config("llama"), "sdpa", 0) is None
    told = explain_attention(neo, "sdpa", 100)
    assert told is not None
    assert told.endswith('has no such attention; what works: model.attention = "eager"')
    assert "past window_size" in (explain_attention(neo, "sdpa", 1000) or "")
    assert 'with "eager": model type' in (explain_attention(config("bloom"), "sdpa", 0) or "")


def test_separate_rows_are_what_works_where_only_packing_differs() -> None:
    llama = config("llama")
    found = ProbeVerdict("", 1e-4, {}, {PACKED: "no mask", TREE: "no mask"})
    assert refusal(found, llama, packs=False) is None
    assert 'what works: separate rows (rows = "window"' in (refusal(found, llama, packs=True) or "")
    both = replace(found, faults={**found.faults, CACHE: "no mask"})
    assert "nothing that was tried works" in (refusal(both, llama, packs=False) or "")


def test_a_verdict_is_read_again_only_for_what_it_is_about() -> None:
    llama, other = config("llama"), config("llama", rms_norm_eps=1e-3)
    key = probe_key(llama, 100, "sdpa")
    kept = json.loads(json.dumps(ProbeVerdict(key, 1e-4, {CAUSAL: 0.0}, {}).as_json()))
    assert read_verdict(kept, key) == ProbeVerdict(key, 1e-4, {CAUSAL: 0.0}, {})
    assert key != probe_key(llama, 100, "eager")
    assert key != probe_key(other, 100, "sdpa")
    assert probe_key(llama, 10, "sdpa") == probe_key(llama, 100, "sdpa"), "no window in between"
    windowed = config("mistral")
    assert probe_key(windowed, 10) != probe_key(windowed, FAR)
    assert read_verdict(kept, "another") is None
    assert read_verdict(kept | {"strange": 1}, key) is None
    assert read_verdict("none", key) is None
