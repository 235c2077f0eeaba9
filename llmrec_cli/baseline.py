"""``llmrec baseline --model NAME``: a conventional model on the language models' data and rules.

The neural ones are trained by the one training loop, on the same prepared rows (a user's sequence
in one causal pass), with the same validation rows and the same choice of a checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from llmrec_cli import run_folder
from llmrec_cli.data.columns import HISTORY, TARGET
from llmrec_cli.data.negatives import owned_entries
from llmrec_cli.data.store import Prepared
from llmrec_cli.engine.checkpoint import WEIGHTS, write_tensors
from llmrec_cli.engine.job import Job
from llmrec_cli.engine.loop import train
from llmrec_cli.engine.rows import PromptEncoder
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.files import check_folder, sha256
from llmrec_cli.methods import find
from llmrec_cli.models.itemknn import fit_itemknn, score_itemknn, similarities
from llmrec_cli.models.sequential import Sequential, SequentialOptions, build_sequential
from llmrec_cli.models.tokenizer import Codec
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.baseline import UNTRAINED, ItemknnOptions, PopOptions
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.stage import workbench
from llmrec_cli.tensors.ranking import means_at
from llmrec_cli.tensors.trie import build_trie

Scores = NDArray[np.float32]
Score = Callable[[Sequence[Sequence[int]]], Scores]
"""Histories (catalogue indices, oldest first) to the score of every leaf: [rows, leaves]."""

MODEL = "model"


def baseline(recipe: Recipe, name: str, *, resume: bool, progress: Progress) -> Path:
    """Fit ``[baseline.NAME]``; returns the run's folder ``out/name/baseline-NAME``.

    Raises:
        RecipeError: the recipe's task has no catalogue to rank.
        DataError: nothing to train on, or to choose a checkpoint by.
        ArtefactError: the run exists already, or ``resume`` and it was started otherwise.
    """
    if recipe.prompt.task != "generate":
        raise RecipeError(
            f'[prompt] task = "{recipe.prompt.task}": conventional models rank the catalogue; '
            'expected task "generate"'
        )
    run = f"baseline-{name}"
    folder = recipe.run_folder(run)
    if resume and run_folder.is_done(folder):
        run_folder.require_same_settings(recipe, run)
        progress.say(f"{folder}: already finished")
        return folder
    bench = workbench.open_workbench(recipe, progress)
    if recipe.baseline[name].model not in UNTRAINED:
        _require_rows(bench.prepared)
    with run_folder.opened(recipe, run, _facts(bench), bench.ranks, resume=resume) as opened:
        opened.outcome = _fit(bench, name, folder, resume=resume, progress=progress)
    return folder


def _require_rows(prepared: Prepared) -> None:
    for split, rows in (("train", "training"), ("valid", "validation")):
        if len(prepared.split(split)) == 0:
            raise DataError(f"{prepared.folder}: no {rows} rows; loosen data.k_core or the split")


def _facts(bench: workbench.Workbench) -> dict[str, Any]:
    """What the model stands on besides the recipe; the tokenizer decides which items share a leaf
    and how leaves are numbered."""
    return {
        "prepared": sha256(bench.recipe.prepared / "manifest.json"),
        "leaves": bench.trie.n_leaves,
        "catalogue": hashlib.sha256(bench.leaf_of_item.astype("<i4").tobytes()).hexdigest(),
    }


def _fit(
    bench: workbench.Workbench, name: str, folder: Path, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    options = bench.recipe.baseline[name].options
    if isinstance(options, PopOptions):
        return {}  # training counts stand in the prepared folder
    if isinstance(options, ItemknnOptions):
        bench.ranks.first(partial(_fit_itemknn, bench, options, folder), folder / ".model.lock")
        return {}
    return _train(bench, name, folder, resume=resume, progress=progress)


def _fit_itemknn(bench: workbench.Workbench, options: ItemknnOptions, folder: Path) -> None:
    owned = owned_entries([bench.prepared.split("train")], bench.leaf_of_item.astype(np.int64))
    arrays = fit_itemknn(
        [sorted(leaves) for leaves in owned.values()],
        bench.trie.n_leaves,
        neighbours=options.neighbours,
        shrink=options.shrink,
    )
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    write_tensors(folder / MODEL, tensors)


def _train(
    bench: workbench.Workbench, name: str, folder: Path, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    section, device = bench.recipe.baseline[name].train, bench.ranks.device
    model = _build(bench, name).to(device)
    bench = replace(bench, encoder=_encoder(bench))  # the same rows, as leaf numbers
    valid = workbench.subset(bench.prepared.split("valid"), section.validate_rows)
    method = find("lml")  # over a vocabulary of entries: full softmax cross entropy
    position = train(
        Job(
            policy=model,
            method=method,
            options=method.options(),
            trie=build_trie([[leaf] for leaf in bench.leaf_of_item.tolist()]).to(device),
            train_rows=bench.training_rows(section.rows),
            valid_rows=bench.windows(valid),
            rank_valid=lambda: _validation_metrics(bench, model, valid),
            section=section,
            seed=bench.recipe.seed,
            folder=folder,
            ranks=bench.ranks,
            progress=progress,
            label=f"baseline-{name}",
        ),
        resume=resume,
    )
    if bench.ranks.is_first:
        write_tensors(folder / MODEL, model.state_dict())
    return {
        "steps": position.step,
        "best_step": position.best_step,
        "best_score": position.best_score,
        "stopped_early": position.stopped,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def load_sequential(bench: workbench.Workbench, name: str) -> Sequential:
    """The finished sequential model of ``[baseline.NAME]``, in evaluation mode.

    Raises:
        ArtefactError: it is not finished (the message says what to run), damaged, or made with
            other settings.
        RecipeError: the model has no state of a history (pop, itemknn).
    """
    model = _build(bench, name)
    model.load_state_dict(load_tensors(_finished(bench, name) / WEIGHTS))
    return model.to(bench.ranks.device).eval()


def _finished(bench: workbench.Workbench, name: str) -> Path:
    """The stored model of a finished run, intact and made for this catalogue with these settings.

    Raises:
        ArtefactError: it is not; the message says what differs, or what to run.
    """
    run = f"baseline-{name}"
    folder = run_folder.require_done(bench.recipe, run)
    run_folder.require_fit(bench.recipe, run, _facts(bench))
    check_folder(folder / MODEL)
    return folder / MODEL


def load_scorer(bench: workbench.Workbench, name: str) -> Score:
    """Scores of every leaf: log-probabilities of the neural models, similarities of ItemKNN.

    Raises:
        ArtefactError: the run is not finished, damaged, or made with other settings.
    """
    options = bench.recipe.baseline[name].options
    if not isinstance(options, ItemknnOptions):
        model = load_sequential(bench, name)
        encoder = _encoder(bench)
        return lambda histories: _log_probs(model, encoder, histories).cpu().numpy()
    similar_LL = similarities(load_file(_finished(bench, name) / WEIGHTS))
    leaf_of_item = bench.leaf_of_item

    def score(histories: Sequence[Sequence[int]]) -> Scores:
        leaves = [leaf_of_item[list(history)].tolist() for history in histories]
        return score_itemknn(similar_LL, leaves, decay=options.decay)

    return score


def _log_probs(
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
    with torch.no_grad():
        hidden_BD = model(input_ids_BT.to(device), last_B.to(device))[0]
        return torch.log_softmax((hidden_BD @ model.head().weight_VD.T).float(), dim=1)


def _validation_metrics(
    bench: workbench.Workbench, model: Sequential, frame: pd.DataFrame
) -> dict[str, float]:
    """HR and NDCG at the largest cut-off, the history kept, as for the language models.

    Ties count against the target: a model that scores all entries alike has found none of them.
    """
    cutoff = max(bench.recipe.eval.cutoffs)
    leaf_B = torch.from_numpy(bench.leaf_of_item[frame[TARGET].to_numpy()].astype(np.int64))
    ranks = []
    histories = frame[HISTORY].tolist()
    for start in range(0, len(histories), 512):
        score_BF = _log_probs(model, bench.encoder, histories[start : start + 512]).cpu()
        target_B1 = score_BF.gather(1, leaf_B[start : start + 512, None])
        ranks.append((score_BF >= target_B1).sum(1))
    return means_at(torch.cat(ranks), cutoff)


def _build(bench: workbench.Workbench, name: str) -> Sequential:
    section = bench.recipe.baseline[name]
    options = section.options
    if not isinstance(options, SequentialOptions):
        raise RecipeError(
            f'[baseline.{name}] model = "{section.model}": has no state of a history to score '
            "items from; expected sasrec, gru4rec or caser"
        )
    longest = bench.recipe.data.history + 1
    return build_sequential(options, bench.trie.n_leaves, longest, bench.recipe.seed)


def _encoder(bench: workbench.Workbench) -> PromptEncoder:
    """Histories as leaf numbers, behind the number that begins a sequence."""
    leaf_of_item = bench.leaf_of_item
    codec = Codec(None, eos=-1, start=bench.trie.n_leaves)
    catalogue = [[leaf] for leaf in leaf_of_item.tolist()]
    longest = bench.recipe.data.history + 1
    return PromptEncoder(None, codec, bench.prepared.items, catalogue, longest)
