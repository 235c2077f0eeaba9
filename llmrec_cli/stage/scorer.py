"""Conventional models as the stages use them: built, opened when finished, and asked for scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from llmrec_cli.engine.checkpoint import WEIGHTS
from llmrec_cli.engine.rows import PromptEncoder
from llmrec_cli.errors import RecipeError
from llmrec_cli.files import MANIFEST_FILE, MODEL_FOLDER, check_folder, sha256, tensors_of
from llmrec_cli.models.itemknn import score_itemknn, similarities
from llmrec_cli.models.policy import inference
from llmrec_cli.models.sequential import Sequential, SequentialOptions, build_sequential
from llmrec_cli.models.tokenizer import Codec
from llmrec_cli.recipe.baseline import ItemknnOptions
from llmrec_cli.recipe.problems import did_you_mean
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.runs.record import require_done, require_same_stage
from llmrec_cli.runs.run import baseline_run
from llmrec_cli.stage import workbench

Scores = NDArray[np.float32]
Score = Callable[[Sequence[Sequence[int]]], Scores]
"""Histories (catalogue indices, oldest first) to the score of every leaf: [rows, leaves]."""


def build(bench: workbench.Workbench, name: str) -> Sequential:
    """The untrained model of ``[baseline.NAME]``, its weights drawn from the recipe's seed.

    Raises:
        RecipeError: the model has no state of a history (pop, itemknn).
    """
    options = require_sequential(bench.recipe, name)
    longest = bench.recipe.data.history + 1
    return build_sequential(options, bench.trie.n_leaves, longest, bench.recipe.seed)


def require_sequential(recipe: Recipe, name: str) -> SequentialOptions:
    """The options of ``[baseline.NAME]``, whose scores are asked for.

    Raises:
        RecipeError: no such table, or a model without a state of a history (pop, itemknn).
    """
    if name not in recipe.baseline:
        known = ("sasrec", "gru4rec", "caser")
        model = "" if name in known else ' with model = "sasrec"'
        raise RecipeError(
            f"[baseline.{name}]: not in the recipe, but its scores are asked for; add the table"
            f"{model}, and run first: llmrec baseline --model {name} RECIPE."
            f"{did_you_mean(name, [*recipe.baseline, *known])}"
        )
    section = recipe.baseline[name]
    if not isinstance(section.options, SequentialOptions):
        raise RecipeError(
            f'[baseline.{name}] model = "{section.model}": has no state of a history to score '
            "items from; expected sasrec, gru4rec or caser"
        )
    return section.options


def leaf_encoder(bench: workbench.Workbench) -> PromptEncoder:
    """Histories as leaf numbers, behind the number that begins a sequence."""
    leaf_of_item = bench.leaf_of_item
    codec = Codec(None, eos=-1, start=bench.trie.n_leaves)
    catalogue = [[leaf] for leaf in leaf_of_item.tolist()]
    longest = bench.recipe.data.history + 1
    return PromptEncoder(None, codec, bench.prepared.items, catalogue, longest)


def facts(bench: workbench.Workbench) -> dict[str, Any]:
    """What the model stands on besides the recipe; the tokenizer decides which items share a leaf
    and how leaves are numbered."""
    return {
        "prepared": sha256(bench.recipe.prepared / MANIFEST_FILE),
        "leaves": bench.trie.n_leaves,
        "catalogue": hashlib.sha256(bench.leaf_of_item.astype("<i4").tobytes()).hexdigest(),
    }


def load_sequential(bench: workbench.Workbench, name: str) -> Sequential:
    """The finished sequential model of ``[baseline.NAME]``, in evaluation mode.

    Raises:
        ArtefactError: it is not finished (the message says what to run), damaged, or made with
            other settings.
        RecipeError: the model has no state of a history (pop, itemknn).
    """
    model = build(bench, name)
    file = _finished(bench, name) / WEIGHTS
    with tensors_of(file):
        model.load_state_dict(load_tensors(file))
    return model.to(bench.ranks.device).eval()


def _finished(bench: workbench.Workbench, name: str) -> Path:
    """The stored model of a finished run, intact and made for this catalogue with these settings.

    Raises:
        ArtefactError: it is not; the message says what differs, or what to run.
    """
    run = baseline_run(bench.recipe, name)
    require_done(bench.recipe, run)
    require_same_stage(bench.recipe, run, facts(bench))
    check_folder(run.folder / MODEL_FOLDER)
    return run.folder / MODEL_FOLDER


def load_scorer(bench: workbench.Workbench, name: str) -> Score:
    """Scores of every leaf: log-probabilities of the neural models, similarities of ItemKNN.

    Raises:
        ArtefactError: the run is not finished, damaged, or made with other settings.
    """
    options = bench.recipe.baseline[name].options
    if not isinstance(options, ItemknnOptions):
        model = load_sequential(bench, name)
        encoder = leaf_encoder(bench)
        return lambda histories: log_probs(model, encoder, histories).cpu().numpy()
    file = _finished(bench, name) / WEIGHTS
    with tensors_of(file):
        similar_LL = similarities(load_file(file))
    leaf_of_item = bench.leaf_of_item

    def score(histories: Sequence[Sequence[int]]) -> Scores:
        leaves = [leaf_of_item[list(history)].tolist() for history in histories]
        return score_itemknn(similar_LL, leaves, decay=options.decay)

    return score


def log_probs(
    model: Sequential, encoder: PromptEncoder, histories: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-softmax over leaves behind each history, [rows, leaves] fp32."""
    prompts = encoder.encode(histories)
    width = max(map(len, prompts))
    device = model.embedding.weight.device
    input_ids_BT = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        input_ids_BT[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
    last_B = torch.tensor([row * width + len(prompt) - 1 for row, prompt in enumerate(prompts)])
    with inference(model):
        hidden_BD = model(input_ids_BT.to(device), last_B.to(device))[0]
        return torch.log_softmax((hidden_BD @ model.head().weight_VD.T).float(), dim=1)
