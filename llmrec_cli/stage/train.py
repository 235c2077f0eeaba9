"""One training stage: open, check, train, write.  ``sft.py`` and ``align.py`` are its two uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmrec_cli import run_folder
from llmrec_cli.engine.checkpoint import write_result
from llmrec_cli.engine.job import Job, Position
from llmrec_cli.engine.loop import train
from llmrec_cli.engine.rows import left_out_of
from llmrec_cli.evaluation.ranking import validation_metrics
from llmrec_cli.files import sha256
from llmrec_cli.manifest import read_run_manifest
from llmrec_cli.models.policy import Policy
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.stage import needs, workbench
from llmrec_cli.stage.check import check_plan, plan_run
from llmrec_cli.stage.ground import ground, require_same_ground
from llmrec_cli.stage.pair_task import StageRows, pair_stage
from llmrec_cli.stage.scorer import make_language_ranker
from llmrec_cli.stage.trained import load_policy


def train_stage(recipe: Recipe, run: str, *, resume: bool, progress: Progress) -> Path:
    """Train one run of a recipe to its end.

    Args:
        run: ``sft`` or ``align-NAME``.

    Returns:
        The run's folder, with ``model/`` or ``adapter/`` from its best validation.

    Raises:
        UserError: the run cannot be trained (``check_plan``), or its folder is not free.
    """
    plan = plan_run(recipe, run)
    chosen, options, section = plan.method, plan.options, plan.section
    parent_folder = run_folder.require_done(recipe, plan.parent) if plan.parent else None
    if resume and run_folder.is_done(recipe.run_folder(run)):
        run_folder.require_same_settings(recipe, run)
        progress.say(f"{recipe.run_folder(run)}: already finished")
        return recipe.run_folder(run)
    bench = workbench.open_workbench(recipe, progress)
    stage = check_plan(bench, plan)
    if recipe.prompt.task == "rank-pair":
        ground = pair_stage(bench, section, stage.needs.negatives, aligns=run != "sft")
        stage = replace(stage, bench=replace(bench, pairs=ground.pairs))
    else:
        ground = _catalogue_stage(stage)
    facts = _facts(recipe, bench, parent_folder) | needs.scorer_facts(stage)
    with run_folder.opened(recipe, run, facts, bench.ranks, progress, resume=resume) as opened:
        if opened.finished:
            return opened.folder
        # A policy that is measured against its own beginning must not differ from it by noise.
        dropout = chosen.answer_log_probs is None
        model = load_policy(
            bench,
            parent_folder,
            train=True,
            dropout=dropout,
            packs=_packs(stage),
            run=opened.folder,
        )
        policy = Policy(model)
        supply = needs.make_supply(
            stage, policy, ground.rows, ground.valid_rows, opened.folder, facts, progress
        )
        progress.say(f"{run}: {len(ground.rows):,} {section.rows} rows, {_parameters(policy)}")
        for line in _notes(bench, section, ground):
            progress.say(f"{run}: {line}")
        meaning = chosen.describe(options, bench.trie, bench.codec.spell)
        if meaning is not None:
            progress.say(f"{run}: {meaning}")
        job = Job(
            policy=policy,
            method=chosen,
            options=options,
            trie=bench.trie,
            train_rows=ground.rows,
            valid_rows=ground.valid_rows,
            rank_valid=lambda: ground.rank_valid(policy),
            section=section,
            seed=recipe.seed,
            folder=opened.folder,
            ranks=bench.ranks,
            progress=progress,
            label=run,
            supply=supply,
            trackers=opened.trackers,
        )
        histories = {split: found.facts() for split, found in sorted(ground.left_out.items())}
        outcome = _outcome(train(job, resume=resume), bench.ranks.count)
        opened.outcome = outcome | {"histories": histories}
        if bench.ranks.is_first:
            name = "model" if recipe.model.tuning == "full" else "adapter"
            write_result(opened.folder / name, policy.model, bench.codec.tokenizer)
    return opened.folder


def _catalogue_stage(stage: needs.Stage) -> StageRows:
    """Rows of a stage that learns to generate the next item."""
    bench, recipe = stage.bench, stage.bench.recipe
    rows = bench.training_rows(stage.section.rows)
    sampler = stage.sampler()
    valid = workbench.subset(bench.prepared.split("valid"), stage.section.validate_rows)

    def rank_valid(policy: Any) -> dict[str, float]:
        ranker, cutoff = make_language_ranker(bench, policy.model), max(recipe.eval.cutoffs)
        return validation_metrics(ranker, bench.ranks, valid, bench.leaf_of_item, cutoff)

    usable = sampler.require(rows) if sampler else rows
    valid_rows = bench.windows(valid)
    left_out = {
        "train": left_out_of(bench.prepared.split("train"), rows),
        "valid": left_out_of(valid, valid_rows),
    }
    notes = sampler.dropped(rows, usable) if sampler else ()
    return StageRows(usable, valid_rows, rank_valid, left_out=left_out, notes=notes)


def _notes(bench: workbench.Workbench, section: TrainSection, ground: StageRows) -> Iterator[str]:
    """What is left out of the rows on their way to the loss, one line each."""
    yield from ground.notes
    for split, found in sorted(ground.left_out.items()):
        in_passes = split == "train" and section.rows == "sequence"
        if line := found.line(bench.why_passes if in_passes else bench.encoder.why):
            yield f"{split}: {line}"
    known = len(bench.prepared.split("valid"))
    if section.validate_rows is not None and section.validate_rows < known:
        yield (
            f"valid: checkpoints are chosen on {section.validate_rows:,} of {known:,} rows "
            "(train.validate_rows)"
        )


def _packs(stage: needs.Stage) -> bool:
    """Whether a stage computes several answers behind one prompt."""
    pairs = stage.bench.recipe.prompt.task == "rank-pair"
    return pairs or stage.section.rows == "user" or stage.needs.negatives is not None


def _facts(recipe: Recipe, bench: workbench.Workbench, parent: Path | None) -> dict[str, Any]:
    """Hashes of everything that the run stands on."""
    facts = ground(recipe, bench.codec.tokenizer) | {"leaves": bench.trie.n_leaves}
    if parent:
        require_same_ground(parent, facts, whole_model=recipe.model.tuning == "full")
    facts["lineage"] = [recipe.model.backbone]
    if parent:
        weights = sorted(
            p for p in parent.glob("*/*.safetensors") if p.parent.name in ("model", "adapter")
        )
        before = read_run_manifest(parent / run_folder.MANIFEST_FILE, ("facts",))["facts"]
        facts["lineage"] = [*before.get("lineage", [before["base"]]), parent.name]
        facts["parent"] = parent.name
        facts["parent_weights"] = {p.name: sha256(p) for p in weights}
    return facts


def _outcome(position: Position, processes: int) -> dict[str, Any]:
    return {
        "processes": processes,
        "steps": position.step,
        "best_step": position.best_step,
        "best_score": position.best_score,
        "stopped_early": position.stopped,
        "warned_at": position.warned_at,
        "skipped": position.skipped,
        "method": position.method,
    }


def _parameters(policy: Policy) -> str:
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    share = "" if trained == total else f" of {total:,}"
    return f"{trained:,}{share} parameters trained"
