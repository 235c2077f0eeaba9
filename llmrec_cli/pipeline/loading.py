"""Finished models of an experiment, loaded and checked: policies, baselines, Rankers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from llmrec_cli.config.formats import join_words
from llmrec_cli.config.loader import did_you_mean
from llmrec_cli.config.model import FROM_TEXT, TREE_ATTENTION
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.decoding.probe import (
    ProbeVerdict,
    explain_attention,
    find_twin,
    probe,
    probe_key,
    read_verdict,
    refusal,
)
from llmrec_cli.decoding.ranker import GuidedRanker, LanguageModelRanker
from llmrec_cli.decoding.search import DecodeOptions
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.methods.contract import Options
from llmrec_cli.models import loading as backbone
from llmrec_cli.models.base import Ranker
from llmrec_cli.models.baselines import find_baseline, trained_names
from llmrec_cli.models.language_model import inner_config
from llmrec_cli.models.loading import DTYPES, check_adapter, loading
from llmrec_cli.models.loading import backbone as named
from llmrec_cli.models.sequential import Sequential, build_sequential, make_sequential_ranker
from llmrec_cli.models.tokenizer import Codec
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.provenance import require_same_parts
from llmrec_cli.pipeline.setup import SEQUENCE, CatalogueContext, base_source, semantic_tokens
from llmrec_cli.runs.record import (
    PREPARED,
    add_to_manifest,
    find_token_start,
    require_done,
    require_same_stage,
)
from llmrec_cli.runs.run import Run, baseline_run
from llmrec_cli.training.checkpoint import WEIGHTS
from llmrec_cli.training.rows import PromptEncoder
from llmrec_cli.utils.files import (
    ADAPTER_FOLDER,
    MANIFEST_FILE,
    MODEL_FOLDER,
    check_folder,
    hash_file,
    translate_tensor_errors,
)
from llmrec_cli.utils.progress import Progress

# Loading the model of a finished run, or the base, for training or decoding.


PROBE: Final = "probe"  # of a manifest


def load_policy(
    context: CatalogueContext,
    parent: Run | None,
    *,
    train: bool,
    dropout: bool = True,
    packs: bool = True,
    run: Run | None = None,
) -> Any:
    """The model of a finished run, or the base itself where ``parent`` is None.

    Of the untouched backbone's run, it is the backbone without an adapter.

    It is looked at before it is handed out (``decoding.probe``), unless the run's manifest, or the
    parent's, holds the verdict on the same architecture.

    Args:
        train: with gradients, and with dropout unless ``dropout`` is off.
        packs: several answers will be computed behind one prompt.
        run: the run that begins; its manifest keeps the verdict.

    Raises:
        ArtefactError: the run is not finished, does not fit the recipe's tuning, or computes here
            what the model alone does not.
    """
    section = context.recipe.model
    torch.manual_seed(context.recipe.seed)  # adapters and rows of new tokens are drawn
    untouched = parent is not None and parent.is_untouched
    if section.tuning == "full" or untouched:
        trained = None if parent is None or untouched else parent.folder / MODEL_FOLDER
        model = _load_backbone(context, trained)
        if trained is None:
            _add_rows(context, model, run)
    else:
        model = _load_with_adapter(context, parent, run, train=train)
    if train and not dropout:
        backbone.remove_dropout(model)
    elif train and section.backbone == "scratch":
        backbone.add_dropout(model, section.scratch.dropout)
    elif not train:
        model.eval()
    if section.quantize == "none":
        model = model.to(context.ranks.device)
    _require_agreement(context, model, parent, run, packs=packs)
    return model


def _load_backbone(context: CatalogueContext, trained: Path | None) -> Any:
    """The model of a run's folder, or the recipe's base where ``trained`` is None.

    Of one that lacks the recipe's attention, what works is found out.
    """
    section = context.recipe.model
    source = trained or base_source(context.recipe)
    drawn = trained is None and section.backbone != "scratch" and not section.is_pretrained
    try:
        return (backbone.draw_model if drawn else backbone.load_model)(source, section)
    except ArtefactError:
        config = backbone.load_config(source, section.revision)
        told = explain_attention(config, section.attention, longest_row(context))
        if told is None:
            raise
        raise ArtefactError(f"{named(source)}: {told}") from None


def _require_agreement(
    context: CatalogueContext, model: Any, parent: Run | None, run: Run | None, *, packs: bool
) -> None:
    """Refuse a model that computes here what it does not compute alone; all processes alike.

    Raises:
        ArtefactError: names the part that differs, by how much, and what works.
    """
    section, config = context.recipe.model, inner_config(model)
    about = (section.attention, section.tuning, section.quantize, section.dtype)
    key = probe_key(config, longest_row(context), *about, str(context.ranks.device.type))
    kept = _read_verdict_of(run, key)
    verdict = kept or _read_verdict_of(parent, key)
    if verdict is None:
        masked = section.attention in TREE_ATTENTION
        precision = None if masked or section.dtype == "float32" else DTYPES[section.dtype]
        verdict = probe(model, key, longest_row(context), precision)
    told = refusal(verdict, config, packs=packs)
    if context.ranks.most(int(told is not None)):
        told = told or "another process found that it computes here what it does not alone"
        raise ArtefactError(f"{named(section.backbone)}: {told}")
    if run is not None and kept is None:
        found = verdict.as_json()
        context.ranks.first(lambda: add_to_manifest(run, PROBE, found))


def probe_twin(context: CatalogueContext) -> str:
    """What a small random twin of the backbone tells; weights are not read.

    Raises:
        ArtefactError: the twin differs, so that the backbone would be refused; or it lacks the
            recipe's attention.
    """
    section, longest = context.recipe.model, longest_row(context)
    source = base_source(context.recipe)
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


def _read_verdict_of(run: Run | None, key: str) -> ProbeVerdict | None:
    """What a run's manifest says of the same architecture."""
    if run is None or not run.manifest_file.is_file():
        return None
    return read_verdict(run.read_manifest().get(PROBE), key)


