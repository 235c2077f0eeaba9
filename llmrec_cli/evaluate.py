"""``llmrec eval``: rank the whole catalogue for every row of a split, score, compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from llmrec_cli.baseline import baseline
from llmrec_cli.compare import Compared, compare_experiment
from llmrec_cli.data.leaves import Leaves, gather_leaves
from llmrec_cli.engine.ranks import Column
from llmrec_cli.engine.rows import LeftOut
from llmrec_cli.engine.usage import measured
from llmrec_cli.errors import RecipeError
from llmrec_cli.files import MANIFEST_FILE, sha256, write_json
from llmrec_cli.models.popularity import rank_by_popularity
from llmrec_cli.progress import Progress, Silent
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.report.pairs import auc_figures, auc_line, write_pairs
from llmrec_cli.report.predictions import build_predictions, write_predictions
from llmrec_cli.report.report_json import Protocol, build_report
from llmrec_cli.runs.provenance import require_all_inputs
from llmrec_cli.runs.record import (
    Existing,
    count_opening,
    evaluated_before,
    open_evaluation,
    require_done,
)
from llmrec_cli.runs.run import Experiment, Run, experiment_of
from llmrec_cli.stage import workbench
from llmrec_cli.stage.check import plan_run
from llmrec_cli.stage.evaluate_candidates import (
    ScoreTwo,
    by_count,
    by_policy,
    by_scorer,
    candidates_of,
    scored_pairs,
)
from llmrec_cli.stage.scorer import Score, load_scorer
from llmrec_cli.stage.trained import load_policy
from llmrec_cli.tasks.operations import load_operations

BASELINE_ROWS = 256  # scored together


def evaluate(
    recipe: Recipe,
    names: Sequence[str],
    *,
    split: str,
    again: bool,
    keep: bool = False,
    progress: Progress,
) -> Compared:
    """Evaluate runs and put every evaluated run of the recipe side by side.

    Args:
        names: of runs; ``baseline-pop`` is fitted on the way, it costs nothing.
        split: ``test`` or ``valid``.
        again: evaluate anew where a report exists; without it, that is an error.
        keep: leave a run alone where a report exists.

    Raises:
        ArtefactError: a run is not finished, was evaluated before, or is being evaluated.
    """
    existing: Existing = "keep" if keep else "again" if again else "refuse"
    experiment = experiment_of(recipe)
    found = (_find_wanted(experiment, recipe, name, split, existing) for name in names)
    runs = [run for run in found if run is not None]
    return load_operations(recipe.task).evaluate(recipe, runs, split, existing, progress)


def evaluate_catalogue(
    recipe: Recipe, runs: Sequence[Run], *, split: str, existing: Existing, progress: Progress
) -> Compared:
    """Rank the catalogue for every row of a split with every run, and compare all evaluated runs.

    Args:
        runs: finished runs that may be evaluated.
        existing: what to do with a report that another process has written meanwhile.

    Raises:
        DataError, ArtefactError: nothing prepared, or what lies there does not fit the recipe.
    """
    if recipe.eval.data is not None:
        runs = _without_baselines(runs, progress)
    bench = workbench.open_workbench(recipe, progress, evaluation=True)
    require_all_inputs(recipe, bench.codec.tokenizer, runs)
    leaves = gather_leaves(bench.prepared.items, bench.leaf_of_item)
    frame = workbench.subset(bench.prepared.split(split), recipe.eval.rows)
    others = candidates_of(bench, frame, split) if recipe.eval.auc else None
    histories = bench.left_out(frame)
    if line := histories.line(bench.encoder.why):
        progress.say(f"{split}: {line}")
    for run in runs:
        with open_evaluation(run, split, bench.ranks, existing) as is_wanted:
            if is_wanted:
                _evaluate_run(bench, leaves, frame, others, histories, run, split, progress)
    return compare_experiment(recipe, split, leaves)


def _find_wanted(
    experiment: Experiment, recipe: Recipe, name: str, split: str, existing: Existing
) -> Run | None:
    """The run of a name; None: it is not to be evaluated.

    Raises:
        RecipeError, ArtefactError: it cannot be.
    """
    run = experiment.find(name)
    if run is None:
        known = ", ".join(experiment.names)
        raise RecipeError(f"--run {name}: unknown, expected one of {known}")
    there = run.is_evaluated(split)
    if there and existing == "keep":
        return None
    if not run.is_pop:
        require_done(recipe, run)
    if there and existing == "refuse":
        raise evaluated_before(run, split)
    return run


def _without_baselines(runs: Sequence[Run], progress: Progress) -> list[Run]:
    """A conventional model knows the items that it was trained on; popularity is counted anew."""
    skipped = [run for run in runs if not run.is_language_model and not run.is_pop]
    if skipped:
        progress.say(
            f"{', '.join(map(str, skipped))}: skipped: [eval.data] has other items than they know"
        )
    return [run for run in runs if run not in skipped]


@dataclass(frozen=True)
class _Ranker:
    """A run, ready to rank the catalogue and to score two candidates."""

    rank: Callable[[pd.DataFrame], pd.DataFrame]  # rows to predictions
    score_two: ScoreTwo


def _evaluate_run(
    bench: workbench.Workbench,
    leaves: Leaves,
    frame: pd.DataFrame,
    others: list[int] | None,  # of each row, to score beside its target
    histories: LeftOut,  # of the prompts of these rows
    run: Run,
    split: str,
    progress: Progress,
) -> None:
    recipe, device = bench.recipe, bench.ranks.device
    with measured(device) as whole:
        ranker = _ranker(bench, leaves, run, progress)
        begun = time.perf_counter()
        predictions = ranker.rank(frame)
        ranking = time.perf_counter() - begun
    cost = whole.recorded(bench.ranks)
    pairs = scored_pairs(frame, others, ranker.score_two) if others is not None else None

    def write() -> None:
        seed, resamples = recipe.seed, recipe.eval.resamples
        write_predictions(run.predictions_file(split), predictions, frame["row"].to_numpy())
        report = build_report(
            {"keep": predictions, "remove": predictions},
            leaves,
            _protocol(bench, run, split),
            resamples=resamples,
            seed=seed,
            short="miss",
        )
        if run.is_language_model:
            report["histories"] = histories.facts()
        report["cost"] = cost | {"rows_per_second": round(len(frame) / ranking, 1)}
        if pairs is not None:
            write_pairs(run.pairs_file(split), pairs)
            report["auc"] = auc_figures([pairs], resamples, seed)
            progress.say(f"{run}: {auc_line(report['auc'])}")
        write_json(run.report_file(split), report)
        count_opening(run, split)

    bench.ranks.first(write)


def _ranker(bench: workbench.Workbench, leaves: Leaves, run: Run, progress: Progress) -> _Ranker:
    recipe = bench.recipe
    if run.is_pop:
        baseline(recipe, run.table, resume=True, progress=Silent())
        return _Ranker(partial(_rank_by_popularity, bench, leaves), by_count(leaves))
    if not run.is_language_model:
        score = load_scorer(bench, run.table)
        rank = partial(_rank_by_baseline, bench, leaves, score, f"eval {run}", progress)
        return _Ranker(rank, by_scorer(score, leaves, BASELINE_ROWS))
    _warn_about_mask(recipe, run, progress)
    packs = recipe.eval.auc
    model = load_policy(bench, run, train=False, packs=packs)
    rank = partial(_rank_by_model, bench, leaves, model, f"eval {run}", progress)
    return _Ranker(rank, by_policy(bench, model))


def _rank_by_model(
    bench: workbench.Workbench,
    leaves: Leaves,
    model: Any,
    label: str,
    progress: Progress,
    frame: pd.DataFrame,
) -> pd.DataFrame:
    section = bench.recipe.eval
    depth = max(section.cutoffs)
    with progress.track(label, len(frame), unit="rows") as advance:
        found = bench.rank(
            model, frame, section.decode, depth, exclude=True, batch=section.batch, advance=advance
        )
    leaf_BK, score_BK = found.leaf_BK.numpy(), found.score_BK.numpy()
    ranked = [leaves.item_of_leaf_L[leaf_K[leaf_K >= 0]] for leaf_K in leaf_BK]
    scores = [score_K[leaf_K >= 0] for leaf_K, score_K in zip(leaf_BK, score_BK, strict=True)]
    differs = _beam_differs(bench, model, frame, depth) if section.decode.beam_error else None
    return build_predictions(frame, ranked, scores, differs)


def _beam_differs(
    bench: workbench.Workbench, model: Any, frame: pd.DataFrame, depth: int
) -> list[bool]:
    """Per row, whether the beam's first ``depth`` entries are not the exact ones, in order."""
    section = bench.recipe.eval
    lists = {
        search: bench.rank(
            model,
            frame,
            section.decode.model_copy(update={"search": search}),
            depth,
            exclude=False,
            batch=section.batch,
        ).leaf_BK[:, :depth]
        for search in ("exact", "beam")
    }
    different: list[bool] = (lists["exact"] != lists["beam"]).any(1).tolist()
    return different


