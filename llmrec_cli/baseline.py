"""``llmrec baseline --model NAME``: a conventional model on the language models' data and rules.

The neural ones are trained by the one training loop, on the same prepared rows (a user's sequence
in one causal pass), with the same validation rows and the same choice of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from llmrec_cli import run_folder, workbench
from llmrec_cli.data.columns import HISTORY, TARGET, USER
from llmrec_cli.engine.loop import Job, train
from llmrec_cli.engine.rows import PromptEncoder, sequence_rows, window_rows
from llmrec_cli.errors import RecipeError
from llmrec_cli.files import check_folder, sha256, write_folder
from llmrec_cli.methods import find
from llmrec_cli.models.itemknn import fit_itemknn, score_itemknn, similarities
from llmrec_cli.models.sequential import Sequential, build_sequential
from llmrec_cli.models.tokenizer import Codec
from llmrec_cli.progress import Progress
from llmrec_cli.recipe import Recipe
from llmrec_cli.recipe_baseline import BaselineSection, ItemknnOptions, PopOptions
from llmrec_cli.tensors.ranking import hit_at, ndcg_at
from llmrec_cli.tensors.trie import build_trie

Scores = NDArray[np.float32]
Score = Callable[[Sequence[Sequence[int]]], Scores]
"""Histories (catalogue indices, oldest first) to the score of every leaf: [rows, leaves]."""

WEIGHTS = "weights.safetensors"


def baseline(recipe: Recipe, name: str, *, resume: bool, progress: Progress) -> Path:
    """Fit ``[baseline.NAME]``; returns the run's folder ``out/name/baseline-NAME``.

    Raises:
        RecipeError: the recipe's task has no catalogue to rank.
    """
    if recipe.prompt.task != "generate":
        raise RecipeError(
            f'[prompt] task = "{recipe.prompt.task}": conventional models rank the catalogue; '
            'expected task "generate"'
        )
    run, section = f"baseline-{name}", recipe.baseline[name]
    folder = recipe.run_folder(run)
    if resume and run_folder.is_done(folder):
        run_folder.require_same_settings(recipe, run)
        progress.say(f"{folder}: already finished")
        return folder
    bench = workbench.open_workbench(recipe, progress)
    facts = {
        "prepared": sha256(recipe.prepared / "manifest.json"),
        "leaves": bench.trie.n_leaves,
    }
    run_folder.open_run(recipe, run, facts, resume=resume)
    outcome = _fit(bench, section, folder, run, resume=resume, progress=progress)
    run_folder.finish(folder, outcome)
    return folder


def _fit(
    bench: workbench.Workbench,
    section: BaselineSection,
    folder: Path,
    run: str,
    *,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    options = section.options
    if isinstance(options, PopOptions):
        return {}
    if isinstance(options, ItemknnOptions):
        users = _items_of_users(bench)
        arrays = fit_itemknn(
            users, bench.trie.n_leaves, neighbours=options.neighbours, shrink=options.shrink
        )
        write_folder(folder / "model", lambda at: save_file(arrays, at / WEIGHTS))
        return {}
    return _train(bench, section, folder, run, resume=resume, progress=progress)


def _items_of_users(bench: workbench.Workbench) -> list[list[int]]:
    """Leaves of every user's training rows, targets included."""
    leaf_of_item = bench.leaf_of_item
    owned: dict[int, set[int]] = {}
    frame = bench.prepared.split("train")
    for user, history, target in zip(frame[USER], frame[HISTORY], frame[TARGET], strict=True):
        owned.setdefault(user, set()).update(leaf_of_item[[*history, target]].tolist())
    return [sorted(leaves) for leaves in owned.values()]


