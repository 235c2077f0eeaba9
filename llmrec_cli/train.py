"""One training stage: open, check, train, write.  ``sft.py`` and ``align.py`` are its two uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_cli import run_folder, workbench
from llmrec_cli.engine import checkpoint
from llmrec_cli.engine.loop import Job, Position, train
from llmrec_cli.engine.rows import window_rows
from llmrec_cli.errors import DataError
from llmrec_cli.files import sha256
from llmrec_cli.methods import find
from llmrec_cli.models.backbone import Policy
from llmrec_cli.progress import Progress
from llmrec_cli.recipe import Recipe, TrainSection


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
    rows = bench.training_rows(section.rows)
    valid = workbench.subset(bench.prepared.split("valid"), section.validate_rows)
    for name, count in (("training", len(rows)), ("validation", len(valid))):
        if count == 0:
            raise DataError(f"{recipe.prepared}: no {name} rows; loosen data.k_core or the split")
    folder = run_folder.open_run(recipe, run, _facts(recipe, bench, parent_folder), resume=resume)
    policy = Policy(workbench.load_policy(bench, parent_folder, train=True))
    progress.say(f"{run}: {len(rows)} {section.rows} rows, {_parameters(policy)}")
    cutoff = max(recipe.eval.cutoffs)
    position = train(
        Job(
            policy=policy,
            method=chosen,
            options=options,
            trie=bench.trie,
            train_rows=rows,
            valid_rows=window_rows(valid, bench.encoder),
            rank_valid=lambda: workbench.validation_metrics(
                bench, policy.model, valid, recipe.eval.decode, cutoff
            ),
            section=section,
            seed=recipe.seed,
            folder=folder,
            accelerator=bench.accelerator,
            progress=progress,
            label=run,
        ),
        resume=resume,
    )
    name = "model" if recipe.model.tuning == "full" else "adapter"
    checkpoint.write_result(folder / name, policy.model, bench.codec.tokenizer, bench.accelerator)
    run_folder.finish(folder, _outcome(position))
    return folder


def _facts(recipe: Recipe, bench: workbench.Workbench, parent: Path | None) -> dict[str, Any]:
    """Hashes of everything that the run stands on."""
    facts: dict[str, Any] = {
        "prepared": sha256(recipe.prepared / "manifest.json"),
        "base": recipe.model.backbone,
        "vocabulary": len(bench.codec.tokenizer),
        "leaves": bench.trie.n_leaves,
    }
    if parent:
        weights = sorted(
            p for p in parent.glob("*/*.safetensors") if p.parent.name in ("model", "adapter")
        )
        facts["parent"] = parent.name
        facts["parent_weights"] = {p.name: sha256(p) for p in weights}
    return facts


def _outcome(position: Position) -> dict[str, Any]:
    return {
        "steps": position.step,
        "best_step": position.best_step,
        "best_score": position.best_score,
        "stopped_early": position.stopped,
        "method": position.method,
    }


def _parameters(policy: Policy) -> str:
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    share = "" if trained == total else f" of {total:,}"
    return f"{trained:,}{share} parameters trained"