def _rank_by_popularity(
    bench: workbench.Workbench, leaves: Leaves, frame: pd.DataFrame
) -> pd.DataFrame:
    depth = max(bench.recipe.eval.cutoffs)
    depths = [depth + len(seen) for seen in bench.seen_leaves(frame)]
    ranked, scores = rank_by_popularity(leaves, depths)
    return build_predictions(frame, ranked, scores)


def _rank_by_baseline(
    bench: workbench.Workbench,
    leaves: Leaves,
    score: Score,
    label: str,
    progress: Progress,
    frame: pd.DataFrame,
) -> pd.DataFrame:
    """Every entry's score for every row, sorted; ties go to the more popular entry."""
    depth, order_L = max(bench.recipe.eval.cutoffs), leaves.by_popularity_L
    depths = [depth + len(seen) for seen in bench.seen_leaves(frame)]
    width, histories = min(max(depths), len(order_L)), frame["history"].tolist()

    def work(numbers: Sequence[int]) -> list[Column]:
        place_RK = np.empty((len(numbers), width), np.int64)
        score_RK = np.empty((len(numbers), width), np.float32)
        for start in range(0, len(numbers), BASELINE_ROWS):
            part = slice(start, start + BASELINE_ROWS)
            score_BL = score([histories[i] for i in numbers[part]])[:, order_L]
            place_RK[part] = np.argsort(-score_BL, axis=1, kind="stable")[:, :width]
            score_RK[part] = np.take_along_axis(score_BL, place_RK[part], axis=1)
            advance(len(score_BL) * len(frame) // len(numbers))
        return [(torch.from_numpy(place_RK), 0), (torch.from_numpy(score_RK), 0)]

    with progress.track(label, len(frame), unit="rows") as advance:
        place_RK, score_RK = bench.ranks.shared_out(len(frame), work)
    entries = [place_K[:n].numpy() for place_K, n in zip(place_RK, depths, strict=True)]
    ranked = [leaves.item_of_leaf_L[order_L[place_K]] for place_K in entries]
    scores = [score_K[:n].numpy() for score_K, n in zip(score_RK, depths, strict=True)]
    return build_predictions(frame, ranked, scores)


def _protocol(bench: workbench.Workbench, run: Run, split: str) -> Protocol:
    recipe = bench.recipe
    hashes = {"data": sha256(bench.prepared.folder / MANIFEST_FILE)}
    if run.manifest_file.is_file():
        hashes["run"] = sha256(run.manifest_file)
    decoder: Mapping[str, Any] = (
        recipe.eval.decode.model_dump() if run.is_language_model else {"search": "all"}
    )
    return Protocol(
        split=split,
        seen=recipe.eval.seen,
        cutoffs=recipe.eval.cutoffs,
        candidates="whole catalogue",
        decoder=decoder,
        hashes=hashes,
    )


def _warn_about_mask(recipe: Recipe, run: Run, progress: Progress) -> None:
    plan = plan_run(recipe, run)
    if recipe.eval.decode.mask == "after" and plan.method.legal_only(plan.options):
        progress.say(
            f'{run}: warning: trained on legal tokens only, decoded with mask = "after"; decode as '
            'you trained (mask = "before"), or expect much lower figures'
        )
