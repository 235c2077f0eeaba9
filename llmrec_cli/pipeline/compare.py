"""``llmrec compare``: evaluated runs and external lists under one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmrec_cli.config.evaluation import EvalSection
from llmrec_cli.config.loader import did_you_mean, read_recipe
from llmrec_cli.config.names import RunKind
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.audit import judge_all
from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.evaluation.auc import PAIRED
from llmrec_cli.evaluation.comparison import (
    Comparison,
    ComparisonConfig,
    Entry,
    EvaluatedData,
    build_comparison,
)
from llmrec_cli.evaluation.entries import (
    LoadedRun,
    PreparedFolders,
    build_entries,
    load_run,
    require_evaluated,
)
from llmrec_cli.evaluation.external_lists import Missing, load_external_entry
from llmrec_cli.evaluation.metrics import Seen
from llmrec_cli.pipeline.audit_text import short_lines
from llmrec_cli.runs.record import describe_command, describe_state
from llmrec_cli.runs.run import Experiment, Run, experiment_at, run_at, suggest_folder
from llmrec_cli.tasks import find_reported_task


@dataclass(frozen=True)
class Asked:
    """What a comparison shows; None: as the runs were evaluated, against SFT."""

    split: str = "test"
    baseline: str | None = None
    seen: Seen | None = None
    metric: str | None = None
    external: Mapping[str, Path] | None = None  # name -> file of another tool
    missing: Missing = "refuse"  # rows without a list: refuse, or count a miss


@dataclass(frozen=True)
class Compared:
    """A comparison, and the entries that it was made from, in the same order."""

    comparison: Comparison
    entries: tuple[Entry, ...]

    def with_notes(self, notes: Sequence[str]) -> Compared:
        """The same, with more for a reader to know before the other notes."""
        told = (*notes, *self.comparison.notes)
        return replace(self, comparison=replace(self.comparison, notes=told))


def compare_runs(words: Sequence[str], asked: Asked) -> Compared:
    """Compare runs.

    Args:
        words: recipes, experiments' folders, runs' folders; and ``key=value`` for the recipes.

    Raises:
        RecipeError, ArtefactError, DataError: a word is none of these, nothing was evaluated, or
            files are damaged or do not fit.
    """
    notes = list[str]()
    experiments, runs = _find_runs(words, asked.split, notes)
    folders = PreparedFolders(asked.split)
    loaded = [load_run(run, folders) for run in runs]
    return _compare_loaded(experiments, loaded, folders, asked, notes)


def compare_experiment(
    recipe: Recipe, split: str, leaves: CatalogueEntries | None = None
) -> Compared:
    """All evaluated runs of a recipe, at the end of ``eval`` and ``run``.

    What cannot be compared (any more) is left out with a note: the evaluation itself is done.

    Args:
        leaves: the catalogue's entries by the runs' tokenizer, where it is at hand.

    Raises:
        ArtefactError: nothing was evaluated yet.
    """
    notes, loaded = list[str](), list[LoadedRun]()
    folders = PreparedFolders(split, {recipe.prepared_for_eval: leaves} if leaves else {})
    for run in _find_evaluated(recipe.folder, split, notes):
        try:
            loaded.append(load_run(run, folders))
        except ArtefactError as error:  # of a run that was not asked for, perhaps an old one
            reason = str(error).replace(f"{recipe.folder}/", "")
            notes.append(f"left out: {reason}")
    return _compare_loaded([recipe.folder], loaded, folders, Asked(split), notes)


def parse_external_files(words: Sequence[str]) -> dict[str, Path]:
    """``NAME=FILE`` of ``--external``.

    Raises:
        RecipeError: not of that form, a name twice, or no such file.
    """
    files: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not name or not equals or not path:
            raise RecipeError(f"--external {word}: expected NAME=FILE, e.g. recbole=lists.csv")
        if name in files:
            raise RecipeError(f"--external {word}: the name {name} is there twice")
        if not Path(path).is_file():
            raise RecipeError(f"--external {word}: no such file {path}")
        files[name] = Path(path)
    return files


def _find_runs(words: Sequence[str], split: str, notes: list[str]) -> tuple[list[Path], list[Run]]:
    """Experiments and evaluated runs that the words name, each once."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    named = [word for word in words if word not in overrides]
    if overrides and all(Path(word).is_dir() for word in named):
        raise RecipeError(f"{overrides[0]}: overrides a recipe's key, and no recipe is named")
    experiments, runs = list[Path](), list[Run]()
    for word in named:
        folder = Path(word) if Path(word).is_dir() else _find_experiment(word, overrides)
        if (run := run_at(folder)).exists:
            require_evaluated(run, split)
            experiments.append(folder.parent)
            runs.append(run)
        else:
            experiments.append(folder)
            runs += _find_evaluated(folder, split, notes)
    return experiments, list({run.folder.resolve(): run for run in runs}.values())


def _find_experiment(word: str, overrides: Sequence[str]) -> Path:
    """The folder of a recipe's experiment.  If there is no such recipe, a folder was meant."""
    try:
        return read_recipe(word, overrides).folder
    except RecipeError:
        hint = "" if Path(word).is_file() else suggest_folder(Path(word))
        if not hint:
            raise
        raise ArtefactError(f"{word}: no such folder or recipe.{hint}") from None


