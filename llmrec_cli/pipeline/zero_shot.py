"""The untouched backbone as a run: what a pretrained model ranks before any training (zero-shot).

Its folder holds a manifest with the hashes of the backbone, and no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_cli.config.names import explain_no_base
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.provenance import describe_inputs, open_session, require_same_inputs
from llmrec_cli.runs.record import require_same_settings
from llmrec_cli.runs.run import Run, base_run
from llmrec_cli.utils.progress import Progress


def record_base(recipe: Recipe, *, resume: bool, progress: Progress) -> Path:
    """Record the backbone as a run, so that it can recommend; returns the run's folder.

    Raises:
        RecipeError: weights are random, or tokens of items new to it, before training.
        ArtefactError: the run exists already, or ``resume`` and it stands on another backbone.
    """
    if reason := explain_no_base(recipe):
        raise RecipeError(f"{reason}: there is no zero-shot ranking")
    run = base_run(recipe)
    if resume and run.is_done:
        require_same_settings(recipe, run)
        require_same_inputs(
            run, describe_inputs(recipe, setup.open_tokenizer(recipe, progress)), whole_model=False
        )
        progress.say(f"{run.folder}: already finished")
        return run.folder
    open_base(setup.open_context(recipe, progress), run, progress, resume=resume)
    return run.folder


def open_base(
    context: setup.CatalogueContext,
    run: Run,
    progress: Progress,
    *,
    resume: bool = True,
    packs: bool = False,
) -> Any:
    """The backbone in evaluation mode; its run is recorded, or compared with what was recorded.

    Args:
        run: of the backbone.
        resume: the run may be there already.
        packs: several answers will be computed behind one prompt.

    Raises:
        ArtefactError: another backbone or other settings were recorded, the folder holds something
            else, or the backbone computes here what it does not compute alone.
    """
    if (run.folder / setup.BASE_FILE).is_file():
        raise ArtefactError(
            f'{run.folder}: holds the backbone of random weights that model.backbone = "scratch" '
            "built; choose another recipe name (name=...)"
        )
    recipe, ranks = context.recipe, context.ranks
    facts = describe_inputs(recipe, context.codec.tokenizer) | {"lineage": [recipe.model.backbone]}
    with open_session(recipe, run, facts, ranks, progress, resume=resume):
        return load_policy(context, run, train=False, packs=packs, run=run)
