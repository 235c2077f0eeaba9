"""Policies refuse what they could not compute rightly."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

from llmrec_cli.config.model import Lora, ModelSection, ScratchModel
from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.language_model import Policy, check_depth, final_norm, inference_mode
from llmrec_cli.models.loading import add_dropout, add_lora, build_scratch, remove_dropout
from llmrec_cli.tensors.packing import pack
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator
from llmrec_cli.training.rows import Row

pytestmark = pytest.mark.filterwarnings(  # peft reads it
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

SMALL = ScratchModel(hidden=16, layers=2, heads=2, feed_forward=24, dropout=0.5, vocabulary=300)


def policy() -> Policy:
    return Policy(build_scratch(SMALL, ["a"], (), seed=0)[0])


def test_packed_rows_need_an_attention_that_takes_a_mask() -> None:
    model = policy()
    laid = pack(torch.tensor([[5, 6], [5, 7]]), torch.tensor([0, 0]))
    model.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ArtefactError, match=r"flash_attention_2.*expected one of sdpa, eager"):
        model(laid.input_ids_BT, torch.tensor([0]), tree=laid.tree)


def test_layers_stand_between_the_embeddings_and_the_last_layer() -> None:
    config = SimpleNamespace(num_hidden_layers=3)
    check_depth(config, 2)
    with pytest.raises(ArtefactError, match="the backbone has 3, so at most 2 stand there"):
        check_depth(config, 3)


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
WIDE = {"intermediate_size": 24, "initializer_range": 0.3, "num_key_value_heads": 1}
ENDS = {"bos_token_id": 0, "eos_token_id": 1}
FAMILIES: dict[str, tuple[Any, str, str]] = {  # config, where its layers stand, its final norm
    "llama": (LlamaConfig(**SIZES, **WIDE), "layers", "norm"),
    "qwen2": (Qwen2Config(**SIZES, **WIDE), "layers", "norm"),
    "qwen3": (Qwen3Config(**SIZES, **WIDE, head_dim=8), "layers", "norm"),
    "gpt2": (GPT2Config(**SIZES, **ENDS, initializer_range=0.3), "h", "ln_f"),
}
CATALOGUE = [[a, b, 1] for a in (10, 11, 12) for b in (20, 21)]


def real(family: str, tuning: str) -> Any:
    """A causal LM with random weights, those of its norms and its adapter included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family][0])
    if tuning == "lora":
        lora = Lora(r=2, dropout=0.5, targets=("all-linear",))
        model = add_lora(model, ModelSection(backbone="x", tuning="lora", lora=lora), ())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or (parameter.ndim == 1 and name.endswith(("weight", "bias"))):
                parameter.add_(0.5 * torch.randn(parameter.shape))
    return model.eval()


