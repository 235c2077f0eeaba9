"""Every pass but training's runs without dropout and without gradients, and gives the mode back."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.integrations import sdpa_attention

from llmrec_cli.config.model import Lora, ModelSection
from llmrec_cli.config.training import BASELINES
from llmrec_cli.decoding.ranker import score_candidates, score_micro_batch
from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue, score_all
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward
from llmrec_cli.models.language_model import Policy, share_keys
from llmrec_cli.models.loading import add_dropout, add_lora
from llmrec_cli.models.sequential import build_sequential, log_probs_behind
from llmrec_cli.tasks.rank_pair_operations import score_pairs
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.item_scores import compute_vectors
from llmrec_cli.training.reference import AddReference, Reference
from llmrec_cli.training.rows import PairRow, Row
from tests.training.tiny import CATALOGUE, job

pytestmark = pytest.mark.filterwarnings(  # peft reads it
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

TRIE = build_trie(CATALOGUE)
ROWS = [
    Row(np.array([1, *CATALOGUE[n]], np.int32), (t,), (n,), number=i, negatives=(wrong,))
    for i, (n, t, wrong) in enumerate([(0, 1, (2, 3)), (1, 4, (0, 5)), (2, 3, (1, 4))])
]
SIZES = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def scratch() -> Policy:
    """Our own backbone: dropout by hooks."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=24))
    add_dropout(model, 0.5)
    return Policy(model)


def attention() -> Policy:
    """Dropout of attention, whose rate is a number."""
    config = LlamaConfig(**SIZES, intermediate_size=24, attention_dropout=0.5)
    return Policy(LlamaForCausalLM(config))


def embeddings() -> Policy:
    """GPT-2: dropout of embeddings and of blocks."""
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    return Policy(GPT2LMHeadModel(GPT2Config(**SIZES, **ends, embd_pdrop=0.5, resid_pdrop=0.5)))


def adapter() -> Policy:
    """LoRA: dropout of the adapter's input."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=24))
    lora = Lora(r=2, dropout=0.5, targets=("all-linear",))
    wrapped = add_lora(model, ModelSection(backbone="x", tuning="lora", lora=lora), ())
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # 0 at first: the adapter would do nothing
                parameter.normal_()
    return Policy(wrapped)


KINDS: tuple[Callable[[], Policy], ...] = (scratch, attention, embeddings, adapter)


def reference(policy: Policy, folder: Path) -> torch.Tensor:
    found = find_method("dmpo")
    score, options = found.log_probs, found.options.model_validate({"k": 2})
    assert score is not None
    asked = Reference(policy, lambda forward, batch: score(forward, batch, options))
    return asked.log_probs(Collator(TRIE, cut_forced=False, rejected=True)(ROWS))


def ranking(policy: Policy, folder: Path) -> torch.Tensor:
    """What validation and mined negatives stand on."""
    prompts = [row.prompt.tolist() for row in ROWS]
    return rank_catalogue(policy.model, TRIE, prompts, DecodeOptions(k=3)).score_BK


def scores(policy: Policy, folder: Path) -> torch.Tensor:
    prompts = [row.prompt.tolist() for row in ROWS]
    return score_all(policy.model, TRIE, prompts, DecodeOptions(k=3))


def candidates(policy: Policy, folder: Path) -> torch.Tensor:
    device = torch.device("cpu")
    found = score_candidates(
        policy, ROWS, TRIE, legal=True, temperature=1.0, batch=2, device=device
    )
    return torch.from_numpy(found)


def pairs(policy: Policy, folder: Path) -> torch.Tensor:
    def ids(*tokens: int) -> np.ndarray[Any, Any]:
        return np.array(tokens, np.int32)

    row = PairRow((ids(1, 5, 6), ids(1, 7)), ((ids(6, 2), ids(5, 7, 2)), (ids(8, 2), ids(9, 2))))
    (found,) = score_pairs(policy, [row], TRIE, batch=1, ranks=job(folder).ranks)
    return torch.from_numpy(found)


def validation(policy: Policy, folder: Path) -> torch.Tensor:
    running = replace(job(folder), policy=policy)
    return torch.tensor(running.validate(running.loss)["valid_loss"])


PASSES = (reference, ranking, scores, candidates, pairs, validation)


def check(model: nn.Module, ask: Callable[[], torch.Tensor]) -> None:
    """Asked in training, a model answers as in evaluation, and trains on."""
    model.eval()
    expected = ask()
    model.train()
    modes = [module.training for module in model.modules()]
    for _ in range(2):
        found = ask()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert not found.requires_grad
        assert [module.training for module in model.modules()] == modes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("asked", PASSES, ids=lambda asked: asked.__name__)
def test_a_pass_that_is_not_trainings_has_no_dropout(
    asked: Callable[[Policy, Path], torch.Tensor], kind: Callable[[], Policy], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    policy = kind()
    check(policy, lambda: asked(policy, tmp_path))
    micro = Collator(TRIE, cut_forced=False, rejected=True)(ROWS)
    noisy = [score_micro_batch(policy, micro, legal=False) for _ in range(2)]
    assert not torch.equal(*noisy)  # dropout there is: a training pass has it again
    assert noisy[0].requires_grad


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "caser"])
def test_item_scores_have_no_dropout(name: str) -> None:
    options: Any = BASELINES[name].model_validate({"hidden": 16, "dropout": 0.5})
    model = build_sequential(name, options, len(CATALOGUE), longest=12, seed=0)
    check(model, lambda: compute_vectors(model, ROWS, np.arange(len(CATALOGUE))))
    check(model, lambda: log_probs_behind(model, [[0, 3], [2]]))  # validation, eval


def test_a_whole_run_trains_with_dropout_and_asks_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An online reference between the passes of an update, and validation between updates."""
    method = find_method("dmpo")
    options = method.options.model_validate({"k": 2, "reference": "online"})
    score = method.log_probs
    assert score is not None
    plain = job(tmp_path, dropout=0.5, micro_batch=1, validate_every=1)
    asked = Reference(plain.policy, lambda forward, batch: score(forward, batch, options))
    passes: list[tuple[bool, set[bool]]] = []
    forward = Policy.forward

    def watched(policy: Policy, *words: Any, **named: Any) -> Any:
        modes = {module.training for module in policy.modules()}
        passes.append((torch.is_grad_enabled(), modes))
        return forward(policy, *words, **named)

    monkeypatch.setattr(Policy, "forward", watched)
    running = replace(
        plain,
        method=method,
        options=options,
        train_set=Dataset(ROWS, batch_transforms=(AddReference(asked),)),
        valid_set=Dataset(ROWS, batch_transforms=(AddReference(asked),)),
        sampler=Sampler(len(ROWS), plain.section.batch, plain.seed),
    )
    running.train(resume=False)
    assert {trains for trains, _ in passes} == {True, False}
    for trains, modes in passes:
        assert modes == {trains}


