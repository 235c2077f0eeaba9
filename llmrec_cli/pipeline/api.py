"""The Python face: what the commands do, as functions that return values and print nothing.

    load_recipe -> Recipe -> prepare -> Prepared
                          -> train -> TrainedRun      (a run's folder; Recommender.load opens it)
                          -> evaluate, compare -> Comparison

Each function calls the one that the command of its name calls.  The lines that a command prints on
stderr (what is left out, what is switched off) are in ``notes`` of the returned value.
``load_recipe`` and ``prepare`` do not import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmrec_cli.config import loader
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import RecipeError
from llmrec_cli.runs.run import (
    Run,
    experiment_of,
    explain_unknown_run,
    find_recipe_tables,
    run_at,
)
from llmrec_cli.runs.tracking import MetricsLog
from llmrec_cli.training.launch import count_processes, is_first_rank, is_rank
from llmrec_cli.utils.progress import Advance, Lines, Silent

if TYPE_CHECKING:
    import pandas as pd

    from llmrec_cli.data.prepared import Prepared
    from llmrec_cli.evaluation.comparison import Comparison


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: what ``train`` returns."""

    name: str  # "base", "sft", "align-NAME" or "baseline-NAME"
    folder: Path  # what Recommender.load, compare and llmrec export take
    outcome: Mapping[str, Any]  # steps, best_step, best_score (a loss is negative), ...; or nothing
    cost: Mapping[str, Any]  # seconds, highest memory, device
    notes: tuple[str, ...]  # what was said on the way, one line each

    @property
    def metrics(self) -> pd.DataFrame:
        """The run's log: a row per update, with the figures of a validation where there was one.

        Returns:
            Columns step, epoch, loss, learning_rate, ... of ``metrics.jsonl``; empty where nothing
            is trained.

        Raises:
            MachineError: the file cannot be read.
        """
        import pandas as pd

        return pd.DataFrame(MetricsLog(run_at(self.folder).metrics_file).rows())


def load_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), *, runs: Sequence[str] = ()
) -> Recipe:
    """Read a recipe and check the whole of it.

    A key that another one switches off (``model.lora`` under ``tuning = "full"``) is no mistake; a
    ``UserWarning`` says so.

    Args:
        recipe: path of a TOML file, or the name of a shipped recipe such as "quickstart".
        overrides: "key=value" as on the command line, such as "train.learning_rate=1e-4".
        runs: names of runs that are wanted although the recipe has no table for them, such as
            "align-dmpo" or "baseline-sasrec"; they get the defaults.

    Returns:
        The recipe, read only, with its keys as attributes.

    Raises:
        RecipeError: every problem at once, one line each.
    """
    aligns, baselines = find_recipe_tables(_require_list("runs", runs))
    words, notes = _require_list("overrides", overrides), list[str]()
    found = loader.read_recipe(str(recipe), words, aligns, baselines, say=notes.append)
    for name in runs:
        _find_run(found, name)
    for note in notes:
        warnings.warn(note.removeprefix("note: "), stacklevel=2)
    return found


def prepare(recipe: Recipe, *, progress: bool | Callable[[str], object] = False) -> Prepared:
    """Read raw data, clean it, split it, and write the prepared folder; or reuse it.

    Args:
        recipe: its ``data`` tables and ``seed`` decide every byte of the folder.
        progress: True: lines on stderr; a function: it is called with each line.

    Returns:
        The folder, its manifest, the catalogue and the rows.  ``notes`` has what was left out, and
        what the audit found.

    Raises:
        RecipeError: a file or column that the format needs is not named; no such template.
        DataError: a raw file is wrong, or the folder was prepared from something else.
        ArtefactError: the folder has changed since it was prepared.
        MachineError: the disk refuses, or the engine that is asked for is missing.
    """
    from llmrec_cli.data.audit import judge_all, with_audit
    from llmrec_cli.pipeline.audit_text import short_lines
    from llmrec_cli.pipeline.prepare import prepare_data

    notes = _Notes(progress)
    prepared = prepare_data(recipe, Path, notes.say)
    found = short_lines(judge_all(with_audit(prepared)))
    return replace(prepared, notes=(*notes.lines, *found))


def train(
    recipe: Recipe,
    run: str,
    *,
    resume: bool = False,
    progress: bool | Callable[[str], object] = False,
) -> TrainedRun:
    """Train one run of a recipe, in this process.

    On several GPUs, start the program with ``accelerate launch`` or ``torchrun``; every process
    calls this.  torch's global seed is set on the way; Accelerate's state is as before afterwards.

    Args:
        recipe: its data are prepared, and the run that this one starts from is trained.
        run: "sft", "align-NAME" for ``[align.NAME]``, "baseline-NAME" for ``[baseline.NAME]``, or
            "base": the backbone is recorded as it is, and nothing is trained.
        resume: go on where a run was interrupted; one that is finished is returned as it is.
        progress: True: lines on stderr; a function: it is called with each line.

    Returns:
        The run's folder, how it ended, what it cost, and its log.

    Raises:
        RecipeError: the recipe has no such run, or its options cannot work on these data.
        DataError: too few rows, or the data were prepared from something else.
        ArtefactError: nothing is prepared, the run exists already or was started otherwise, or what
            it stands on does not fit.
        NumbersError: the loss or its gradient is not finite.
        MachineError: no such device, a package is missing, or the disk refuses.
        KeyboardInterrupt: after a checkpoint was written; ``resume=True`` goes on from there.
    """
    found, notes = _find_run(recipe, run), _Notes(progress)
    _note_processes(recipe, notes)

    from llmrec_cli.pipeline.run import train_run  # torch: a wrong name is reported before

    with _isolate():
        train_run(recipe, found, resume=resume, progress=notes)
    manifest = found.read_manifest()
    outcome, cost = manifest.get("outcome", {}), manifest.get("cost", {})
    return TrainedRun(found.name, found.folder, outcome, cost, tuple(notes.lines))


