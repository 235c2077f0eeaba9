"""``llmrec eval`` for the rank-pair task: scores of both answers, and AUC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.schema import COUNT, PREFERENCE, ROW, TARGET, USER_ID
from llmrec_cli.evaluation.auc import (
    CHOSEN_SCORE,
    OTHER,
    REJECTED_SCORE,
    SHOWN_FIRST,
    PairProtocol,
    build_pair_report,
    write_pairs,
)
from llmrec_cli.models.language_model import Policy
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.compare import Compared, compare_experiment
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.provenance import require_all_inputs
from llmrec_cli.runs.record import Existing, count_opening, open_evaluation
from llmrec_cli.runs.run import Run
from llmrec_cli.tasks.rank_pair_operations import (
    UserPairs,
    choose_pairs,
    count_pairs_left_out,
    describe_candidates,
    make_pair_encoder,
    score_pairs,
)
from llmrec_cli.training.distributed import measure_usage
from llmrec_cli.training.rows import LeftOut, PairRow
from llmrec_cli.utils.files import MANIFEST_FILE, hash_file, write_json
from llmrec_cli.utils.progress import Progress


def evaluate_pairs(
    recipe: Recipe,
    runs: Sequence[Run],
    *,
    split: str,
    existing: Existing,
    progress: Progress,
) -> Compared:
    """Score the pairs of a split with every run, and put all evaluated runs side by side.

    Args:
        runs: finished, and free to be evaluated; Pop prefers what occurs more often in the
            training rows.
        existing: what to do with a report that another process has written meanwhile.

    Raises:
        DataError, ArtefactError: nothing prepared, or what lies there does not fit the recipe.
    """
    context = setup.open_context(recipe, progress, evaluation=True)
    require_all_inputs(recipe, context.codec.tokenizer, runs)
    frame = setup.choose_rows(context.prepared.split(split), recipe.eval.rows)
    asked = choose_pairs(context, frame, split)
    source = describe_candidates(frame, asked)
    encoder = make_pair_encoder(context, recipe.prompt_for_eval)
    rows = encoder.encode(asked)
    histories = count_pairs_left_out(asked, rows)
    if line := histories.line(f"prompt.max_tokens = {encoder.max_tokens}"):
        progress.say(f"{split}: {line}")

    def evaluate_run(run: Run) -> None:
        with measure_usage(context.ranks.device) as usage:
            if run.is_pop:
                scores = _by_popularity(context, asked)
            else:
                scores = _by_model(context, rows, run, progress)
        pairs, cost = _table(frame, asked, scores), usage.to_record(context.ranks)
        protocol = _protocol(context, source, run, split)
        context.ranks.first(partial(_write, context, pairs, protocol, cost, histories, run))

    for run in runs:
        with open_evaluation(run, split, context.ranks, existing) as is_wanted:
            if is_wanted:
                evaluate_run(run)
    return compare_experiment(recipe, split)


def _write(
    context: setup.CatalogueContext,
    pairs: pd.DataFrame,
    protocol: PairProtocol,
    cost: Mapping[str, Any],
    histories: LeftOut,
    run: Run,
) -> None:
    recipe = context.recipe
    run.folder.mkdir(parents=True, exist_ok=True)
    write_pairs(run.pairs_file(protocol.split), pairs)
    report = build_pair_report(
        pairs,
        protocol,
        _trained_users(context),
        resamples=recipe.eval.resamples,
        seed=recipe.seed,
    )
    report["cost"] = dict(cost)
    report["histories"] = histories.facts()
    write_json(run.report_file(protocol.split), report)
    count_opening(run, protocol.split)


def _by_model(
    context: setup.CatalogueContext, rows: Sequence[PairRow], run: Run, progress: Progress
) -> np.ndarray[Any, Any]:
    recipe = context.recipe
    policy = Policy(load_policy(context, run, train=False)).eval()
    n_pairs = sum(len(row.prompts) for row in rows)
    with progress.track(f"eval {run}", n_pairs, unit="pairs") as advance:
        scores = score_pairs(
            policy,
            rows,
            context.trie,
            batch=recipe.eval.batch,
            ranks=context.ranks,
            advance=advance,
        )
    return np.concatenate(scores)


def _by_popularity(
    context: setup.CatalogueContext, asked: Sequence[UserPairs]
) -> np.ndarray[Any, Any]:
    count_I = context.prepared.items[COUNT].to_numpy(np.float64)
    return np.array([[count_I[u.liked], count_I[other]] for u in asked for other in u.others])


def _table(
    frame: pd.DataFrame, asked: Sequence[UserPairs], scores: np.ndarray[Any, Any]
) -> pd.DataFrame:
    """One row per pair, as ``evaluation.auc.SCHEMA`` has it."""
    times = [len(user.others) for user in asked]
    table = frame[[ROW, USER_ID, TARGET]].iloc[np.repeat(np.arange(len(frame)), times)]
    columns: dict[str, Any] = {
        OTHER: [other for user in asked for other in user.others],
        SHOWN_FIRST: [first for user in asked for first in user.liked_first],
        CHOSEN_SCORE: scores[:, 0],
        REJECTED_SCORE: scores[:, 1],
    }
    return table.assign(**columns).reset_index(drop=True)


def _trained_users(context: setup.CatalogueContext) -> frozenset[str]:
    """Users with rows that the runs were trained on; none of another domain's."""
    if context.recipe.eval.data is not None:
        return frozenset()
    splits = [name for name in ("train", PREFERENCE) if name in context.prepared.splits]
    return frozenset(user for name in splits for user in context.prepared.split(name)[USER_ID])


def _protocol(context: setup.CatalogueContext, source: str, run: Run, split: str) -> PairProtocol:
    hashes = {"data": hash_file(context.prepared.folder / MANIFEST_FILE)}
    if run.manifest_file.is_file():
        hashes["run"] = hash_file(run.manifest_file)
    return PairProtocol(
        task=context.recipe.task.name,
        split=split,
        candidates=source,
        template=Path(context.recipe.prompt_for_eval.template).name,
        hashes=hashes,
    )
