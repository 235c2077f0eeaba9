"""What a method needs besides rows, built from a recipe's folder: ``contract.Needs`` -> ``Supply``.

training rows -> negatives (drawn, or mined from the parent or the policy)
              -> reference log-probabilities (stored before training, or asked online)
a conventional model's scores -> item probabilities of every target's history
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmrec_cli.data.leaves import gather_leaves
from llmrec_cli.engine.batches import rows_of_step
from llmrec_cli.engine.checkpoint import WEIGHTS
from llmrec_cli.engine.collate import Collator, Masses
from llmrec_cli.engine.item_scores import (
    ItemScoreTable,
    fingerprint_of_rows,
    history_vectors,
    stored_vectors,
    target_starts,
    without_history,
)
from llmrec_cli.engine.job import limits_of, updates
from llmrec_cli.engine.mining import Miner
from llmrec_cli.engine.negatives import NegativeSampler, require_scale, users_of
from llmrec_cli.engine.reference import Reference, Store, log_probs_of
from llmrec_cli.engine.rows import AnyRow, Row, as_windows
from llmrec_cli.engine.supply import DrawnNegatives, Serve, Supply
from llmrec_cli.evaluation.ranking import rank_windows
from llmrec_cli.files import sha256
from llmrec_cli.methods.contract import Method, Needs
from llmrec_cli.models.sequential import Sequential
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.stage.scorer import (
    MODEL,
    load_sequential,
    make_language_ranker,
    require_sequential,
)
from llmrec_cli.stage.workbench import Workbench
from llmrec_cli.tensors.mass import LeafMass, leaf_mass, leaf_ranges


@dataclass(frozen=True)
class Stage:
    """One training stage, before its model is loaded."""

    bench: Workbench
    method: Method
    options: Any
    section: TrainSection

    @property
    def needs(self) -> Needs:
        return self.method.needs(self.options)

    def sampler(self) -> NegativeSampler | None:
        """Draws this stage's negatives; None where the method has none."""
        wanted = self.needs.negatives
        if wanted is None or self.bench.pairs is not None:
            return None
        leaves = gather_leaves(self.bench.prepared.items, self.bench.leaf_of_item)
        train, valid = (self.bench.prepared.split(name) for name in ("train", "valid"))
        if wanted.draw == "disliked":
            require_scale(train, wanted.below)
        users = users_of(train, leaves, wanted.below, valid)
        return NegativeSampler(wanted, leaves, users, self.bench.recipe.seed)


def make_supply(
    stage: Stage,
    policy: Any,
    rows: Sequence[AnyRow],
    valid_rows: Sequence[AnyRow],
    folder: Path,
    facts: dict[str, Any],
    progress: Progress,
) -> Supply:
    """Build what the method needs.

    Args:
        policy: at its parent's result, before any update; the reference is taken from it.
        rows, valid_rows: of the stage, numbered by their place.
        folder: of the run; what is precomputed or mined is kept there.
        facts: what a stored reference depends on.
    """
    needs, device = stage.needs, stage.bench.ranks.device
    reference = _reference(stage, policy)
    train, valid = _completed(stage, policy, reference, rows, valid_rows, folder, progress)
    if needs.reference is not None and reference is not None:
        log_probs = partial(
            log_probs_of,
            reference=reference,
            collate=_collator(stage),
            limits=limits_of(stage.section),
            device=device,
        )
        if needs.reference == "precompute":
            train = _stored(stage, train, rows, folder / "reference", facts, log_probs, progress)
        drawn_valid = valid
        valid = _once(lambda rows: log_probs(drawn_valid(rows, 0)))
    train_masses, valid_masses = _masses(stage, rows, valid_rows, progress)
    return Supply(
        train=train,
        valid=valid,
        train_masses=train_masses,
        valid_masses=valid_masses,
        reference=reference if needs.reference == "online" else None,
        layers=needs.hidden_states,
        preferences=needs.negatives is not None,
    )


