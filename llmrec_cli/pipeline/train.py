"""``llmrec sft`` and ``llmrec align``: one training stage, from rows to the finished run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llmrec_cli.config.names import RunKind
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import TrainSection
from llmrec_cli.models.language_model import Policy
from llmrec_cli.pipeline import memory, requirements, setup
from llmrec_cli.pipeline.advice import warn_of_emulation, warn_of_warmup
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.plan import StagePlan, check_plan, plan_run
from llmrec_cli.pipeline.provenance import (
    describe_inputs,
    hash_weights,
    open_session,
    require_same_inputs,
)
from llmrec_cli.runs.record import (
    add_to_manifest,
    find_token_start,
    require_done,
    require_same_settings,
)
from llmrec_cli.runs.run import Run, align_run, sft_run
from llmrec_cli.tasks.base import StageRows, load_operations
from llmrec_cli.training.checkpoint import write_result
from llmrec_cli.training.trainer import Trainer, TrainerState
from llmrec_cli.utils.files import CHECKPOINTS_FOLDER
from llmrec_cli.utils.progress import Progress

# One training stage: load, check, train, write. ``sft`` and ``align`` use it.


CHOSEN: Final = "chosen"  # of a manifest: keys of the stage's training that llmrec set to fit


def train_stage(recipe: Recipe, run: Run, *, resume: bool, progress: Progress) -> Path:
    """Train one run of a recipe to its end.

    Args:
        run: of ``[sft]`` or ``[align.NAME]``.

    Returns:
        The run's folder, with ``model/`` or ``adapter/`` from its best validation.

    Raises:
        UserError: the run cannot be trained (``check_plan``), or its folder is not free.
        ArtefactError: ``resume``, and it is finished and was made from something else.
    """
    plan = plan_run(recipe, run)
    chosen, options, section = plan.method, plan.options, plan.section
    parent = run.parent
    if parent:
        require_done(recipe, parent)
    if resume and run.is_done:
        _check_finished(recipe, plan, progress)
        progress.say(f"{run.folder}: already finished")
        return run.folder
    context = setup.open_context(recipe, progress)
    stage = check_plan(context, plan)
    found = load_operations(recipe.task).make_rows(stage, run.kind is RunKind.ALIGN)
    facts = _gather_facts(recipe, context, parent) | requirements.scorer_facts(stage)
    facts |= setup.item_tasks_fact(recipe, stage.item_tasks)
    with open_session(recipe, run, facts, context.ranks, progress, resume=resume) as session:
        if session.is_finished:
            return run.folder
        section = _fit_passes(stage, found, run, progress)
        stage = replace(stage, section=section)
        # A policy that is measured against its own beginning must not differ from it by noise.
        dropout = chosen.log_probs is None
        model = load_policy(
            context,
            parent,
            train=True,
            dropout=dropout,
            packs=_packs_answers(stage),
            run=run,
        )
        policy = Policy(model)
        start = None if parent else find_token_start(recipe, run)
        if (line := setup.describe_token_start(context, start)) is not None:
            progress.say(f"{run}: {line}")
        for line in warn_of_emulation(recipe.model, context.ranks.device):
            progress.say(line)
        for line in warn_of_warmup(section, len(found.rows), run):
            progress.say(line)
        data = requirements.build_datasets(
            stage,
            policy,
            found.rows,
            found.valid_rows,
            run.folder,
            facts,
            progress,
            transforms=found.transforms,
        )
        progress.say(f"{run}: {len(found.rows):,} {section.rows} rows, {_count_parameters(policy)}")
        for line in _describe_left_out(context, section, found):
            progress.say_once(str(run), line)
        meaning = chosen.describe(options, context.trie, context.codec.spell)
        if meaning is not None:
            progress.say(f"{run}: {meaning}")
        trainer = Trainer(
            policy=policy,
            method=chosen,
            options=options,
            trie=context.trie,
            train_set=data.train,
            valid_set=data.valid,
            sampler=data.sampler,
            rank_valid=lambda: found.rank_valid(policy, progress),
            section=section,
            seed=recipe.seed,
            folder=run.folder,
            ranks=context.ranks,
            progress=progress,
            label=run.name,
            trackers=session.trackers,
        )
        histories = {split: lost.facts() for split, lost in sorted(found.left_out.items())}
        outcome = _record_outcome(trainer.train(resume=resume), context.ranks.count)
        session.outcome = outcome | {"histories": histories}
        if context.ranks.is_first:
            write_result(run.result_folder(recipe), policy.model, context.codec.tokenizer)
    return run.folder


def _check_finished(recipe: Recipe, plan: StagePlan, progress: Progress) -> None:
    """Refuse a finished run of other settings, or one that stands on other data, on another base,
    on other words of a template, or on other weights of its parent.

    Raises:
        ArtefactError: names the first thing that differs, with both values.
    """
    run, whole_model = plan.run, recipe.model.tuning == "full"
    require_same_settings(recipe, run)
    tokenizer = setup.open_tokenizer(recipe, progress)
    now = describe_inputs(recipe, tokenizer, weights=not whole_model)
    now |= requirements.find_scorer_facts(recipe, plan.method.needs(plan.options))
    now |= setup.item_tasks_fact(recipe, plan.item_tasks)
    if run.parent:
        now |= _describe_parent(run.parent)
    require_same_inputs(run, now, whole_model=whole_model)


def _fit_passes(
    stage: requirements.TrainingStage, found: StageRows, run: Run, progress: Progress
) -> TrainSection:
    """The stage's section, with a ``micro_batch`` that fits where the recipe leaves it open.

    The last bits of an update depend on its passes: a run that goes on from a checkpoint keeps
    what it began with, whatever memory there is now.
    """
    section, ranks = stage.section, stage.context.ranks
    if ranks.has_shards:  # weights are spread in ways that the estimate does not know
        return section
    if any((run.folder / CHECKPOINTS_FOLDER).glob("*")):
        return section.model_copy(update=run.read_manifest().get(CHOSEN, {}))
    sizes = memory.measure_rows(stage, found)
    whole = memory.find_largest_pass(section, sizes, ranks.count).rows
    choice = memory.fit_passes(stage, sizes, ranks.count, {})
    own = whole
    if isinstance(choice, memory.PassChoice):
        own = choice.need.size.rows
        if choice.micro_batch is not None:
            progress.say(f"{run}: {memory.describe_choice(choice)}")
        if line := memory.describe_shortage(stage, choice, run.heading):
            progress.say(line)
    fitting = -ranks.most(-own)  # on every process
    if fitting == whole:
        return section
    chosen = {"micro_batch": fitting}
    ranks.first(lambda: add_to_manifest(run, CHOSEN, chosen))
    return section.model_copy(update=chosen)


def _describe_left_out(
    context: setup.CatalogueContext, section: TrainSection, found: StageRows
) -> Iterator[str]:
    """What is left out of the training rows, one line each."""
    yield from found.notes
    for split, lost in sorted(found.left_out.items()):
        in_passes = split == "train" and section.rows == "sequence"
        if line := lost.line(setup.describe_passes(context) if in_passes else context.encoder.why):
            yield f"{split}: {line}"
    known = len(context.prepared.split("valid"))
    if section.validate_rows is not None and section.validate_rows < known:
        yield (
            f"valid: checkpoints are chosen on {section.validate_rows:,} of {known:,} rows "
            "(train.validate_rows)"
        )


def _packs_answers(stage: requirements.TrainingStage) -> bool:
    """Whether a stage computes several answers behind one prompt."""
    packed = stage.context.recipe.task.packs or stage.section.rows == "user"
    return packed or stage.needs.packs


def _gather_facts(
    recipe: Recipe, context: setup.CatalogueContext, parent: Run | None
) -> dict[str, Any]:
    """Hashes of everything that the run is made from."""
    facts = describe_inputs(recipe, context.codec.tokenizer) | {"leaves": context.trie.n_leaves}
    if parent:
        require_same_inputs(parent, facts, whole_model=recipe.model.tuning == "full")
    facts["lineage"] = [recipe.model.backbone]
    if parent:
        before = parent.read_manifest("facts")["facts"]
        facts["lineage"] = [*before.get("lineage", [before["base"]]), parent.name]
        facts |= _describe_parent(parent)
    return facts


def _describe_parent(parent: Run) -> dict[str, Any]:
    """The name of a finished run, and the SHA-256 of its weights by file."""
    return {"parent": parent.name, "parent_weights": hash_weights(parent)}


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


# ``llmrec sft``: supervised fine-tuning on the next item (LML over the whole vocabulary).


def sft(recipe: Recipe, *, resume: bool, progress: Progress) -> Path:
    """Fine-tune the backbone; returns the run's folder ``out/name/sft``."""
    return train_stage(recipe, sft_run(recipe), resume=resume, progress=progress)


# ``llmrec align --method NAME``: an alignment, from SFT's result, another's, or the base.


def align(recipe: Recipe, name: str, *, resume: bool, progress: Progress) -> Path:
    """Run ``[align.NAME]``; returns the run's folder ``out/name/align-NAME``.

    Raises:
        RecipeError: the recipe has no such section.
    """
    return train_stage(recipe, align_run(recipe, name), resume=resume, progress=progress)