def _find_evaluated(folder: Path, split: str, notes: list[str]) -> list[Run]:
    """The evaluated runs of an experiment; a note for everything else in its folder."""
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: nothing there yet; run first: llmrec run RECIPE")
    experiment = experiment_at(folder)
    if not experiment.runs and not experiment.prepared_folders[0].is_dir():
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        shown = f"; it holds {', '.join(inside[:5])}" if inside else ""
        raise ArtefactError(f"{folder}: neither a run nor an experiment{shown}")
    waiting = [run for run in experiment.runs if not run.is_evaluated(split)]
    if waiting:
        told = ", ".join(map(_describe_waiting, waiting))
        notes.append(f"{folder.name}: not evaluated on {split} yet: {told}")
    return [run for run in experiment.runs if run not in waiting]


def _describe_waiting(run: Run) -> str:
    """A run without a report; where it is not finished, what to type."""
    if run.is_done or run.is_made_by_eval:
        return run.name
    return f"{run}, which {describe_state(run)} ({describe_command(run)})"


def _compare_loaded(
    experiments: Sequence[Path],
    loaded: Sequence[LoadedRun],
    folders: PreparedFolders,
    asked: Asked,
    notes: list[str],
) -> Compared:
    entries = build_entries(loaded, notes)
    external = asked.external or {}
    if not entries and not external:
        raise ArtefactError(
            f"{experiments[0]}: no run was evaluated on {asked.split} yet; run llmrec eval"
        )
    measure = _choose_measure(entries, asked.baseline)
    evaluated_data = (
        measure.evaluated_data if measure else folders.load_data(_find_prepared(experiments[0]))
    )
    question = _ask_question(entries, measure, asked)
    for name, path in external.items():
        if name in {own.name for own in entries}:
            raise RecipeError(f"--external {name}={path}: an entry has that name; choose another")
        entry, lines = load_external_entry(
            name, path, evaluated_data, question, asked.missing, measure
        )
        notes += lines
        entries.append(entry)
    notes += _summarise_audits(
        {entry.evaluated_data.folder: entry.evaluated_data for entry in entries}.values()
    )
    return Compared(build_comparison(entries, question, notes), tuple(entries))


def _summarise_audits(prepared_folders: Iterable[EvaluatedData]) -> Iterator[str]:
    """What a reader has to know about the data, a few words for each prepared folder."""
    for evaluated_data in prepared_folders:
        found = [
            line.removeprefix("note: ") for line in short_lines(judge_all(evaluated_data.manifest))
        ]
        if found:
            name = evaluated_data.folder.resolve().parent.name
            yield f"audit of {name}: {'; '.join(found)} (llmrec audit says more)"


def _choose_measure(entries: Sequence[Entry], baseline: str | None) -> Entry | None:
    """The entry whose evaluation sets the question: the baseline, else SFT, else the first one."""
    wanted = [entry for entry in entries if entry.name == baseline]
    wanted += [entry for entry in entries if entry.evaluations[0].run == RunKind.SFT]
    return next(iter([*wanted, *entries]), None)


def _find_prepared(folder: Path) -> Path:
    beside = reversed(Experiment(folder, ()).prepared_folders)
    return next((prepared for prepared in beside if prepared.is_dir()), folder)


def _ask_question(
    entries: Sequence[Entry], measure: Entry | None, asked: Asked
) -> ComparisonConfig:
    report = measure.evaluations[0].report if measure else {}
    drawn = report.get("bootstrap", {"resamples": EvalSection().resamples, "seed": 0})
    sft = measure.name if measure and measure.evaluations[0].run == RunKind.SFT else None
    protocol = report.get("protocol", {})
    task = find_reported_task(protocol)
    headline = asked.seen or protocol.get("seen", EvalSection().seen)
    question = ComparisonConfig(
        split=asked.split,
        policies=task.policies,
        headline=headline if headline in task.policies else task.policies[0],
        cutoffs=_find_cutoffs(entries) if entries else EvalSection().cutoffs,
        compared="",
        baseline=asked.baseline or sft,
        resamples=drawn["resamples"],
        seed=drawn["seed"],
    )
    if asked.seen and asked.seen not in task.policies:
        raise RecipeError(f'--seen {asked.seen}: task "{task.name}" knows no seen items')
    default = f"ndcg@{max(question.cutoffs)}" if question.cutoffs else PAIRED
    _require_known("--metric", asked.metric, question.averaged_names)
    known = [*(entry.name for entry in entries), *(asked.external or {})]
    _require_known("--baseline", asked.baseline, known)
    return replace(question, compared=asked.metric or default)


def _find_cutoffs(entries: Sequence[Entry]) -> tuple[int, ...]:
    """The cut-offs that all entries were evaluated at; none for the rank-pair task.

    Raises:
        ArtefactError: two tasks, or nothing in common.
    """
    first, *others = entries
    for entry in others:
        tasks = [one.traits["task"].words for one in (first, entry)]
        if tasks[0] != tasks[1]:
            raise ArtefactError(
                f"{first.name} and {entry.name} have no figure in common: task {tasks[0]} and "
                f"{tasks[1]}"
            )
    protocols = [run.report["protocol"] for entry in entries for run in entry.evaluations]
    found = [set(protocol.get("cutoffs", ())) for protocol in protocols]
    common = tuple(sorted(set.intersection(*found)))
    if not common and any(found):
        each = ", ".join(sorted({str(sorted(cutoffs)) for cutoffs in found}))
        raise ArtefactError(f"no cut-off in common: {each}; evaluate again with one eval.cutoffs")
    return common


def _require_known(flag: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        hint = did_you_mean(value, known)
        raise ArtefactError(f"{flag} {value}: unknown, expected one of {', '.join(known)}.{hint}")