def evaluate(
    recipe: Recipe,
    runs: Sequence[str] | None = None,
    *,
    split: Literal["test", "valid"] = "test",
    existing: Literal["refuse", "again", "keep"] | None = None,
    progress: bool | Callable[[str], object] = False,
) -> Comparison:
    """Rank the whole catalogue for every row of a split, and compare what was evaluated.

    Args:
        recipe: its runs are trained.
        runs: their names; None: every run of the recipe that is finished, the others are left out
            with a note.  "baseline-pop" and "base", the untouched backbone, need no training.
        split: which rows to rank.
        existing: what becomes of a run that was evaluated before: an error, evaluate it again, or
            keep the evaluation.  None: an error where ``runs`` names it, else it is kept.
        progress: True: lines on stderr; a function: it is called with each line.

    Returns:
        Every evaluated run of the recipe, with intervals and paired tests.

    Raises:
        RecipeError: the recipe has no such run.
        DataError: the data were prepared from something else.
        ArtefactError: nothing is prepared, or a run is not finished, was evaluated before, or is
            being evaluated.
        MachineError: no such device, or the disk refuses.
    """
    _require_choice("split", split, ("test", "valid"))
    _require_choice("existing", existing, (None, "refuse", "again", "keep"))
    names = None if runs is None else _require_list("runs", runs)
    for name in names or ():
        _find_run(recipe, name)
    notes = _Notes(progress)
    _note_processes(recipe, notes)

    from llmrec_cli.pipeline.evaluate import evaluate_runs

    again = existing == "again"
    keep = existing == "keep" or (existing is None and names is None)
    with _isolate():
        compared = evaluate_runs(
            recipe, names, split=split, again=again, keep=keep, progress=notes
        ).comparison
    return replace(compared, notes=tuple(dict.fromkeys((*notes.lines, *compared.notes))))


def compare(
    runs: Sequence[str | Path],
    *,
    baseline: str | None = None,
    split: Literal["test", "valid"] = "test",
    seen: Literal["keep", "remove"] | None = None,
    metric: str | None = None,
    external: Mapping[str, str | Path] | None = None,
    missing: Literal["refuse", "miss"] = "refuse",
) -> Comparison:
    """Compare evaluated runs, of one experiment or of several.

    Args:
        runs: folders of experiments or of runs, or recipes.
        baseline: the entry that the others are set against; None: "sft".
        split: evaluations to compare.
        seen: the history among the candidates or not; None: as the runs were evaluated.
        metric: of the contrasts; None: NDCG at the largest cut-off.
        external: lists of other tools by the name of their entry: CSV, parquet or TREC run.
        missing: rows that such a file has no list for: an error, or counted as a miss.

    Returns:
        The entries in order; runs that differ in nothing but their seed are one entry.

    Raises:
        RecipeError: an argument is not what is expected.
        DataError: a file of another tool is wrong.
        ArtefactError: nothing was evaluated, files are damaged, or there is no such baseline.
    """
    from llmrec_cli.pipeline.compare import Asked, compare_runs, parse_external_files

    _require_choice("split", split, ("test", "valid"))
    _require_choice("seen", seen, (None, "keep", "remove"))
    _require_choice("missing", missing, ("refuse", "miss"))
    words = list(map(str, _require_list("runs", runs)))
    files = parse_external_files([f"{name}={path}" for name, path in (external or {}).items()])
    asked = Asked(split, baseline, seen, metric, files, missing)
    return compare_runs(words, asked).comparison


class _Notes:
    """Keep the lines of a stage, and pass them on, with its progress."""

    def __init__(self, progress: bool | Callable[[str], object]) -> None:
        self.lines: list[str] = []
        shown = Lines(write=progress) if callable(progress) else Lines()
        self.shown = shown if progress and is_first_rank() else Silent()

    def say(self, text: str) -> None:
        """Keep one line."""
        self.lines.append(text)
        self.shown.say(text)

    def say_once(self, subject: str, text: str) -> None:
        """Keep one line; these notes are of one stage."""
        self.say(f"{subject}: {text}")

    def track(
        self, label: str, total: int, done: int = 0, unit: str = "it"
    ) -> AbstractContextManager[Advance]:
        """Pass the progress on; it is not kept."""
        return self.shown.track(label, total, done, unit)


@contextmanager
def _isolate() -> Iterator[None]:
    """Keep Accelerate's state apart, and hide what libraries say of their next versions."""
    from llmrec_cli.training.distributed import isolate_accelerate

    with isolate_accelerate(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _note_processes(recipe: Recipe, notes: _Notes) -> None:
    """Note that only this process works: a command would start several, a function cannot."""
    if not is_rank() and (count := count_processes(recipe.launch)) > 1:
        notes.say(
            f"launch.processes = {recipe.launch.processes}: {count} processes are wanted, and this "
            "one works alone; start the program with accelerate launch"
        )


def _find_run(recipe: Recipe, name: str) -> Run:
    run = experiment_of(recipe).find(name)
    if run is None:
        raise RecipeError(f'run "{name}": {explain_unknown_run(recipe, name)}')
    return run


def _require_list(name: str, given: Sequence[Any]) -> Sequence[Any]:
    if isinstance(given, str | Path):
        raise TypeError(f"{name} = {str(given)!r}: expected a list")
    return given


def _require_choice(name: str, given: str | None, known: Sequence[str | None]) -> None:
    if given not in known:
        expected = " or ".join(f'"{choice}"' if choice else "None" for choice in known)
        raise RecipeError(f'{name} = "{given}": expected {expected}')