def longest_row(context: CatalogueContext) -> int:
    """Tokens of the longest row that a recipe may feed, prompt and answers."""
    room, recipe = context.room, context.recipe
    answers = room.longest * recipe.task.answer_items
    longest = room.prompt + answers
    if recipe.prompt.template == SEQUENCE:
        longest = max(longest, 1 + (recipe.data.history + 1) * room.longest)
    return longest if room.context is None else min(longest, room.context)


def _add_rows(context: CatalogueContext, model: Any, run: Run | None) -> range:
    """Give the untouched backbone rows for new tokens, as the run began with; ids of drawn rows.

    With either start as much is drawn, so that two runs differ in these rows alone.
    """
    drawn = backbone.fit_vocabulary(model, context.codec.tokenizer)
    if find_token_start(context.recipe, run) == FROM_TEXT:
        titles, tokens = setup.list_titles_below(context)
        backbone.start_from_text(model, titles, tokens)
    return drawn


def _load_with_adapter(
    context: CatalogueContext, parent: Run | None, run: Run | None, *, train: bool
) -> Any:
    from peft import PeftModel

    section = context.recipe.model
    model = _load_backbone(context, None)
    vocabulary = context.codec.tokenizer.get_vocab()
    semantic = {vocabulary[token] for token in semantic_tokens(context.prepared.items)}
    if parent is None:
        drawn = _add_rows(context, model, run)
        return backbone.add_lora(model, section, sorted(semantic.union(drawn)))
    backbone.fit_vocabulary(model, context.codec.tokenizer)  # the adapter brings the rows
    if section.quantize != "none" and train:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model)
    adapter = parent.folder / ADAPTER_FOLDER
    check_adapter(adapter)
    with loading(str(adapter)):
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=train)


# Loading finished runs of every kind as Rankers.
#
# a language model's run      weights on its backbone       -> LanguageModelRanker
# a trained baseline's run    weights                       -> FullScoreRanker
# a counted baseline's run    arrays, or nothing to store   -> what its file opens


