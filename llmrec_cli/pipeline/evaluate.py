"""``llmrec eval``: rank the whole catalogue for every row of a split, score, compare."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import CatalogueEntries, gather_entries
from llmrec_cli.data.histories import read_histories
from llmrec_cli.data.index import INDEX_HASH, hash_index
from llmrec_cli.data.negatives import fixed_negatives, owned_entries
from llmrec_cli.data.schema import ROW, TARGET, USER_ID
from llmrec_cli.decoding.ranker import GuidedRanker, LanguageModelRanker
from llmrec_cli.decoding.search import Search
from llmrec_cli.errors import RecipeError
from llmrec_cli.evaluation.auc import (
    CHOSEN_SCORE,
    OTHER,
    REJECTED_SCORE,
    SHOWN_FIRST,
    auc_figures,
    auc_line,
    write_pairs,
)
from llmrec_cli.evaluation.metrics import seen_leaves
from llmrec_cli.evaluation.predictions import (
    Protocol,
    build_report,
    list_predictions,
    write_predictions,
)
from llmrec_cli.evaluation.ranking import measure_left_out, rank_rows, score_items
from llmrec_cli.models.base import Ranker
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.compare import Compared, compare_experiment
from llmrec_cli.pipeline.guided import prepare_guided
from llmrec_cli.pipeline.loading import load_ranker, make_language_ranker, read_weight
from llmrec_cli.pipeline.plan import plan_run
from llmrec_cli.pipeline.provenance import require_all_inputs, require_same_parts
from llmrec_cli.pipeline.zero_shot import open_base
from llmrec_cli.runs.record import (
    Existing,
    count_opening,
    describe_command,
    describe_other_settings,
    describe_state,
    evaluated_before,
    open_evaluation,
    require_done,
    require_same_evaluation,
    require_same_prompt,
)
from llmrec_cli.runs.run import Run, experiment_of, explain_unknown_run
from llmrec_cli.tasks.base import load_operations
from llmrec_cli.training.distributed import measure_usage
from llmrec_cli.training.rows import LeftOut
from llmrec_cli.utils.files import MANIFEST_FILE, hash_file, write_json
from llmrec_cli.utils.progress import Progress, Silent

_BOTH: Final[tuple[Search, ...]] = ("exact", "beam")


def evaluate_runs(
    recipe: Recipe,
    names: Sequence[str] | None,
    *,
    split: str,
    again: bool,
    keep: bool = False,
    progress: Progress,
) -> Compared:
    """Evaluate runs and put every evaluated run of the recipe side by side.

    Args:
        names: of runs; None: those of the recipe that are finished; the others are left out with a
            note.  ``base`` and ``baseline-pop`` are made on the way: nothing is trained.
        split: ``test`` or ``valid``.
        again: evaluate anew where a report exists; without it, that is an error.
        keep: leave a run alone where a report exists.

    Raises:
        ArtefactError: a run is not finished (of ``names`` None: none is), was evaluated before, or
            is being evaluated.
    """
    existing: Existing = "keep" if keep else "again" if again else "refuse"
    notes = list[str]()
    absent = list[str]()
    if names is None:
        asked = _find_finished(recipe, split, absent, progress)
    else:
        asked = _find_named(recipe, names)
    kept = [run for run in asked if existing == "keep" and run.is_evaluated(split)]
    check_kept(recipe, kept, split)
    runs = [run for run in asked if run not in kept]
    for run in runs:
        _require_free(recipe, run, split, existing)
        notes += _compare_settings(recipe, run)
    for note in notes:
        progress.say(note)
    if kept:
        progress.say(f"evaluated on {split} before, and kept: {', '.join(map(str, kept))}")
    compared = load_operations(recipe.task).evaluate(recipe, runs, split, existing, progress)
    return compared.with_notes([*absent, *notes])


def check_kept(recipe: Recipe, runs: Sequence[Run], split: str) -> None:
    """Refuse reports, where there are any, that a recipe asks for otherwise.

    Raises:
        ArtefactError: one was made for another ``[eval]``.
    """
    for run in runs:
        if run.is_evaluated(split):
            require_same_evaluation(recipe, run, split, setup.describe_evaluation(recipe, run))
            if run.is_guided:
                require_same_parts(run)


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
        runs = _drop_baselines(runs, progress)
    context = setup.open_context(recipe, progress, evaluation=True)
    require_all_inputs(recipe, context.codec.tokenizer, runs)
    leaves = gather_entries(context.prepared.items, context.leaf_of_item)
    frame = setup.choose_rows(context.prepared.split(split), recipe.eval.rows)
    others = _draw_candidates(context, frame, split) if recipe.eval.auc else None
    left_out = measure_left_out(context.encoder, context.ranks, frame)
    if line := left_out.line(context.encoder.why):
        progress.say(f"{split}: {line}")
    for run in runs:
        with open_evaluation(run, split, context.ranks, existing) as is_wanted:
            if is_wanted:
                _evaluate_run(context, leaves, frame, others, left_out, run, split, progress)
    return compare_experiment(recipe, split, leaves)


def _find_named(recipe: Recipe, names: Sequence[str]) -> list[Run]:
    """The runs of these names.

    Raises:
        RecipeError: the recipe has no such run.
    """
    experiment, runs = experiment_of(recipe), list[Run]()
    for name in names:
        run = experiment.find(name)
        if run is None:
            raise RecipeError(f"--run {name}: {explain_unknown_run(recipe, name)}")
        runs.append(run)
    return runs


def _find_finished(recipe: Recipe, split: str, absent: list[str], progress: Progress) -> list[Run]:
    """The runs of a recipe that are finished or made on the way; one line names the others.

    Args:
        absent: gets a line of those whose folder is no run's, which a comparison does not see.

    Raises:
        ArtefactError: nothing is trained or evaluated yet.
    """
    runs = experiment_of(recipe).runs
    missing = [run for run in runs if any(_find_missing(run))]
    found = [run for run in runs if run not in missing]
    if not any(run.is_evaluated(split) or not run.is_made_by_eval for run in found):
        require_done(recipe, missing[0])
    if missing:
        states = (_describe_missing(run) for run in missing)
        progress.say(f"left out: {', '.join(states)}")
    if gone := [run for run in missing if not run.exists and not run.is_guided]:
        each = (f"{run} {describe_state(run)} ({describe_command(run)})" for run in gone)
        absent.append(f"left out: {', '.join(each)}")
    return found


def _find_missing(run: Run) -> Iterator[Run]:
    """What of a run would have to be trained first: itself, or parts of a guided run."""
    return (part for part in run.parts if not part.is_made_by_eval and not part.is_done)


def _describe_missing(run: Run) -> str:
    if not run.is_guided:
        return f"{run} {describe_state(run)}"
    states = (f"{part} {describe_state(part)}" for part in _find_missing(run))
    return f"{run} ({' and '.join(states)})"


def _require_free(recipe: Recipe, run: Run, split: str, existing: Existing) -> None:
    """Refuse a run that cannot be evaluated.

    Raises:
        ArtefactError: it is not finished, is damaged, or was evaluated before.
    """
    for part in run.parts:
        if not part.is_made_by_eval:
            require_done(recipe, part)
    if existing == "refuse" and run.is_evaluated(split):
        raise evaluated_before(run, split)


def _compare_settings(recipe: Recipe, run: Run) -> list[str]:
    """A note where a language model was made with other choices than the recipe has now.

    A conventional model of other choices is refused where it is loaded.

    Raises:
        ArtefactError: a language model was trained on other prompts.
    """
    if run.is_guided:
        return [note for part in run.parts for note in _compare_settings(recipe, part)]
    if run.is_made_by_eval or not run.is_language_model:
        return []
    require_same_prompt(recipe, run)
    note = describe_other_settings(recipe, run)
    return [note] if note else []


def _drop_baselines(runs: Sequence[Run], progress: Progress) -> list[Run]:
    """A conventional model knows the items that it was trained on; popularity is counted anew."""
    skipped = [run for run in runs if not run.is_language_model and not run.is_pop]
    if skipped:
        progress.say(
            f"{', '.join(map(str, skipped))}: skipped: [eval.data] has other items than they know"
        )
    return [run for run in runs if run not in skipped]


def _evaluate_run(
    context: setup.CatalogueContext,
    leaves: CatalogueEntries,
    frame: pd.DataFrame,
    others: list[int] | None,  # of each row, to score beside its target
    left_out: LeftOut,  # of the prompts of these rows
    run: Run,
    split: str,
    progress: Progress,
) -> None:
    recipe, ranks = context.recipe, context.ranks
    if run.is_guided:
        prepare_guided(context, leaves, run, progress)
    with measure_usage(ranks.device) as whole:
        ranker = _open_ranker(context, leaves, run, progress)
        begun = time.perf_counter()
        shown = Silent() if run.is_pop else progress
        predictions = _rank_frame(context, leaves, ranker, frame, f"eval {run}", shown)
        ranking = time.perf_counter() - begun
    cost = whole.to_record(ranks)
    pairs = None
    if others is not None:
        items = np.column_stack([frame[TARGET], others])
        with shown.track(f"eval {run}, AUC", len(frame), unit="rows") as advance:
            scores = score_items(ranker, ranks, read_histories(frame), items, advance)
        pairs = _pair_up(frame, others, scores)

    def write() -> None:
        seed, resamples = recipe.seed, recipe.eval.resamples
        write_predictions(run.predictions_file(split), predictions, frame["row"].to_numpy())
        report = build_report(
            {"keep": predictions, "remove": predictions},
            leaves,
            _describe_protocol(context, run, split),
            resamples=resamples,
            seed=seed,
            short="miss",
        )
        if run.is_language_model:
            report["histories"] = left_out.facts()
        report["cost"] = cost | {"rows_per_second": round(len(frame) / ranking, 1)}
        if run.is_guided:
            report["guide"] = run.read_manifest("outcome")["outcome"]
        if pairs is not None:
            write_pairs(run.pairs_file(split), pairs)
            report["auc"] = auc_figures([pairs], resamples, seed)
            progress.say(f"{run}: {auc_line(report['auc'])}")
        write_json(run.report_file(split), report)
        count_opening(run, split, setup.describe_evaluation(recipe, run))

    ranks.first(write)


def _open_ranker(
    context: setup.CatalogueContext, leaves: CatalogueEntries, run: Run, progress: Progress
) -> Ranker:
    recipe = context.recipe
    if run.is_untouched:
        model = open_base(context, run, progress, packs=recipe.eval.auc)
        return make_language_ranker(context, model, batch=recipe.eval.batch)
    if run.is_pop:
        baseline(recipe, run.table, resume=True, progress=Silent())
    elif run.is_language_model and not run.is_guided:
        _warn_about_mask(recipe, run, progress)
    return load_ranker(context, leaves, run, scores_answers=recipe.eval.auc)


def _rank_frame(
    context: setup.CatalogueContext,
    leaves: CatalogueEntries,
    ranker: Ranker,
    frame: pd.DataFrame,
    label: str,
    progress: Progress,
) -> pd.DataFrame:
    """Predictions for every row, deep enough with its history and without."""
    ranks, depth = context.ranks, max(context.recipe.eval.cutoffs)
    histories, seen = read_histories(frame), seen_leaves(frame, leaves.leaf_of_item_I)
    with progress.track(label, len(frame), unit="rows") as advance:
        found = rank_rows(ranker, ranks, histories, depth, seen, advance)
    differs = None
    counted = context.recipe.eval.decode.beam_error
    if counted and isinstance(ranker, LanguageModelRanker | GuidedRanker):
        first = list[np.ndarray[Any, Any]]()
        for search in _BOTH:
            with progress.track(f"{label}, {search} search", len(frame), unit="rows") as advance:
                lists = rank_rows(
                    ranker.searching(search), ranks, histories, depth, advance=advance
                )
            first.append(lists.leaf_BK[:, :depth])
        exact, beam = first
        differs = (exact != beam).any(axis=1)  # the beam's first entries, in order
    return list_predictions(frame, found, leaves, differs)


def _draw_candidates(context: setup.CatalogueContext, frame: pd.DataFrame, split: str) -> list[int]:
    """The other item of every row, always the same: a disliked one where there is one, else any.

    Raises:
        DataError: a user owns the whole catalogue.
    """
    prepared, entry_I = context.prepared, context.leaf_of_item.astype(np.int64)
    owned = owned_entries([prepared.split(name) for name in prepared.splits], entry_I)
    seed, stream = context.recipe.seed, f"{split}-candidates"
    return fixed_negatives(frame, owned, entry_I, seed=seed, stream=stream)


def _pair_up(frame: pd.DataFrame, others: list[int], score_R2: NDArray[np.float64]) -> pd.DataFrame:
    """The rows of ``frame`` as scored pairs, ``evaluation.auc.SCHEMA``."""
    columns: dict[str, Any] = {
        OTHER: others,
        SHOWN_FIRST: False,
        CHOSEN_SCORE: score_R2[:, 0],
        REJECTED_SCORE: score_R2[:, 1],
    }
    return frame[[ROW, USER_ID, TARGET]].assign(**columns).reset_index(drop=True)


def _describe_protocol(context: setup.CatalogueContext, run: Run, split: str) -> Protocol:
    recipe = context.recipe
    hashes = {"data": hash_file(context.prepared.folder / MANIFEST_FILE)}
    if run.manifest_file.is_file():
        hashes["run"] = hash_file(run.manifest_file)
    if (index := hash_index(context.prepared)) is not None:
        hashes[INDEX_HASH] = index
    decoder: dict[str, Any] = {"search": "all"}
    if run.is_language_model:
        decoder = recipe.eval.decode.without_guide()
    if run.is_guided:
        decoder |= {"guide": str(run.guide), "weight": read_weight(run)}
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