def _train(
    bench: workbench.Workbench,
    section: BaselineSection,
    folder: Path,
    run: str,
    *,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    recipe, encoder = bench.recipe, _encoder(bench)
    model = _build(bench, section).to(bench.accelerator.device)
    valid = workbench.subset(bench.prepared.split("valid"), section.train.validate_rows)
    method = find("lml")  # over a vocabulary of entries: full softmax cross entropy
    position = train(
        Job(
            policy=model,
            method=method,
            options=method.options(),
            trie=build_trie([[leaf] for leaf in bench.leaf_of_item.tolist()]),
            train_rows=sequence_rows(bench.prepared.split("train"), encoder, recipe.data.history),
            valid_rows=window_rows(valid, encoder),
            rank_valid=lambda: _validation_metrics(bench, model, valid),
            section=section.train,
            seed=recipe.seed,
            folder=folder,
            accelerator=bench.accelerator,
            progress=progress,
            label=run,
        ),
        resume=resume,
    )
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_folder(folder / "model", lambda at: save_tensors(state, at / WEIGHTS))
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
        ArtefactError: it is not finished, or damaged; the message says what to run.
        RecipeError: the model has no vector of a history (pop, itemknn).
    """
    section = bench.recipe.baseline[name]
    if isinstance(section.options, PopOptions | ItemknnOptions):
        raise RecipeError(
            f"[baseline.{name}] model = {section.model!r}: has no state of a history; expected "
            "sasrec, gru4rec or caser"
        )
    folder = run_folder.require_done(bench.recipe, f"baseline-{name}") / "model"
    check_folder(folder)
    model = _build(bench, section)
    model.load_state_dict(load_tensors(folder / WEIGHTS))
    return model.to(bench.accelerator.device).eval()


def load_scorer(bench: workbench.Workbench, name: str) -> Score:
    """Scores of every leaf: log-probabilities of the neural models, similarities of ItemKNN.

    Raises:
        ArtefactError: the run is not finished, or damaged.
    """
    options = bench.recipe.baseline[name].options
    if not isinstance(options, ItemknnOptions):
        model = load_sequential(bench, name)
        encoder = _encoder(bench)
        return lambda histories: _log_probs(model, encoder, histories).cpu().numpy()
    folder = run_folder.require_done(bench.recipe, f"baseline-{name}") / "model"
    check_folder(folder)
    similar_LL = similarities(load_file(folder / WEIGHTS))
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
    """HR and NDCG at the largest cut-off, the history kept, as for the language models."""
    cutoff = max(bench.recipe.eval.cutoffs)
    encoder = _encoder(bench)
    leaf_B = torch.from_numpy(bench.leaf_of_item[frame[TARGET].to_numpy()].astype(np.int64))
    ranks = []
    histories = frame[HISTORY].tolist()
    for start in range(0, len(histories), 512):
        score_BF = _log_probs(model, encoder, histories[start : start + 512]).cpu()
        target_B1 = score_BF.gather(1, leaf_B[start : start + 512, None])
        ranks.append(1 + (score_BF > target_B1).sum(1))
    rank_B = torch.cat(ranks)
    return {
        f"ndcg@{cutoff}": float(ndcg_at(rank_B, cutoff).mean()),
        f"hr@{cutoff}": float(hit_at(rank_B, cutoff).double().mean()),
    }


def _build(bench: workbench.Workbench, section: BaselineSection) -> Sequential:
    longest = bench.recipe.data.history + 1
    return build_sequential(section.options, bench.trie.n_leaves, longest, bench.recipe.seed)  # type: ignore[arg-type] # pop and itemknn are handled before


def _encoder(bench: workbench.Workbench) -> PromptEncoder:
    """Histories as leaf numbers, behind the number that begins a sequence."""
    leaf_of_item = bench.leaf_of_item
    codec = Codec(None, eos=-1, start=bench.trie.n_leaves)
    catalogue = [[leaf] for leaf in leaf_of_item.tolist()]
    longest = bench.recipe.data.history + 1
    return PromptEncoder(None, codec, bench.prepared.items, catalogue, longest)
