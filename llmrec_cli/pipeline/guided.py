"""Guided runs: a language model's run with the guide of ``[eval.decode]``.

    its parts, finished -> prepare_guided: the weight, chosen on validation rows -> manifest
                           load_ranker: both parts as one Ranker, which eval and recommend use

Nothing is trained.  The folder holds a manifest with the weight, and what ``eval`` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import tomli_w

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.data.histories import read_histories
from llmrec_cli.data.index import INDEX_HASH, hash_index
from llmrec_cli.decoding.ranker import GuidedRanker
from llmrec_cli.errors import RecipeError
from llmrec_cli.evaluation.metrics import score_rows, seen_leaves
from llmrec_cli.evaluation.predictions import list_predictions
from llmrec_cli.evaluation.ranking import rank_rows
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.loading import load_parts
from llmrec_cli.pipeline.provenance import hash_parts
from llmrec_cli.pipeline.zero_shot import open_base
from llmrec_cli.runs.record import PREPARED, collect_circumstances
from llmrec_cli.runs.run import Run
from llmrec_cli.training.distributed import measure_usage
from llmrec_cli.utils.files import MANIFEST_FILE, hash_file, write_atomically, write_json
from llmrec_cli.utils.locks import lock_run
from llmrec_cli.utils.progress import Progress, Silent
from llmrec_cli.utils.text import redact_values


def prepare_guided(
    context: setup.CatalogueContext, leaves: CatalogueEntries, run: Run, progress: Progress
) -> None:
    """Choose a guided run's weight and record the run, unless that was done for the same choice.

    Raises:
        RecipeError: the weight is to be chosen, and there are no validation rows.
        ArtefactError: a part is not finished, damaged, or does not fit the recipe.
    """
    recipe, ranks = context.recipe, context.ranks
    for part in run.parts:
        if part.is_untouched:
            open_base(context, part, progress)
        elif part.is_pop:
            baseline(recipe, part.table, resume=True, progress=Silent())
    described = {
        "run": run.name,
        "settings": run.settings(recipe),
        "facts": _describe_parts(context, run),
    }
    if not ranks.most(int(not _is_recorded(run, described))):
        progress.say(f"{run}: {_describe_outcome(run, run.read_manifest()['outcome'])}, as before")
        return
    with measure_usage(ranks.device) as usage:
        outcome = _choose_weight(context, leaves, run, progress)
    progress.say(f"{run}: {_describe_outcome(run, outcome)}")
    cost = usage.to_record(ranks)
    ranks.first(lambda: _write_run(recipe, run, {**described, "outcome": outcome, "cost": cost}))


def _describe_parts(context: setup.CatalogueContext, run: Run) -> dict[str, Any]:
    """What the weight depends on besides the recipe."""
    return {
        PREPARED: hash_file(context.recipe.prepared_folder / MANIFEST_FILE),
        INDEX_HASH: hash_index(context.prepared),
        "base": context.recipe.model.backbone,
        "parts": hash_parts(run),
    }


def _is_recorded(run: Run, described: Mapping[str, Any]) -> bool:
    """Whether the folder holds a weight that was chosen in the same way, among the same parts."""
    if not run.is_done:
        return False
    recorded = run.read_manifest()
    same = all(recorded.get(key) == value for key, value in described.items())
    return same and "weight" in recorded.get("outcome", {})


def _choose_weight(
    context: setup.CatalogueContext, leaves: CatalogueEntries, run: Run, progress: Progress
) -> dict[str, Any]:
    """The guide, its weight, and of each weight that was tried the figure that chose it.

    Of equal figures the smaller weight is taken.
    """
    recipe = context.recipe
    decode, metric = recipe.eval.decode, f"ndcg@{max(recipe.eval.cutoffs)}"
    if decode.weight != "validation":
        return {"guide": str(run.guide), "weight": decode.weight}
    frame = setup.choose_rows(context.prepared.split("valid"), recipe.train.validate_rows)
    if frame.empty:
        raise RecipeError(
            '[eval.decode] weight = "validation": the data have no validation rows; expected a '
            "number"
        )
    ranker = load_parts(context, leaves, run, 0.0)
    weights = sorted(set(decode.weights))
    curve = [
        _measure_weight(
            context, leaves, replace(ranker, weight=weight), frame, metric, run, progress
        )
        for weight in weights
    ]
    best = max(range(len(weights)), key=lambda at: (curve[at], -at))
    return {
        "guide": str(run.guide),
        "weight": weights[best],
        "metric": metric,
        "seen": recipe.eval.seen,
        "rows": len(frame),
        "curve": [
            {"weight": weight, metric: value} for weight, value in zip(weights, curve, strict=True)
        ],
    }


def _measure_weight(
    context: setup.CatalogueContext,
    leaves: CatalogueEntries,
    ranker: GuidedRanker,
    frame: pd.DataFrame,
    metric: str,
    run: Run,
    progress: Progress,
) -> float:
    """The mean of ``metric`` over validation rows, under the policy of ``eval.seen``."""
    asked = context.recipe.eval
    seen = seen_leaves(frame, leaves.leaf_of_item_I)
    label = f"{run}, weight {ranker.weight:g} on validation"
    with progress.track(label, len(frame), unit="rows") as advance:
        found = rank_rows(
            ranker, context.ranks, read_histories(frame), max(asked.cutoffs), seen, advance
        )
    lists = list_predictions(frame, found, leaves)
    return float(score_rows(lists, leaves, asked.cutoffs, asked.seen, "miss")[metric].mean())


def _describe_outcome(run: Run, outcome: Mapping[str, Any]) -> str:
    """``weight 1 of baseline-itemknn, chosen by ndcg@10 on 500 validation rows (0: 0.38, ...)``."""
    told = f"weight {outcome['weight']:g} of {run.guide}"
    if "curve" not in outcome:
        return told
    metric, curve = outcome["metric"], outcome["curve"]
    points = ", ".join(f"{point['weight']:g}: {point[metric]:.4f}" for point in curve)
    edge = ""
    if outcome["weight"] == curve[-1]["weight"] and len(curve) > 1:
        edge = "; it is the largest of eval.decode.weights, a larger one may be better"
    return f"{told}, chosen by {metric} on {outcome['rows']:,} validation rows ({points}){edge}"


def _write_run(recipe: Recipe, run: Run, described: Mapping[str, Any]) -> None:
    """Write recipe and manifest; how often splits were opened is kept."""
    with lock_run(run.folder):
        recorded = run.read_manifest() if run.manifest_file.is_file() else {}
        run.folder.mkdir(parents=True, exist_ok=True)
        table = tomli_w.dumps(redact_values(recipe.to_table()))
        write_atomically(run.recipe_file, table.encode())
        made = {**recorded, **described, **collect_circumstances(), "status": "done"}
        write_json(run.manifest_file, made)
