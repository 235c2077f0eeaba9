"""``llmrec export``: a finished run as a Hugging Face folder, with catalogue and card."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.files import ADAPTER_FOLDER, MODEL_FOLDER, write_folder
from llmrec_cli.progress import Progress
from llmrec_cli.serving.card import Wanted, base_name, gather_card, render_card
from llmrec_cli.serving.export_check import check_export
from llmrec_cli.serving.export_files import (
    copy_result,
    make_portable,
    plain_bench,
    require_portable,
    write_merged,
    write_ranking,
)
from llmrec_cli.serving.finished import Finished, lay_out, open_finished
from llmrec_cli.serving.hub import check_hub_id
from llmrec_cli.stage.workbench import Workbench

CARD_FILE: Final = "README.md"
_LICENCE: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Exported:
    """A folder that was written."""

    folder: Path
    files: dict[str, int]  # bytes of each
    difference: float  # the largest, of log-probabilities of the run and the folder, nats


def export(
    run: str | Path,
    to: Path,
    wanted: Wanted,
    *,
    overrides: Iterable[str] = (),
    progress: Progress,
) -> Exported:
    """Write a run's model or adapter with tokenizer, catalogue, ``rank.py`` and model card.

    Args:
        to: a new folder, or an empty one; it appears whole or not at all.
        overrides: ``key=value`` over the run's recipe, such as ``eval.decode.temperature=2``.

    Raises:
        ArtefactError: no finished language model, or ``to`` holds something.
        RecipeError: an option that does not fit the run.
        ExportError: what was written does not give the run's scores; nothing is left of it.
        MachineError: the disk refuses.
    """
    _require_free(to)
    finished = open_finished(run, overrides)
    _check(finished, run, wanted)
    bench = lay_out(finished, "cpu")
    progress.say(f"exporting {run}")
    found = 0.0

    def fill(folder: Path) -> None:
        nonlocal found
        _fill(finished, bench, wanted, folder)
        progress.say("comparing it with the run, as transformers opens it")
        found = check_export(finished, plain_bench(bench), folder, merged=wanted.merge)
        progress.say(
            f"log-probabilities differ by at most {found:.1e} nats{_why(finished, wanted)}"
        )

    write_folder(to, fill, hashes=False, replaces=False)
    files = {file.name: file.stat().st_size for file in sorted(to.iterdir())}
    return Exported(to, files, found)


def _why(finished: Finished, wanted: Wanted) -> str:
    """What makes an export differ from its run, besides the order of additions."""
    model = finished.recipe.model
    reasons = []
    if wanted.merge and model.dtype != "float32":
        reasons.append(
            f"merging rounds weights to {model.dtype} (model.dtype=float32 behind the command "
            "writes them unrounded)"
        )
    if model.quantize != "none":
        reasons.append(f"the run's base is quantized to {model.quantize}, here it is not")
    return f": {'; '.join(reasons)}" if reasons else ""


def _fill(finished: Finished, bench: Workbench, wanted: Wanted, folder: Path) -> None:
    recipe = finished.recipe
    if recipe.model.tuning == "full":
        copy_result(finished.folder / MODEL_FOLDER, folder)
    elif wanted.merge:
        write_merged(finished, plain_bench(bench), folder)
    else:
        copy_result(finished.folder / ADAPTER_FOLDER, folder)
    make_portable(folder, base_name(recipe, wanted), recipe.model.revision)
    if recipe.task.ranks_catalogue:
        write_ranking(bench, folder)
    card = render_card(gather_card(finished, bench, wanted))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    require_portable(folder, (recipe.folder, Path(recipe.model.backbone), folder))


def _require_free(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        what = "is not empty" if to.is_dir() else "is a file"
        raise ArtefactError(f"--to {to}: {what}, and nothing is overwritten; expected a new folder")
    if to.exists() and to.samefile(Path.cwd()):
        raise ArtefactError(f"--to {to}: is the folder that you are in; expected a new folder")


def _check(finished: Finished, run: str | Path, wanted: Wanted) -> None:
    if finished.conventional:
        raise ArtefactError(
            f"{run}: a conventional model has no Hugging Face format; its weights are in "
            f"{Path(run) / MODEL_FOLDER}, and llmrec recommend uses it where it is"
        )
    if wanted.merge and finished.recipe.model.tuning == "full":
        raise RecipeError('--merge: the run has no adapter (tuning = "full"); leave it out')
    if wanted.licence and not _LICENCE.fullmatch(wanted.licence):
        raise RecipeError(
            f"--license {wanted.licence}: expected the hub's name of one, such as apache-2.0 or mit"
        )
    if wanted.base_model:
        check_hub_id("--base-model", wanted.base_model)
    for name in wanted.datasets:
        check_hub_id("--dataset", name)
