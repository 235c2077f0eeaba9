"""The training data of a stage: its rows, and the transforms that its method needs.

catalogue context + split -> rows
contract.Needs -> row transforms:   MoveReference (the policy takes the parent's place in it),
                                    AddNegatives (drawn, or mined from the parent or the policy),
                                    AddRollouts (asks the policy at every update),
                                    AddStoredReference or KeepReference
               -> batch transforms: AddReference, AddItemScores
both -> Dataset (training) and Dataset (validation)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import ItemTasks, TrainSection
from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.decoding.ranker import LanguageModelRanker
from llmrec_cli.decoding.search import DecodeOptions
from llmrec_cli.evaluation.ranking import rank_windows
from llmrec_cli.methods.contract import ItemScores, Method, Needs, Rollouts
from llmrec_cli.models.sequential import Sequential
from llmrec_cli.pipeline.loading import load_sequential, make_language_ranker, require_sequential
from llmrec_cli.pipeline.setup import CatalogueContext
from llmrec_cli.runs.run import baseline_run
from llmrec_cli.tensors.trie import leaf_ranges
from llmrec_cli.training.checkpoint import WEIGHTS
from llmrec_cli.training.collator import Collator, Limits
from llmrec_cli.training.dataset import BatchTransform, Dataset, RowTransform, Sampler
from llmrec_cli.training.item_scores import (
    AddItemScores,
    ItemScoreTable,
    compute_vectors,
    fingerprint_of_rows,
    load_vectors,
    target_starts,
)
from llmrec_cli.training.negatives import (
    AddNegatives,
    DropUnusable,
    Miner,
    NegativeSampler,
    gather_users,
    only_catalogue_rows,
    require_scale,
)
from llmrec_cli.training.reference import (
    AddReference,
    AddStoredReference,
    KeepReference,
    MoveReference,
    Reference,
    ReferenceStore,
    store_reference,
)
from llmrec_cli.training.rollouts import AddRollouts, list_excluded
from llmrec_cli.training.rows import AnyRow, Row, as_windows
from llmrec_cli.training.trainer import count_updates
from llmrec_cli.utils.files import (
    CHECKPOINTS_FOLDER,
    MANIFEST_FILE,
    MODEL_FOLDER,
    NEGATIVES_FOLDER,
    REFERENCE_FOLDER,
    SCORES_FOLDER,
    hash_file,
)
from llmrec_cli.utils.progress import Progress

SCORES: Final = "scores"  # of a run's facts: the model of the item scores


@dataclass(frozen=True)
class TrainingStage:
    """One training stage, before its model is loaded."""

    context: CatalogueContext
    method: Method
    options: Any
    section: TrainSection
    item_tasks: ItemTasks | None = None  # further rows, which teach what IDs mean

    @property
    def needs(self) -> Needs:
        return self.method.needs(self.options)

    def sampler(self) -> NegativeSampler | None:
        """The transform that draws this stage's negatives; None where the method has none."""
        wanted = self.needs.negatives
        if wanted is None:
            return None
        leaves = gather_entries(self.context.prepared.items, self.context.leaf_of_item)
        train, valid = (self.context.prepared.split(name) for name in ("train", "valid"))
        if wanted.draw == "disliked":
            require_scale(train, wanted.below)
        users = gather_users(train, leaves, wanted.below, valid)
        return NegativeSampler(wanted, leaves, users, self.context.recipe.seed)


@dataclass(frozen=True)
class StageData:
    """The datasets of a stage, and the order of its training rows."""

    train: Dataset
    valid: Dataset
    sampler: Sampler


