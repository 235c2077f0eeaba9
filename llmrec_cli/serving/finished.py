"""Loading of a finished run from its folder, even if the experiment was moved.

Everything is looked up beside the run: its experiment may have been moved, and the working folder
is another one.  Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from llmrec_cli.config.data import PromptSection
from llmrec_cli.config.evaluation import DecodeSection
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.index import INDEX_HASH, load_catalogue, require_index, select_earlier
from llmrec_cli.errors import ArtefactError, MachineError, RecipeError
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.loading import list_baseline_inputs
from llmrec_cli.pipeline.provenance import describe_inputs, require_same_inputs
from llmrec_cli.pipeline.setup import base_source
from llmrec_cli.runs.record import PREPARED, describe_command, require_done, require_same_facts
from llmrec_cli.runs.run import Run, run_at, suggest_folder
from llmrec_cli.training.distributed import make_single_rank
from llmrec_cli.utils.files import RECIPE_FILE, check_folder
from llmrec_cli.utils.toml import parse

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end."""

    run: Run
    experiment: str  # what the recipe was called when it ran
    recipe: Recipe  # as the run has it; its folders are where they lie now
    manifest: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def conventional(self) -> bool:
        """Whether it is one of ``[baseline.NAME]``, and no language model."""
        return not self.run.is_language_model


def open_finished(folder: str | Path, overrides: Iterable[str] = ()) -> FinishedRun:
    """The run in a folder, with the recipe that lies there.

    Args:
        overrides: ``key=value`` over that recipe, such as ``eval.decode.search=beam``.

    Raises:
        ArtefactError: no run, not a finished one, or a damaged one.
        RecipeError: an override is wrong.
    """
    home = Path(folder).resolve()
    run = run_at(home)
    file = run.recipe_file
    if not file.is_file() or not run.manifest_file.is_file():
        raise ArtefactError(f"{folder}: {_describe_folder(home)}")
    manifest = run.read_manifest("settings", "facts")
    name = manifest.get("run")
    if name != run.name:
        raise ArtefactError(
            f"{folder}: holds the run {name}, and its files name it so: expected a folder {name} "
            "in its experiment's folder"
        )
    recipe = read_recipe(str(file), overrides, whole=True)
    root = _find_working_folder(home.parent.parent, Path(recipe.out))
    recorded = parse(file.read_text(encoding="utf-8"))
    found = recipe.model_copy(
        update={
            "out": str(home.parent.parent),
            "name": home.parent.name,
            "prompt": _relocate_prompt(recipe.prompt, recorded.get("prompt", {}), root),
            "model": recipe.model.model_copy(update={"gradient_checkpointing": False}),
        }
    )
    _require_guide(recipe, run, recorded, folder)
    for part in dict.fromkeys((run, *run.parts)):
        require_done(found, part)
    return FinishedRun(run, recipe.name, found, manifest)


def _require_guide(recipe: Recipe, run: Run, recorded: dict[str, Any], folder: str | Path) -> None:
    """Refuse overrides that ask a run for another guide than it has.

    Raises:
        RecipeError: the guide is overridden, or what chose its weight; or a run has none.
    """
    before = DecodeSection().model_dump(mode="json") | recorded.get("eval", {}).get("decode", {})
    now = recipe.eval.decode
    if run.is_guided and now.guide != str(run.guide):
        raise RecipeError(
            f'eval.decode.guide = "{now.guide}": {folder} is guided by {run.guide}; expected --run '
            "with the folder of another run, such as sft+baseline-itemknn"
        )
    if list(now.weights) != before["weights"]:
        raise RecipeError(
            "eval.decode.weights: nothing is chosen here; expected eval.decode.weight, a number"
        )
    if not run.is_guided and (now.guide, now.weight) != (before["guide"], before["weight"]):
        raise RecipeError(
            f"eval.decode: {folder} is a run without a guide; the same model with one is a run of "
            "its own, such as sft+baseline-itemknn, which llmrec eval makes"
        )


def open_finished_context(
    finished: FinishedRun, device: Device = "auto", *, earlier: bool = False
) -> setup.CatalogueContext:
    """The run's data and catalogue, as ``llmrec eval`` ranks it, for this process alone.

    Args:
        earlier: a catalogue that has got further items since (``tokenize --append``) serves too,
            with the items that the run knows.

    Raises:
        ArtefactError: what lies beside the run is not what it was trained on.
        MachineError: a GPU was asked for and there is none.
    """
    recipe = finished.recipe
    if finished.run.is_guided:
        model = finished.run.parts[0]
        known = model.read_manifest("settings", "facts")
        own = replace(finished, run=model, manifest=known)
        return open_finished_context(own, device, earlier=earlier)
    if recipe.model.backbone == "scratch":
        check_folder(Path(base_source(recipe)))
    prepared, known = load_catalogue(recipe.prepared_folder), finished.manifest["facts"]
    require_index(recipe, prepared)
    if earlier and finished.run.is_language_model:
        prepared = select_earlier(prepared, known.get(INDEX_HASH)) or prepared
    ranks = make_single_rank(_choose_device(device))
    context = setup.build_context(recipe, prepared, ranks, evaluation=not finished.conventional)
    if finished.conventional:  # it knows no prompts
        require_same_facts(finished.run, list_baseline_inputs(context, finished.run.table))
        return context
    whole_model = recipe.model.tuning == "full" and not finished.run.is_untouched
    now = describe_inputs(recipe, context.codec.tokenizer, weights=not whole_model)
    if prepared.place_I is not None:  # the IDs of its items are those that it was trained on
        now |= {INDEX_HASH: known[INDEX_HASH], PREPARED: known[PREPARED]}
    require_same_inputs(finished.run, now, whole_model=whole_model)
    return context


def _describe_folder(home: Path) -> str:
    if not home.is_dir():
        if run_at(home).is_untouched and home.parent.is_dir():
            return f"no such run yet; run first: {describe_command(run_at(home))}"
        hint = suggest_folder(home)
        return f"no such folder; expected a run's folder, such as runs/quickstart/sft.{hint}"
    runs = sorted(file.parent.name for file in home.glob(f"*/{RECIPE_FILE}"))
    if runs:
        return f"is an experiment's folder; expected one of its runs: {', '.join(runs)}"
    return "is no run's folder (no recipe.toml and manifest.json), such as runs/quickstart/sft"


def _find_working_folder(above: Path, out: Path) -> Path:
    """The folder that paths of a recipe are relative to: ``above`` without what ``out`` adds."""
    parts = out.parts
    inside = not out.is_absolute() and above.parts[-len(parts) :] == parts
    return above.parents[len(parts) - 1] if inside and parts else above


def _relocate_prompt(prompt: PromptSection, recorded: dict[str, Any], root: Path) -> PromptSection:
    """The same prompts, a template of the user's own looked up where the run was made."""
    template = str(recorded.get("template", prompt.template))
    if template.endswith(".toml") and (root / template).is_file():
        return prompt.model_copy(update={"template": str(root / template)})
    return prompt


def _choose_device(device: Device) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError('device "cuda": no CUDA device is visible; expected "auto" or "cpu"')
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")