def load_ranker(
    context: setup.CatalogueContext,
    leaves: CatalogueEntries,
    run: Run,
    *,
    scores_answers: bool = False,
) -> Ranker:
    """The Ranker of a finished run.

    Args:
        scores_answers: ``Ranker.score`` will be asked, which packs answers behind one prompt.

    Raises:
        ArtefactError: the run is not finished, damaged, or does not fit its neighbours.
    """
    if run.is_guided:
        return _load_guided(context, leaves, run, scores_answers)
    if not run.is_language_model:
        return load_baseline(context, leaves, run.table)
    model = load_policy(context, run, train=False, packs=scores_answers)
    return make_language_ranker(context, model, batch=context.recipe.eval.batch)


def _load_guided(
    context: setup.CatalogueContext, leaves: CatalogueEntries, run: Run, scores_answers: bool
) -> GuidedRanker:
    """A guided run's parts as one Ranker, with the recipe's weight, or the one that was chosen."""
    require_same_parts(run)
    asked = context.recipe.eval.decode.weight
    weight = read_weight(run) if asked == "validation" else asked
    return load_parts(context, leaves, run, weight, scores_answers=scores_answers)


def load_parts(
    context: setup.CatalogueContext,
    leaves: CatalogueEntries,
    run: Run,
    weight: float,
    *,
    scores_answers: bool = False,
) -> GuidedRanker:
    """A guided run's language model and its guide as one Ranker.

    Raises:
        ArtefactError: as ``load_ranker`` of either.
    """
    language, guide = (
        load_ranker(context, leaves, part, scores_answers=scores_answers) for part in run.parts
    )
    assert isinstance(language, LanguageModelRanker)  # nosec B101 # noqa: S101 - guided
    return GuidedRanker(language, guide, weight)


def read_weight(run: Run) -> float:
    """The weight that a guided run's manifest records.

    Raises:
        ArtefactError: the manifest has none.
    """
    weight = run.read_manifest("outcome")["outcome"].get("weight")
    if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ArtefactError(
            f"{run.manifest_file}: outcome.weight = {weight!r}: expected a number >= 0"
        )
    return float(weight)


def make_language_ranker(
    context: setup.CatalogueContext, model: Any, *, batch: int = DecodeOptions.batch
) -> LanguageModelRanker:
    """A language model as ``[eval.decode]`` lets it rank; it may go on training.

    Args:
        batch: rows decoded together.
    """
    decode = context.recipe.eval.decode
    options = DecodeOptions(
        k=1,
        search=decode.search,
        mask=decode.mask,
        temperature=decode.temperature,
        length_penalty=decode.length_penalty,
        beams=decode.beams,
        batch=batch,
    )
    return LanguageModelRanker(model, context.trie, context.encoder.encode, options)


def load_baseline(context: setup.CatalogueContext, leaves: CatalogueEntries, name: str) -> Ranker:
    """The Ranker of the finished ``[baseline.NAME]``.

    Raises:
        ArtefactError: the run is not finished, damaged, or made with other settings.
    """
    section = context.recipe.baseline[name]
    found = find_baseline(section.model)
    if found.load is None:
        model = load_sequential(context, name)
        return make_sequential_ranker(model, leaves, context.recipe.data.history)
    if found.count is None:
        return found.load(section.options, {}, leaves)
    file = _require_finished(context, name) / WEIGHTS
    with translate_tensor_errors(file):
        return found.load(section.options, load_file(file), leaves)


def load_sequential(context: setup.CatalogueContext, name: str) -> Sequential:
    """The finished sequential model of ``[baseline.NAME]``, in evaluation mode.

    Raises:
        ArtefactError: it is not finished (the message says what to run), damaged, or made with
            other settings.
        RecipeError: the model has no state of a history (pop, itemknn).
    """
    model = build_baseline(context, name)
    file = _require_finished(context, name) / WEIGHTS
    with translate_tensor_errors(file):
        model.load_state_dict(load_tensors(file))
    if makes_vectors(context.recipe, name):
        _number_by_leaves(model, context.leaf_of_item)
    return model.to(context.ranks.device).eval()