def build_datasets(
    stage: TrainingStage,
    policy: Any,
    rows: Sequence[AnyRow],
    valid_rows: Sequence[AnyRow],
    folder: Path,
    facts: dict[str, Any],
    progress: Progress,
    *,
    transforms: Sequence[RowTransform] | None = None,
) -> StageData:
    """Datasets whose rows have everything that the method needs.

    Args:
        policy: with its parent's weights, before any update; the reference is taken from it.
        rows, valid_rows: of the stage, numbered from 0.
        folder: of the run; what is precomputed or mined is kept there.
        facts: what a stored reference depends on.
        transforms: of a task that completes its training rows itself; None: with negatives.
    """
    context, needs = stage.context, stage.needs
    order = Sampler(len(rows), stage.section.batch, context.recipe.seed)
    reference = _make_reference(stage, policy)
    train, valid = list[RowTransform](transforms or ()), list[RowTransform]()
    negatives = stage.sampler() if transforms is None else None
    if negatives is not None:
        ask = RankWrongEntries(context, negatives, policy, reference, progress)
        ask_again = replace(ask, reference=None) if negatives.wanted.refresh else ask
        mined, steps = folder / NEGATIVES_FOLDER, count_updates(len(rows), stage.section)
        train.append(
            _add_negatives(
                ask_again, only_catalogue_rows(rows), order, steps, mined, negatives.wanted.refresh
            )
        )
        known = only_catalogue_rows(valid_rows)
        usable = negatives.usable_rows(known)
        for note in negatives.describe_dropped(known, usable):
            progress.say(f"validation: {note}")
        whole = Sampler(len(usable), len(usable), shuffle=False)
        valid.append(DropUnusable(negatives))
        valid.append(_add_negatives(ask, usable, whole, 1, mined / "valid", 0))
    if needs.rollouts is not None:
        all_of_it = Sampler(len(valid_rows), len(valid_rows), shuffle=False)
        train.append(_add_rollouts(context, needs.rollouts, policy, "train", rows, order))
        valid.append(_add_rollouts(context, needs.rollouts, policy, "valid", valid_rows, all_of_it))
    train_batches, valid_batches = list[BatchTransform](), list[BatchTransform]()
    if needs.rollouts is not None and reference is not None:
        train_batches.append(AddReference(reference))
        valid_batches.append(AddReference(reference))  # other answers at every validation
    elif needs.reference is not None and reference is not None:
        keep = KeepReference(
            reference,
            Collator(
                context.trie, cut_forced=stage.method.legal_only(stage.options), rejected=True
            ),
            Limits.of_section(stage.section),
            context.ranks.device,
            progress,
        )
        valid.append(keep)
        if needs.reference.computed == "precompute":
            steps = count_updates(len(rows), stage.section)
            store = ReferenceStore(
                folder / f"{REFERENCE_FOLDER}-{context.ranks.index}-of-{context.ranks.count}", facts
            )
            store_reference(
                store,
                Dataset(rows, train),
                order,
                steps,
                keep.compute_rows,
                context.ranks,
                progress,
            )
            train = [*(transforms or ()), AddStoredReference(store)]
        else:
            train_batches.append(AddReference(reference))
        if needs.reference.moves:
            moved = MoveReference(
                reference,
                needs.reference.moves,
                folder=folder / REFERENCE_FOLDER,
                checkpoints=folder / CHECKPOINTS_FOLDER,
                writes=context.ranks.is_first,
            )
            train.insert(0, moved)
            fixed = Dataset(valid_rows, valid)  # its negatives and its reference are the parent's
            fixed.complete_rows(context.ranks.pick_share(valid_rows), 0)
    if needs.item_scores is not None:
        for split, own, into in (
            ("train", rows, train_batches),
            ("valid", valid_rows, valid_batches),
        ):
            into.append(
                _add_item_scores(
                    context, needs.item_scores, split, only_catalogue_rows(own), progress
                )
            )
    return StageData(
        Dataset(rows, train, train_batches), Dataset(valid_rows, valid, valid_batches), order
    )


def _make_reference(stage: TrainingStage, policy: Any) -> Reference | None:
    """The parent's weights, where log-probabilities or mined negatives are to come from them."""
    negatives = stage.needs.negatives
    mined = negatives is not None and negatives.draw == "model" and not negatives.refresh
    score = stage.method.log_probs
    if score is None or (stage.needs.reference is None and not mined):
        return None
    return Reference(policy, lambda forward, batch: score(forward, batch, stage.options))


@dataclass(frozen=True)
class RankWrongEntries:
    """The first wrong entries for every target, by the reference or by the policy as it is now.

    Args:
        reference: None: the policy ranks.
    """

    context: CatalogueContext
    sampler: NegativeSampler
    policy: Any
    reference: Reference | None
    progress: Progress

    def __call__(self, rows: Sequence[Row]) -> list[list[list[int]]]:
        """For each row, for each of its targets: entries, best first."""
        windows = [window for row in rows for window in as_windows(row, self.context.catalogue)]
        owned = [sorted(self.sampler.list_owned(window)) for window in windows]
        asked = self.reference.active() if self.reference else nullcontext(self.policy)
        tracked = self.progress.track("hard negatives", len(windows), unit="windows")
        with asked as model, tracked as advance:
            ranker = make_language_ranker(self.context, model.model)
            found = rank_windows(
                ranker, self.context.ranks, windows, owned, self.sampler.wanted.pool, advance
            )
        lists = iter(found)
        return [[next(lists) for _ in row.targets] for row in rows]


def _add_negatives(
    ask: RankWrongEntries,
    rows: Sequence[Row],
    order: Sampler,
    steps: int,
    folder: Path,
    refresh: int,
) -> AddNegatives:
    """Negatives as the method wants them, of rows that come up in ``steps`` updates.

    Args:
        folder: what is mined is kept there.
        refresh: of a ``Miner``.
    """
    wanted, miner = ask.sampler.wanted, None
    if wanted.draw == "model":
        miner = Miner(
            ask,
            rows,
            order,
            steps=steps,
            refresh=refresh,
            folder=folder,
            writes=ask.context.ranks.is_first,
        )
    return AddNegatives(ask.sampler, rows, order, miner)


