"""``llmrec baseline --model NAME``: a conventional model on the language models' data and rules.

The neural ones are trained by the one training loop, on the same prepared rows (a user's sequence
in one causal pass), with the same validation rows and the same choice of a checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import UNTRAINED
from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.data.negatives import owned_entries
from llmrec_cli.data.prepared import read_manifest
from llmrec_cli.errors import RecipeError
from llmrec_cli.evaluation.ranking import validation_metrics
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines import find_baseline
from llmrec_cli.models.baselines.contract import Count
from llmrec_cli.models.sequential import make_sequential_ranker
from llmrec_cli.pipeline import loading, setup
from llmrec_cli.pipeline.advice import warn_of_warmup
from llmrec_cli.pipeline.provenance import RunSession, open_session
from llmrec_cli.runs.record import PREPARED, require_same_facts, require_same_settings
from llmrec_cli.runs.run import baseline_run
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.checkpoint import write_tensors
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.rows import count_rows_left_out
from llmrec_cli.training.trainer import Trainer
from llmrec_cli.utils.files import MANIFEST_FILE, MODEL_FOLDER, hash_file
from llmrec_cli.utils.locks import lock_path
from llmrec_cli.utils.progress import Progress


def baseline(recipe: Recipe, name: str, *, resume: bool, progress: Progress) -> Path:
    """Fit ``[baseline.NAME]``; returns the run's folder ``out/name/baseline-NAME``.

    Raises:
        RecipeError: the recipe's task has no catalogue to rank.
        DataError: nothing to train on, or to choose a checkpoint by.
        ArtefactError: the run exists already, or ``resume`` and it was started otherwise, or on
            other data.
    """
    if not recipe.task.ranks_catalogue:
        raise RecipeError(
            f'[prompt] task = "{recipe.task.name}": conventional models rank the catalogue; '
            'expected task "generate"'
        )
    run = baseline_run(recipe, name)
    folder = run.folder
    if resume and run.is_done:
        require_same_settings(recipe, run)
        read_manifest(recipe.prepared_folder)
        require_same_facts(run, {PREPARED: hash_file(recipe.prepared_folder / MANIFEST_FILE)})
        progress.say(f"{folder}: already finished")
        return folder
    context = loading.open_baseline_context(recipe, name, progress)
    if recipe.baseline[name].model not in UNTRAINED:
        setup.require_rows(context.prepared)
    facts = loading.list_baseline_inputs(context, name)
    with open_session(recipe, run, facts, context.ranks, progress, resume=resume) as session:
        if session.is_finished:
            return folder
        session.outcome = _fit(context, session, resume=resume, progress=progress)
    return folder


def _fit(
    context: setup.CatalogueContext, session: RunSession, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    run = session.run
    section = context.recipe.baseline[run.table]
    found, lock = find_baseline(section.model), lock_path(run.folder / MODEL_FOLDER)
    if found.is_trained:
        return _train(context, session, resume=resume, progress=progress)
    if found.count is not None:
        counted = partial(_write_counted, context, found.count, section.options, run.folder)
        context.ranks.first(counted, lock)
    return {}  # the training counts of Pop are in the prepared folder


def _write_counted(
    context: setup.CatalogueContext, count: Count, options: Options, folder: Path
) -> None:
    """Count over the training rows, and store what was counted."""
    owned = owned_entries([context.prepared.split("train")], context.leaf_of_item.astype(np.int64))
    users = [sorted(leaves) for leaves in owned.values()]
    arrays = count(options, users, context.trie.n_leaves)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    write_tensors(folder / MODEL_FOLDER, tensors)


def _train(
    context: setup.CatalogueContext, session: RunSession, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    run, name = session.run, session.run.table
    section, device = context.recipe.baseline[name].train, context.ranks.device
    model = loading.build_baseline(context, name).to(device)
    context = replace(
        context, encoder=loading.make_leaf_encoder(context)
    )  # the same rows, as numbers of entries
    valid = setup.choose_rows(context.prepared.split("valid"), section.validate_rows)
    rows = setup.build_training_rows(context, section.rows)
    left_out = count_rows_left_out(context.prepared.split("train"), rows)
    if line := left_out.line(setup.describe_passes(context)):
        progress.say_once(str(run), f"train: {line}")
    for line in warn_of_warmup(section, len(rows), run):
        progress.say(line)
    leaves = gather_entries(context.prepared.items, context.leaf_of_item)
    ranker = make_sequential_ranker(model, leaves, context.recipe.data.history)
    cutoff = max(context.recipe.eval.cutoffs)
    method = find_method("lml")  # over a vocabulary of entries: full softmax cross entropy
    trainer = Trainer(
        policy=model,
        method=method,
        options=method.options(),
        trie=build_trie([[leaf] for leaf in context.leaf_of_item.tolist()]).to(device),
        train_set=Dataset(rows),
        valid_set=Dataset(setup.build_window_rows(context, valid)),
        sampler=Sampler(len(rows), section.batch, context.recipe.seed),
        rank_valid=lambda: validation_metrics(
            ranker, context.ranks, valid, context.leaf_of_item, cutoff, progress
        ),
        section=section,
        seed=context.recipe.seed,
        folder=run.folder,
        ranks=context.ranks,
        progress=progress,
        label=run.name,
        trackers=session.trackers,
    )
    state = trainer.train(resume=resume)
    if context.ranks.is_first:
        write_tensors(run.folder / MODEL_FOLDER, model.state_dict())
    return {
        "steps": state.step,
        "best_step": state.best_step,
        "best_score": state.best_score,
        "stopped_early": state.stopped,
        "parameters": sum(p.numel() for p in model.parameters()),
        "histories": {"train": left_out.facts()},
    }