def _reference(stage: Stage, policy: Any) -> Reference | None:
    """The parent's weights, where log-probabilities or mined negatives are to come from them."""
    negatives = stage.needs.negatives
    mined = negatives is not None and negatives.draw == "model" and not negatives.refresh
    score = stage.method.answer_log_probs
    if score is None or (stage.needs.reference is None and not mined):
        return None
    return Reference(policy, lambda forward, batch: score(forward, batch, stage.options))


def _completed(
    stage: Stage,
    policy: Any,
    reference: Reference | None,
    rows: Sequence[AnyRow],
    valid_rows: Sequence[AnyRow],
    folder: Path,
    progress: Progress,
) -> tuple[Serve, Serve]:
    """Rows of an update with their negatives, for training and for validation."""
    bench, wanted, sampler = stage.bench, stage.needs.negatives, stage.sampler()
    if bench.pairs is not None:
        return bench.pairs.train, bench.pairs.valid
    if sampler is None or wanted is None:
        return Supply().train, Supply().valid
    steps = -(-len(rows) // stage.section.batch)

    def rows_at(step: int) -> list[Row]:
        numbers = rows_of_step(len(rows), stage.section.batch, bench.recipe.seed, step)
        return _catalogue_rows([rows[number] for number in numbers])

    def upcoming(step: int, count: int) -> list[Row]:
        last = min(step + count, updates(len(rows), stage.section))
        return [row for at in range(step, last) for row in rows_at(at)]

    known_valid = sampler.usable_rows(_catalogue_rows(valid_rows))
    for note in sampler.dropped(_catalogue_rows(valid_rows), known_valid):
        progress.say(f"validation: {note}")
    miner = valid_miner = None
    if wanted.draw == "model":
        ask = partial(_ask, bench, sampler, policy, reference)
        mined_in, mine = folder / "negatives", partial(Miner, ask, writes=bench.ranks.is_first)
        miner = mine(upcoming, refresh=wanted.refresh, folder=mined_in)
        valid_miner = mine(lambda *_: known_valid, refresh=0, folder=mined_in / "valid")
    train = DrawnNegatives(sampler, miner, rows_at, steps)
    valid = DrawnNegatives(sampler, valid_miner, lambda step: known_valid, 1)
    return train, lambda rows, step: valid(sampler.usable_rows(_catalogue_rows(rows)), 0)


def _ask(
    bench: Workbench,
    sampler: NegativeSampler,
    policy: Any,
    reference: Reference | None,
    rows: Sequence[Row],
) -> list[list[list[int]]]:
    """The first wrong leaves for every target, by the reference or by the policy as it is now."""
    windows = [window for row in rows for window in as_windows(row, bench.catalogue)]
    owned = [sorted(sampler.owned(window)) for window in windows]
    pool = sampler.wanted.pool
    if reference is None:
        ranker = make_language_ranker(bench, policy.model)
        found = rank_windows(ranker, bench.ranks, windows, owned, pool)
    else:
        with reference.active() as parent:
            ranker = make_language_ranker(bench, parent.model)
            found = rank_windows(ranker, bench.ranks, windows, owned, pool)
    lists = iter(found)
    return [[next(lists) for _ in row.targets] for row in rows]


def _stored(
    stage: Stage,
    complete: Serve,
    rows: Sequence[AnyRow],
    folder: Path,
    facts: dict[str, Any],
    log_probs: Callable[[Sequence[AnyRow]], list[AnyRow]],
    progress: Progress,
) -> Serve:
    """Compute the reference for every update of the run, or read what was computed before."""
    bench = stage.bench
    ranks = bench.ranks
    own = f"{folder.name}-{ranks.index}-of-{ranks.count}"
    store = Store(folder.with_name(own), facts)

    def served(at: int) -> list[AnyRow]:
        numbers = rows_of_step(len(rows), stage.section.batch, bench.recipe.seed, at)
        return complete([rows[number] for number in ranks.fed(numbers)], at)

    if ranks.most(not store.load()):  # mining is work of all: where one lacks it, all do it again
        steps = updates(len(rows), stage.section)
        with progress.track("reference", steps, unit="updates") as advance:
            computed = []
            for at in range(steps):
                computed.append(log_probs(served(at)))
                advance(1)
        store.save(computed)
    if bench.pairs is not None:
        return lambda part, step: store.fill(complete(part, step), step)
    return store.fill


def _collator(stage: Stage) -> Collator:
    return Collator(
        stage.bench.trie, cut_forced=stage.method.legal_only(stage.options), rejected=True
    )


def _once(compute: Callable[[Sequence[AnyRow]], list[AnyRow]]) -> Serve:
    """Validation rows, completed at the first validation."""
    done: list[AnyRow] = []

    def serve(rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        if not done:
            done.extend(compute(rows))
        return done

    return serve


def _masses(
    stage: Stage, rows: Sequence[AnyRow], valid_rows: Sequence[AnyRow], progress: Progress
) -> tuple[Masses | None, Masses | None]:
    """Item probabilities of each target's history, from the baseline that the method names."""
    wanted, bench = stage.needs.item_scores, stage.bench
    if wanted is None:
        return None, None
    ranges = leaf_ranges(bench.trie)

    def masses(split: str, own_rows: Sequence[Row]) -> Masses:
        table = item_scores(bench, wanted.model, split, own_rows, progress.say)

        def of(part: Sequence[Row]) -> LeafMass:
            probability_AF = table.probabilities([row.number for row in part])
            if wanted.history == "zero":
                probability_AF = without_history(probability_AF, part, bench.leaf_of_item)
            return leaf_mass(probability_AF.to(bench.ranks.device), ranges)

        return of

    return (
        masses("train", _catalogue_rows(rows)),
        masses("valid", _catalogue_rows(valid_rows)),
    )


def item_scores(
    bench: Workbench,
    name: str,
    split: str,
    rows: Sequence[Row],
    say: Callable[[str], object] = lambda text: None,
) -> ItemScoreTable:
    """Item probabilities of every target's own history, by ``[baseline.name]``; made once.

    Raises:
        ArtefactError: the model is not finished; the message says what to run.
        RecipeError: no such table, or a model without a state of a history (pop, itemknn).
    """
    recipe, (model, weights) = bench.recipe, _scorer(bench, name)
    facts = {
        "model": weights,
        "prepared": sha256(recipe.prepared / "manifest.json"),
        "rows": fingerprint_of_rows(rows),
    }
    folder = recipe.folder / "scores" / f"{name}-{split}-{facts['rows'][:12]}"
    vectors_QD = stored_vectors(
        folder, facts, lambda: history_vectors(model, rows, bench.leaf_of_item), say
    )
    return ItemScoreTable(vectors_QD, target_starts(rows), model.head().weight_VD.detach())


def scorer_facts(stage: Stage) -> dict[str, Any]:
    """Which model gives the item scores, as a fact of the run: its weights' SHA-256 by its name.

    Raises:
        ArtefactError, RecipeError: as ``item_scores``, before anything is written.
    """
    wanted = stage.needs.item_scores
    if wanted is None:
        return {}
    return {"scores": {wanted.model: _scorer(stage.bench, wanted.model)[1]}}


def _scorer(bench: Workbench, name: str) -> tuple[Sequential, str]:
    """The finished model, and the SHA-256 of its weights."""
    require_sequential(bench.recipe, name)
    weights = bench.recipe.run_folder(f"baseline-{name}") / MODEL / WEIGHTS
    return load_sequential(bench, name), sha256(weights)


def _catalogue_rows(rows: Sequence[AnyRow]) -> list[Row]:
    return [row for row in rows if isinstance(row, Row)]
