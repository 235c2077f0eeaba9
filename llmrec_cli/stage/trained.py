"""The model of a finished run, or the base that everything begins with, to train or to decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from llmrec_cli.engine.probe import (
    Verdict,
    explain_attention,
    find_twin,
    probe,
    probe_key,
    read_verdict,
    refusal,
)
from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import ADAPTER_FOLDER, MODEL_FOLDER
from llmrec_cli.models import backbone
from llmrec_cli.models.backbone import DTYPES
from llmrec_cli.models.guard import backbone as named
from llmrec_cli.models.guard import check_adapter, loading
from llmrec_cli.models.policy import inner_config
from llmrec_cli.recipe.model import TREE_ATTENTION
from llmrec_cli.runs.record import add_to_manifest
from llmrec_cli.runs.run import Run
from llmrec_cli.stage.base import SEQUENCE, base_source, semantic_tokens
from llmrec_cli.stage.workbench import Workbench

PROBE: Final = "probe"  # of a manifest


def load_policy(
    bench: Workbench,
    parent: Run | None,
    *,
    train: bool,
    dropout: bool = True,
    packs: bool = True,
    run: Run | None = None,
) -> Any:
    """The model of a finished run, or the base itself where ``parent`` is None.

    It is looked at before it is handed out (``engine.probe``), unless the run's manifest, or the
    parent's, holds the verdict on the same architecture.

    Args:
        train: with gradients, and with dropout unless ``dropout`` is off.
        packs: several answers will be computed behind one prompt.
        run: the run that begins; its manifest keeps the verdict.

    Raises:
        ArtefactError: the run is not finished, does not fit the recipe's tuning, or computes here
            what the model alone does not.
    """
    section = bench.recipe.model
    torch.manual_seed(bench.recipe.seed)  # adapters and rows of new tokens are drawn
    if section.tuning == "full":
        model = _load_backbone(
            bench, parent.folder / MODEL_FOLDER if parent else base_source(bench.recipe)
        )
        if parent is None:
            backbone.fit_vocabulary(model, bench.codec.tokenizer)
    else:
        model = _load_with_adapter(bench, parent, train=train)
    if train and not dropout:
        backbone.remove_dropout(model)
    elif train and section.backbone == "scratch":
        backbone.add_dropout(model, section.scratch.dropout)
    elif not train:
        model.eval()
    if section.quantize == "none":
        model = model.to(bench.ranks.device)
    _require_agreement(bench, model, parent, run, packs=packs)
    return model


def _load_backbone(bench: Workbench, source: str | Path) -> Any:
    """The model of a folder; of one that lacks the recipe's attention, what works is found out."""
    section = bench.recipe.model
    try:
        return backbone.load_model(source, section)
    except ArtefactError:
        config = backbone.load_config(source, section.revision)
        told = explain_attention(config, section.attention, reach(bench))
        if told is None:
            raise
        raise ArtefactError(f"{named(source)}: {told}") from None


def _require_agreement(
    bench: Workbench, model: Any, parent: Run | None, run: Run | None, *, packs: bool
) -> None:
    """Refuse a model that computes here what it does not compute alone; all processes alike.

    Raises:
        ArtefactError: names the part that differs, by how much, and what works.
    """
    section, config = bench.recipe.model, inner_config(model)
    about = (section.attention, section.tuning, section.quantize, section.dtype)
    key = probe_key(config, reach(bench), *about, str(bench.ranks.device.type))
    kept = _read_verdict_of(run, key)
    verdict = kept or _read_verdict_of(parent, key)
    if verdict is None:
        masked = section.attention in TREE_ATTENTION
        precision = None if masked or section.dtype == "float32" else DTYPES[section.dtype]
        verdict = probe(model, key, reach(bench), precision)
    told = refusal(verdict, config, packs=packs)
    if bench.ranks.most(int(told is not None)):
        told = told or "another process found that it computes here what it does not alone"
        raise ArtefactError(f"{named(section.backbone)}: {told}")
    if run is not None and kept is None:
        found = verdict.as_json()
        bench.ranks.first(lambda: add_to_manifest(run, PROBE, found))


def look_without_weights(bench: Workbench) -> str:
    """What a small random twin of the backbone tells; weights are not read.

    Raises:
        ArtefactError: the twin differs, so that the backbone would be refused; or it lacks the
            recipe's attention.
    """
    section, longest = bench.recipe.model, reach(bench)
    source = base_source(bench.recipe)
    config = backbone.load_config(source, section.revision)
    told = explain_attention(config, section.attention, longest)
    if told is None:
        masked = section.attention in TREE_ATTENTION
        twin = find_twin(config, section.attention if masked else "sdpa")
        if twin is None:
            return f"model type {config.model_type!r} is looked at when its weights are read"
        told = refusal(probe(twin, "", longest), config, packs=True)
    if told is not None:
        raise ArtefactError(f"{named(section.backbone)}: {told}")
    return f"model type {config.model_type!r} computes here what it computes alone"


def _read_verdict_of(run: Run | None, key: str) -> Verdict | None:
    """What a run's manifest says of the same architecture."""
    if run is None or not run.manifest_file.is_file():
        return None
    return read_verdict(run.read_manifest().get(PROBE), key)


def reach(bench: Workbench) -> int:
    """Tokens of the longest row that a recipe may feed, prompt and answers."""
    room, recipe = bench.room, bench.recipe
    answers = room.longest * recipe.task.answer_items
    longest = room.prompt + answers
    if recipe.prompt.template == SEQUENCE:
        longest = max(longest, 1 + (recipe.data.history + 1) * room.longest)
    return longest if room.context is None else min(longest, room.context)


def _load_with_adapter(bench: Workbench, parent: Run | None, *, train: bool) -> Any:
    from peft import PeftModel

    section = bench.recipe.model
    model = _load_backbone(bench, base_source(bench.recipe))
    vocabulary = bench.codec.tokenizer.get_vocab()
    semantic = {vocabulary[token] for token in semantic_tokens(bench.prepared.items)}
    drawn = backbone.fit_vocabulary(model, bench.codec.tokenizer)  # anew whenever one is loaded
    if parent is None:
        return backbone.add_lora(model, section, sorted(semantic.union(drawn)))
    if section.quantize != "none" and train:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model)
    adapter = parent.folder / ADAPTER_FOLDER
    check_adapter(adapter)
    with loading(str(adapter)):
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=train)