def test_ilrec_is_given_the_layers_before_the_last_nearest_first(tmp_path: Path) -> None:
    """What reaches the loss, as transformers has it."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": 4}, intermediate_size=24)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.norm.weight.normal_()
    seen: list[Forward] = []
    method = find_method("ilrec")
    plain = method.loss

    def loss(forward: Forward, *rest: Any) -> Any:
        seen.append(forward)
        return plain(forward, *rest)

    running = replace(
        job(tmp_path),
        policy=Policy(model),
        method=replace(method, loss=loss),
        options=method.options.model_validate({"n": 2, "crr": False}),
    )
    micro = running.make_collator()([replace(row, negatives=()) for row in ROWS])
    running.loss(micro, {})
    states = model(micro.input_ids_BT, output_hidden_states=True).hidden_states
    expected = [states[4], *(model.model.norm(states[number]) for number in (3, 2))]
    (forward,) = seen
    assert forward.layers_LPD is not None
    assert len(forward.layers_LPD) == 2
    for found_PD, expected_BTD in zip(
        (forward.hidden_PD, *forward.layers_LPD), expected, strict=True
    ):
        torch.testing.assert_close(found_PD, expected_BTD.flatten(0, 1)[micro.take_P])


def test_a_cpu_does_not_copy_the_keys_of_a_group_under_a_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "TRANSFORMERS_SDPA_FORCE_GQA" not in inspect.getsource(sdpa_attention):
        pytest.skip("this version of transformers cannot share keys under a mask")

    def copy(states: object, times: int) -> None:
        raise AssertionError("keys were copied for every query head")

    model = LlamaForCausalLM(
        LlamaConfig(
            **{**SIZES, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
        )
    )
    prompts = [[1, *range(2, 11), 5], [1, *range(2, 11), 6, 7]]  # a shared beginning: a mask
    plain = score_all(model, TRIE, prompts, DecodeOptions(k=2))
    monkeypatch.setattr(sdpa_attention, "repeat_kv", copy)
    assert torch.equal(score_all(model, TRIE, prompts, DecodeOptions(k=2)), plain)
    rank_catalogue(model, TRIE, prompts, DecodeOptions(k=2))


def test_the_switch_for_shared_keys_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    name, cpu = "TRANSFORMERS_SDPA_FORCE_GQA", torch.device("cpu")
    monkeypatch.delenv(name, raising=False)
    with share_keys(torch.device("meta")):
        assert name not in os.environ
    with share_keys(cpu):
        assert os.environ[name] == "1"
    assert name not in os.environ
    with share_keys(cpu):  # of two searches at once, both put it back
        del os.environ[name]
    assert name not in os.environ
    monkeypatch.setenv(name, "0")  # a user's own choice
    with share_keys(cpu):
        assert os.environ[name] == "0"
    assert os.environ[name] == "0"