def states_of(model: Any, family: str, tokens: Sequence[int], layers: int) -> Tensor:
    """What stands at every place of one sequence: the last state, then those of the layers.

    By transformers' ``output_hidden_states``, and by hooks on the layers themselves.
    """
    _, layers_name, norm_name = FAMILIES[family]
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = plain.get_decoder()
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in getattr(decoder, layers_name)]
    with torch.no_grad():
        output = model(torch.tensor([tokens]), output_hidden_states=True)
        inside = decoder(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    deep, norm = len(hooks), getattr(decoder, norm_name)
    for number in range(1, deep):  # index 0: the embeddings
        assert torch.equal(output.hidden_states[number], seen[number - 1])
    assert len(output.hidden_states) == deep + 1
    assert torch.equal(output.hidden_states[deep], norm(seen[deep - 1]))  # normed already
    assert torch.equal(inside.last_hidden_state, output.hidden_states[deep])
    before = [norm(output.hidden_states[deep - back]) for back in range(1, layers + 1)]
    return torch.cat([inside.last_hidden_state, *before]).detach()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_layers_are_the_normed_states_of_a_real_model_index_by_index(
    family: str, tuning: str
) -> None:
    model = real(family, tuning)
    sequences = [[5, 6, 7, 8, 9], [30, 3, 31]]
    input_ids_BT = torch.tensor([sequences[0], [*sequences[1], 0, 0]])
    take_P = torch.tensor([0, 2, 4, 5, 7])
    for layers in (0, 1, 3):
        found_XPD = Policy(model)(input_ids_BT, take_P, layers=layers)
        first, second = (states_of(model, family, tokens, layers) for tokens in sequences)
        expected_XPD = torch.cat([first[:, [0, 2, 4]], second[:, [0, 2]]], dim=1)
        assert len(found_XPD) == len(expected_XPD) == 1 + layers
        for found_PD, expected_PD in zip(found_XPD, expected_XPD, strict=True):
            torch.testing.assert_close(found_PD, expected_PD, rtol=1e-5, atol=1e-5)
        distinct = torch.pdist(expected_XPD.flatten(1))
        assert layers == 0 or float(distinct.min()) > 0.1  # a wrong layer would be seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_layers_of_packed_answers_are_those_of_one_sequence_each(family: str, tuning: str) -> None:
    model, prompt = real(family, tuning), [5, 6, 7]
    start = np.array(prompt, np.int32)
    rows = [
        Row(start, (1,), (), number=0, negatives=((2, 5),)),
        Row(start[:2], (4,), (), number=1, negatives=((5, 0),)),
    ]
    micro = Collator(build_trie(CATALOGUE), cut_forced=False, rejected=True)(rows)
    assert micro.tree is not None
    found_XPD = Policy(model)(micro.input_ids_BT, micro.take_P, tree=micro.tree, layers=3)
    expected = []
    for row in rows:
        for item in (*row.targets, *row.negatives[0]):
            states = states_of(model, family, [*row.prompt.tolist(), *CATALOGUE[item]], 3)
            expected.append(states[:, len(row.prompt) - 1 : -1])
    torch.testing.assert_close(found_XPD, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-4)


def test_a_final_norm_of_another_name_is_said() -> None:
    model = policy().model.model
    assert final_norm(model) is model.norm
    stranger: Any = nn.Module()
    stranger.config = SimpleNamespace(model_type="stranger")
    with pytest.raises(ArtefactError, match="'stranger': no final norm found under norm, ln_f"):
        final_norm(stranger)


def test_an_adapters_dropout_is_removed_too() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    remove_dropout(layers)
    assert torch.equal(layers[1](torch.ones(50)), torch.ones(50))


NOISY: dict[str, Any] = {  # rates as attributes, as modules, under names of their own
    "llama": LlamaConfig(**SIZES, **WIDE, attention_dropout=0.5),
    "gpt2": GPT2Config(**SIZES, **ENDS, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5),
    "starcoder2": Starcoder2Config(
        **SIZES, **WIDE, **ENDS, residual_dropout=0.5, embedding_dropout=0.5
    ),
    "bloom": BloomConfig(
        vocab_size=40, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.5,
        attention_dropout=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", NOISY)
def test_every_dropout_of_real_models_is_removed(family: str) -> None:
    model = AutoModelForCausalLM.from_config(NOISY[family])
    if family == "gpt2":
        lora = Lora(r=2, dropout=0.5, targets=("all-linear",))
        model = add_lora(model, ModelSection(backbone="x", tuning="lora", lora=lora), ())
    remove_dropout(model)
    model.train()
    tokens = torch.arange(10, 22)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_inference_gives_back_the_mode_of_every_module() -> None:
    model = policy().train()
    model.model.model.layers[0].eval()  # frozen on purpose
    modes = [module.training for module in model.modules()]

    def fails() -> None:
        with inference_mode(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("removed", [False, True])
def test_removing_dropout_leaves_no_noise_in_training(removed: bool) -> None:
    model = policy()
    if removed:
        remove_dropout(model)
    else:
        add_dropout(model.model, SMALL.dropout)
    model.train()
    tokens = torch.arange(10, 18)[None]
    first, second = (model(tokens, torch.arange(8)) for _ in range(2))
    assert torch.equal(first, second) == removed
