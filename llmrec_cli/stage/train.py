"""One training stage: open, check, train, write.  ``sft.py`` and ``align.py`` are its two uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrec_cli import run_folder
from llmrec_cli.engine.checkpoint import write_result
from llmrec_cli.files import sha256
from llmrec_cli.manifest import read_run_manifest
from llmrec_cli.models.policy import Policy
from llmrec_cli.progress import Progress
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.stage import needs, workbench
from llmrec_cli.stage.check import check_plan, plan_run
from llmrec_cli.stage.ground import ground, require_same_ground
from llmrec_cli.stage.trained import load_policy
from llmrec_cli.tasks.operations import StageRows, load_operations
from llmrec_cli.training.trainer import Trainer, TrainerState


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
    found = load_operations(recipe.task).make_rows(stage, run != "sft")
    facts = _gather_facts(recipe, bench, parent_folder) | needs.scorer_facts(stage)
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
            packs=_packs_answers(stage),
            run=opened.folder,
        )
        policy = Policy(model)
        data = needs.build_datasets(
            stage,
            policy,
            found.rows,
            found.valid_rows,
            opened.folder,
            facts,
            progress,
            transforms=found.transforms,
        )
        progress.say(f"{run}: {len(found.rows):,} {section.rows} rows, {_count_parameters(policy)}")
        for line in _describe_left_out(bench, section, found):
            progress.say(f"{run}: {line}")
        meaning = chosen.describe(options, bench.trie, bench.codec.spell)
        if meaning is not None:
            progress.say(f"{run}: {meaning}")
        trainer = Trainer(
            policy=policy,
            method=chosen,
            options=options,
            trie=bench.trie,
            train_set=data.train,
            valid_set=data.valid,
            sampler=data.sampler,
            rank_valid=lambda: found.rank_valid(policy),
            section=section,
            seed=recipe.seed,
            folder=opened.folder,
            ranks=bench.ranks,
            progress=progress,
            label=run,
            trackers=opened.trackers,
        )
        histories = {split: lost.facts() for split, lost in sorted(found.left_out.items())}
        outcome = _record_outcome(trainer.train(resume=resume), bench.ranks.count)
        opened.outcome = outcome | {"histories": histories}
        if bench.ranks.is_first:
            name = "model" if recipe.model.tuning == "full" else "adapter"
            write_result(opened.folder / name, policy.model, bench.codec.tokenizer)
    return opened.folder


def _describe_left_out(
    bench: workbench.Workbench, section: TrainSection, found: StageRows
) -> Iterator[str]:
    """What is left out of the rows on their way to the loss, one line each."""
    yield from found.notes
    for split, lost in sorted(found.left_out.items()):
        in_passes = split == "train" and section.rows == "sequence"
        if line := lost.line(workbench.describe_passes(bench) if in_passes else bench.encoder.why):
            yield f"{split}: {line}"
    known = len(bench.prepared.split("valid"))
    if section.validate_rows is not None and section.validate_rows < known:
        yield (
            f"valid: checkpoints are chosen on {section.validate_rows:,} of {known:,} rows "
            "(train.validate_rows)"
        )


def _packs_answers(stage: needs.Stage) -> bool:
    """Whether a stage computes several answers behind one prompt."""
    packed = stage.bench.recipe.task.packs or stage.section.rows == "user"
    return packed or stage.needs.negatives is not None


def _gather_facts(
    recipe: Recipe, bench: workbench.Workbench, parent: Path | None
) -> dict[str, Any]:
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


def _record_outcome(state: TrainerState, processes: int) -> dict[str, Any]:
    return {
        "processes": processes,
        "steps": state.step,
        "best_step": state.best_step,
        "best_score": state.best_score,
        "stopped_early": state.stopped,
        "warned_at": state.warned_at,
        "skipped": state.skipped,
        "method": state.method,
    }


def _count_parameters(policy: Policy) -> str:
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    share = "" if trained == total else f" of {total:,}"
    return f"{trained:,}{share} parameters trained"
