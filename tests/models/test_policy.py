"""Policies refuse what they could not compute rightly."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.backbone import add_dropout, build_scratch, remove_dropout
from llmrec_cli.models.policy import Policy, check_depth, final_norm
from llmrec_cli.recipe.model import ScratchModel
from llmrec_cli.tensors.packing import pack

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


def test_a_final_norm_of_another_name_is_said() -> None:
    model = policy().model.model
    assert final_norm(model) is model.norm
    stranger = nn.Module()
    stranger.config = SimpleNamespace(model_type="stranger")
    with pytest.raises(ArtefactError, match="'stranger': no final norm found under norm, ln_f"):
        final_norm(stranger)


def test_an_adapters_dropout_is_removed_too() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    remove_dropout(layers)
    assert torch.equal(layers[1](torch.ones(50)), torch.ones(50))


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
