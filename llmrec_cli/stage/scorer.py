"""Finished runs as Rankers, whatever their kind: opened, checked, ready to rank.

a language model's run      weights on its backbone       -> LanguageModelRanker
a trained baseline's run    weights                       -> FullScoreRanker
a counted baseline's run    arrays, or nothing to store   -> what its file opens
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from llmrec_cli.data.leaves import Leaves
from llmrec_cli.decoding.ranker import LanguageModelRanker
from llmrec_cli.engine.checkpoint import WEIGHTS
from llmrec_cli.engine.decode import DecodeOptions
from llmrec_cli.engine.rows import PromptEncoder
from llmrec_cli.errors import RecipeError
from llmrec_cli.files import MANIFEST_FILE, MODEL_FOLDER, check_folder, sha256, tensors_of
from llmrec_cli.methods.contract import Options
from llmrec_cli.models.base import Ranker
from llmrec_cli.models.baselines import find_baseline, trained_names
from llmrec_cli.models.sequential import Sequential, build_sequential, make_sequential_ranker
from llmrec_cli.models.tokenizer import Codec
from llmrec_cli.recipe.formats import one_of
from llmrec_cli.recipe.problems import did_you_mean
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.runs.record import require_done, require_same_stage
from llmrec_cli.runs.run import Run, baseline_run
from llmrec_cli.stage import workbench
from llmrec_cli.stage.trained import load_policy


def load_ranker(
    bench: workbench.Workbench, leaves: Leaves, run: Run, *, scores_answers: bool = False
) -> Ranker:
    """The Ranker of a finished run.

    Args:
        scores_answers: ``Ranker.score`` will be asked, which packs answers behind one prompt.

    Raises:
        ArtefactError: the run is not finished, damaged, or does not fit its neighbours.
    """
    if not run.is_language_model:
        return load_baseline(bench, leaves, run.table)
    model = load_policy(bench, run, train=False, packs=scores_answers)
    return make_language_ranker(bench, model, batch=bench.recipe.eval.batch)


def make_language_ranker(
    bench: workbench.Workbench, model: Any, *, batch: int = DecodeOptions.batch
) -> LanguageModelRanker:
    """A language model as ``[eval.decode]`` lets it rank; it may go on training.

    Args:
        batch: rows decoded together.
    """
    decode = bench.recipe.eval.decode
    options = DecodeOptions(
        k=1,
        search=decode.search,
        mask=decode.mask,
        temperature=decode.temperature,
        length_penalty=decode.length_penalty,
        beams=decode.beams,
        batch=batch,
    )
    return LanguageModelRanker(model, bench.trie, bench.encoder.encode, options)


def load_baseline(bench: workbench.Workbench, leaves: Leaves, name: str) -> Ranker:
    """The Ranker of the finished ``[baseline.NAME]``.

    Raises:
        ArtefactError: the run is not finished, damaged, or made with other settings.
    """
    section = bench.recipe.baseline[name]
    found = find_baseline(section.model)
    if found.open is None:
        model = load_sequential(bench, name)
        return make_sequential_ranker(model, leaves, bench.recipe.data.history)
    if found.count is None:
        return found.open(section.options, {}, leaves)
    file = _require_finished(bench, name) / WEIGHTS
    with tensors_of(file):
        return found.open(section.options, load_file(file), leaves)


def load_sequential(bench: workbench.Workbench, name: str) -> Sequential:
    """The finished sequential model of ``[baseline.NAME]``, in evaluation mode.

    Raises:
        ArtefactError: it is not finished (the message says what to run), damaged, or made with
            other settings.
        RecipeError: the model has no state of a history (pop, itemknn).
    """
    model = build(bench, name)
    file = _require_finished(bench, name) / WEIGHTS
    with tensors_of(file):
        model.load_state_dict(load_tensors(file))
    return model.to(bench.ranks.device).eval()


def build(bench: workbench.Workbench, name: str) -> Sequential:
    """The untrained model of ``[baseline.NAME]``, its weights drawn from the recipe's seed.

    Raises:
        RecipeError: the model has no state of a history (pop, itemknn).
    """
    options = require_sequential(bench.recipe, name)
    longest, model = bench.recipe.data.history + 1, bench.recipe.baseline[name].model
    return build_sequential(model, options, bench.trie.n_leaves, longest, bench.recipe.seed)


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
        expected = one_of(known).replace('"', "")
        raise RecipeError(
            f'[baseline.{name}] model = "{section.model}": has no state of a history to score '
            f"items from; expected {expected}"
        )
    return section.options


def leaf_encoder(bench: workbench.Workbench) -> PromptEncoder:
    """Histories as leaf numbers, behind the number that begins a sequence: rows to train on."""
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


def _require_finished(bench: workbench.Workbench, name: str) -> Path:
    """The stored model of a finished run, intact and made for this catalogue with these settings.

    Raises:
        ArtefactError: it is not; the message says what differs, or what to run.
    """
    run = baseline_run(bench.recipe, name)
    require_done(bench.recipe, run)
    require_same_stage(bench.recipe, run, facts(bench))
    check_folder(run.folder / MODEL_FOLDER)
    return run.folder / MODEL_FOLDER
