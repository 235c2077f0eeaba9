"""One training stage: open, check, train, write.  ``sft.py`` and ``align.py`` are its two uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llmrec_cli import run_folder
from llmrec_cli.engine.checkpoint import write_result
from llmrec_cli.engine.job import Job, Position
from llmrec_cli.engine.loop import train
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.files import sha256
from llmrec_cli.manifest import read_run_manifest
from llmrec_cli.methods import find
from llmrec_cli.models.policy import Policy, check_depth
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.stage import needs, workbench
from llmrec_cli.stage.base import base_config
from llmrec_cli.stage.ground import ground, require_same_ground
from llmrec_cli.stage.pair_task import StageRows, pair_stage
from llmrec_cli.stage.trained import load_policy


def train_stage(
    recipe: Recipe,
    run: str,
    *,
    method: str,
    options: Any,
    section: TrainSection,
    parent: str | None,
    resume: bool,
    progress: Progress,
) -> Path:
    """Train one run of a recipe to its end.

    Args:
        run: name of the run, its folder's name.
        parent: run whose result is the start; None starts from the base.

    Returns:
        The run's folder, with ``model/`` or ``adapter/`` from its best validation.
    """
    parent_folder = run_folder.require_done(recipe, parent) if parent else None
    if resume and run_folder.is_done(recipe.run_folder(run)):
        run_folder.require_same_settings(recipe, run)
        progress.say(f"{recipe.run_folder(run)}: already finished")
        return recipe.run_folder(run)
    bench = workbench.open_workbench(recipe, progress)
    chosen = find(method)
    chosen.init_state(options, bench.trie)  # options that cannot work here fail before any writing
    stage = needs.Stage(bench, chosen, options, section)
    if stage.needs.reference and parent is None:
        raise RecipeError(
            f'[{run.replace("-", ".", 1)}] parent = "base": {method} is measured against the model '
            'it starts from; set parent = "sft" and run first: llmrec sft RECIPE'
        )
    if stage.needs.hidden_states:
        check_depth(base_config(recipe).get_text_config(), stage.needs.hidden_states)
    if recipe.prompt.task == "rank-pair":
        ground = pair_stage(bench, section, stage.needs.negatives, aligns=run != "sft")
        stage = replace(stage, bench=replace(bench, pairs=ground.pairs))
    else:
        ground = _catalogue_stage(stage)
    sizes = {"training": len(ground.rows), "validation": len(ground.valid_rows)}
    for name, count in sizes.items():
        if count == 0:
            raise DataError(f"{recipe.prepared}: no {name} rows; loosen data.k_core or the split")
    facts = _facts(recipe, bench, parent_folder) | needs.scorer_facts(stage)
    with run_folder.opened(recipe, run, facts, bench.ranks, progress, resume=resume) as opened:
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
        progress.say(f"{run}: {len(ground.rows)} {section.rows} rows, {_parameters(policy)}")
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
        opened.outcome = _outcome(train(job, resume=resume), bench.ranks.count)
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
        return workbench.validation_metrics(
            bench, policy.model, valid, recipe.eval.decode, max(recipe.eval.cutoffs)
        )

    usable = sampler.require(rows) if sampler else rows
    return StageRows(usable, bench.windows(valid), rank_valid)


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