def makes_vectors(recipe: Recipe, name: str) -> bool:
    """Whether the items' vectors come from ``[baseline.name]``, which is trained before the IDs.

    To it, every item is an entry of its own, numbered as in the catalogue.
    """
    tokens = recipe.id_tokens
    return tokens is not None and tokens.source.baseline and tokens.baseline == name


def _number_by_leaves(model: Sequential, leaf_of_item: np.ndarray[Any, Any]) -> None:
    """Let a model that knows items by their catalogue index know them by their leaf, one each."""
    weight_ED = model.embedding.weight.data
    weight_ED[torch.from_numpy(leaf_of_item.astype(np.int64))] = weight_ED[:-1].clone()


def build_baseline(context: setup.CatalogueContext, name: str) -> Sequential:
    """The untrained model of ``[baseline.NAME]``, its weights drawn from the recipe's seed.

    Raises:
        RecipeError: the model has no state of a history (pop, itemknn).
    """
    options = require_sequential(context.recipe, name)
    longest, model = context.recipe.data.history + 1, context.recipe.baseline[name].model
    return build_sequential(model, options, context.trie.n_leaves, longest, context.recipe.seed)


def require_sequential(recipe: Recipe, name: str) -> Options:
    """The options of ``[baseline.NAME]``, whose scores are asked for.

    Raises:
        RecipeError: no such table, or a model without a state of a history (pop, itemknn).
    """
    known = trained_names()
    if name not in recipe.baseline:
        model = "" if name in known else ' with model = "sasrec"'
        raise RecipeError(
            f"[baseline.{name}]: not in the recipe, but its scores are asked for; add the table"
            f"{model}, and run first: llmrec baseline --model {name} RECIPE."
            f"{did_you_mean(name, [*recipe.baseline, *known])}"
        )
    section = recipe.baseline[name]
    if section.model not in known:
        expected = join_words(known).replace('"', "")
        raise RecipeError(
            f'[baseline.{name}] model = "{section.model}": has no state of a history to score '
            f"items from; expected {expected}"
        )
    return section.options


def make_leaf_encoder(context: setup.CatalogueContext) -> PromptEncoder:
    """Histories as leaf numbers, behind the number that begins a sequence: rows to train on."""
    leaf_of_item = context.leaf_of_item
    codec = Codec(None, eos=-1, start=context.trie.n_leaves)
    catalogue = [[leaf] for leaf in leaf_of_item.tolist()]
    longest = context.recipe.data.history + 1
    return PromptEncoder(None, codec, context.prepared.items, catalogue, longest)


def open_baseline_context(recipe: Recipe, name: str, progress: Progress) -> CatalogueContext:
    """What ``[baseline.name]`` is trained on: the catalogue's entries, or its items.

    Raises:
        DataError, ArtefactError: as ``setup.open_context``.
    """
    makes = makes_vectors(recipe, name)
    return (setup.open_item_context if makes else setup.open_context)(recipe, progress)


def list_baseline_inputs(context: setup.CatalogueContext, name: str) -> dict[str, Any]:
    """What the model stands on besides the recipe; the tokenizer decides which items share a leaf
    and how leaves are numbered."""
    leaf_of_item = context.leaf_of_item
    if makes_vectors(context.recipe, name):
        leaf_of_item = np.arange(len(leaf_of_item), dtype=np.int32)
    return {
        PREPARED: hash_file(context.recipe.prepared_folder / MANIFEST_FILE),
        "leaves": context.trie.n_leaves,
        "catalogue": hashlib.sha256(leaf_of_item.astype("<i4").tobytes()).hexdigest(),
    }


def _require_finished(context: setup.CatalogueContext, name: str) -> Path:
    """The stored model of a finished run, intact and made for this catalogue with these settings.

    Raises:
        ArtefactError: it is not; the message says what differs, or what to run.
    """
    run = baseline_run(context.recipe, name)
    require_done(context.recipe, run)
    require_same_stage(context.recipe, run, list_baseline_inputs(context, name))
    check_folder(run.folder / MODEL_FOLDER)
    return run.folder / MODEL_FOLDER