@dataclass(frozen=True)
class RankRollouts:
    """The rollouts of every target, by the policy as it is now."""

    context: CatalogueContext
    wanted: Rollouts
    policy: Any

    def __call__(self, rows: Sequence[Row], keys: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """As ``training.rollouts.AskPolicy``."""
        context, wanted = self.context, self.wanted
        windows = [window for row in rows for window in as_windows(row, context.catalogue)]
        excluded = [list_excluded(window, wanted, context.leaf_of_item) for window in windows]
        drawn = [key for own in keys for key in own] if wanted.draw == "sampled" else []
        mask: Final = "before" if wanted.support == "legal" else "after"
        ranker = LanguageModelRanker(
            self.policy.model, context.trie, context.encoder.encode, DecodeOptions(k=1, mask=mask)
        )
        lists = iter(rank_windows(ranker, context.ranks, windows, excluded, wanted.k, keys=drawn))
        return [[next(lists) for _ in row.targets] for row in rows]


def _add_rollouts(
    context: CatalogueContext,
    wanted: Rollouts,
    policy: Any,
    split: str,
    rows: Sequence[AnyRow],
    order: Sampler,
) -> AddRollouts:
    """The policy's own answers, for the rows of a split in their order."""
    return AddRollouts(
        RankRollouts(context, wanted, policy),
        only_catalogue_rows(rows),
        order,
        gather_entries(context.prepared.items, context.leaf_of_item).item_of_leaf_L,
        context.recipe.seed,
        split,
    )


def _add_item_scores(
    context: CatalogueContext,
    wanted: ItemScores,
    split: str,
    rows: Sequence[Row],
    progress: Progress,
) -> AddItemScores:
    """Item probabilities of each target's history, from the baseline that the method names."""
    return AddItemScores(
        load_item_scores(context, wanted.model, split, rows, progress),
        leaf_ranges(context.trie),
        context.leaf_of_item,
        keeps_history=wanted.history == "keep",
    )


def load_item_scores(
    context: CatalogueContext,
    name: str,
    split: str,
    rows: Sequence[Row],
    progress: Progress,
) -> ItemScoreTable:
    """Item probabilities of every target's own history, by ``[baseline.name]``; made once.

    Raises:
        ArtefactError: the model is not finished; the message says what to run.
        RecipeError: no such table, or a model without a state of a history (pop, itemknn).
    """
    recipe, (model, weights) = context.recipe, _load_scorer(context, name)
    facts = {
        "model": weights,
        "prepared": hash_file(recipe.prepared_folder / MANIFEST_FILE),
        "rows": fingerprint_of_rows(rows),
    }
    folder = recipe.folder / SCORES_FOLDER / f"{name}-{split}-{facts['rows'][:12]}"

    def compute() -> Tensor:
        with progress.track(f"item scores, {split}", len(rows), unit="rows") as advance:
            return compute_vectors(model, rows, context.leaf_of_item, advance=advance)

    vectors_QD = load_vectors(folder, facts, compute, progress.say)
    return ItemScoreTable(vectors_QD, target_starts(rows), model.head().weight_VD.detach())


def scorer_facts(stage: TrainingStage) -> dict[str, Any]:
    """The model of the item scores as a fact of the run: name -> SHA-256 of its weights.

    Raises:
        ArtefactError, RecipeError: as ``load_item_scores``, before anything is written.
    """
    wanted = stage.needs.item_scores
    if wanted is None:
        return {}
    return {SCORES: {wanted.model: _load_scorer(stage.context, wanted.model)[1]}}


def find_scorer_facts(recipe: Recipe, needs: Needs) -> dict[str, Any]:
    """``scorer_facts`` of the weights that lie there; nothing where there are none any more."""
    if needs.item_scores is None:
        return {}
    weights = _locate_scorer(recipe, needs.item_scores.model)
    return {SCORES: {needs.item_scores.model: hash_file(weights)}} if weights.is_file() else {}


def _load_scorer(context: CatalogueContext, name: str) -> tuple[Sequential, str]:
    """The finished model, and the SHA-256 of its weights."""
    require_sequential(context.recipe, name)
    return load_sequential(context, name), hash_file(_locate_scorer(context.recipe, name))


def _locate_scorer(recipe: Recipe, name: str) -> Path:
    """The weights of the trained ``[baseline.NAME]``."""
    return baseline_run(recipe, name).folder / MODEL_FOLDER / WEIGHTS
