"""The model of a finished run, or the base that everything begins with, to train or to decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmrec_cli.models import backbone
from llmrec_cli.models.guard import check_adapter, loading
from llmrec_cli.stage.base import base_source, semantic_tokens
from llmrec_cli.stage.workbench import Workbench


def load_policy(bench: Workbench, parent: Path | None, *, train: bool, dropout: bool = True) -> Any:
    """The model of a finished run, or the base itself where ``parent`` is None.

    Args:
        train: with gradients, and with dropout unless ``dropout`` is off.

    Raises:
        ArtefactError: the run is not finished, or does not fit the recipe's tuning.
    """
    section = bench.recipe.model
    torch.manual_seed(bench.recipe.seed)  # adapters and rows of new tokens are drawn
    if section.tuning == "full":
        model = backbone.load_model(
            parent / "model" if parent else base_source(bench.recipe), section
        )
        if parent is None:
            backbone.fit_vocabulary(model, bench.codec.tokenizer)
    else:
        model = _with_adapter(bench, parent, train=train)
    if train and not dropout:
        backbone.remove_dropout(model)
    elif train and section.backbone == "scratch":
        backbone.add_dropout(model, section.scratch.dropout)
    elif not train:
        model.eval()
    return model.to(bench.ranks.device) if section.quantize == "none" else model


def _with_adapter(bench: Workbench, parent: Path | None, *, train: bool) -> Any:
    from peft import PeftModel

    section = bench.recipe.model
    model = backbone.load_model(base_source(bench.recipe), section)
    vocabulary = bench.codec.tokenizer.get_vocab()
    semantic = {vocabulary[token] for token in semantic_tokens(bench.prepared.items)}
    drawn = backbone.fit_vocabulary(model, bench.codec.tokenizer)  # anew whenever one is loaded
    if parent is None:
        return backbone.add_lora(model, section, sorted(semantic.union(drawn)))
    if section.quantize != "none" and train:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model)
    adapter = parent / "adapter"
    check_adapter(adapter)
    with loading(str(adapter)):
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=train)
