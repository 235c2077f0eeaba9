"""Experiments and runs as values: kinds, names, folders, files and states.

    recipe --experiment_of--> Experiment --> Run: kind, table, folder, parent, files
    folder --experiment_at--> Experiment     (what lies there, in the order of its newest recipe)

A run is called like its folder: ``base``, ``sft``, ``align-NAME`` or ``baseline-NAME``; a language
model that another run guides is a run of its own, such as ``sft+baseline-NAME``.  These names are
joined in ``config.names`` and here, and cut here alone; the names of the files stand in ``files``.
Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llmrec_cli.config.evaluation import GUIDE_KEYS
from llmrec_cli.config.loader import did_you_mean
from llmrec_cli.config.names import RunKind, explain_no_base, name_run
from llmrec_cli.config.recipe import PREPARED_FOLDERS, Recipe
from llmrec_cli.config.training import UNTRAINED, AlignSection, BaselineSection, StageSection
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.utils.files import (
    ADAPTER_FOLDER,
    MANIFEST_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PAIRS_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    read_json,
)
from llmrec_cli.utils.locks import is_held, lock_path
from llmrec_cli.utils.text import redact_values
from llmrec_cli.utils.toml import parse

Settings = dict[str, Any]
"""What of a recipe a run depends on, as plain values."""

_GUIDED_BY: Final = "+"  # joins the names of a guided run's parts
POP: Final = "pop"  # the table of the model that ``eval`` fits on the way


@dataclass(frozen=True)
class _Kind:
    """What is true of every run of a kind."""

    command: tuple[str, ...]  # the words that make it; its table follows where it has one
    tabled: bool  # whether several tables of a recipe can be of this kind
    section: Callable[[Recipe, str], StageSection | AlignSection | BaselineSection]
    settings: Callable[[Mapping[str, Any], str], Settings]  # of a recipe's every value


@dataclass(frozen=True)
class Run:
    """One run: a folder that one command of the recipe fills.

    Attributes:
        table: NAME of ``[align.NAME]`` or ``[baseline.NAME]``; empty for ``[sft]`` and the base;
            of a guided run its name.
        parent: the run whose result it starts from, of a guided run its language model; None: it
            starts from the backbone, or trains no language model, or is known by its folder alone.
        guide: of a guided run the one whose scores join its language model's.
    """

    kind: RunKind
    table: str
    folder: Path
    parent: Run | None = None
    guide: Run | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def heading(self) -> str:
        """The recipe's table as errors name it: ``[align.msl]``."""
        return f"[{self.key}]"

    @property
    def key(self) -> str:
        """The recipe's table as an override names it: ``align.msl``."""
        if self.is_guided:
            return "eval.decode"
        return f"{self.kind}.{self.table}" if self.table else f"{self.kind}"

    @property
    def command(self) -> list[str]:
        """The words that make it: ``align --method msl``."""
        return [*_KINDS[self.kind].command, *([self.table] if self.table else [])]

    @property
    def is_language_model(self) -> bool:
        """Whether it is no conventional model."""
        return self.kind is not RunKind.BASELINE

    @property
    def is_pop(self) -> bool:
        """Whether it is the popularity baseline, which costs nothing to fit."""
        return self.kind is RunKind.BASELINE and self.table == POP

    @property
    def is_untouched(self) -> bool:
        """Whether it is the pretrained backbone as it is: zero-shot."""
        return self.kind is RunKind.BASE

    @property
    def is_guided(self) -> bool:
        """Whether it is another run's language model with a guide."""
        return self.kind is RunKind.GUIDED

    @property
    def holds_weights(self) -> bool:
        """Whether it is a language model that was trained, and its folder holds the weights."""
        return self.kind in (RunKind.SFT, RunKind.ALIGN)

    @property
    def parts(self) -> list[Run]:
        """Of a guided run its language model and its guide; of another one itself."""
        return [part for part in (self.parent, self.guide) if part] if self.is_guided else [self]

    @property
    def is_made_by_eval(self) -> bool:
        """Whether ``eval`` makes it on the way, because nothing is trained."""
        return self.is_untouched or self.is_pop or self.is_guided

    @property
    def lineage(self) -> list[Run]:
        """The runs that it starts from, the first one first, and itself."""
        return [*(self.parent.lineage if self.parent else []), self]

    def within(self, experiment: Path) -> Run:
        """The same run in another experiment's folder."""
        parent = self.parent.within(experiment) if self.parent else None
        guide = self.guide.within(experiment) if self.guide else None
        return replace(self, folder=experiment / self.name, parent=parent, guide=guide)

    @property
    def recipe_file(self) -> Path:
        """The recipe that it was started with."""
        return self.folder / RECIPE_FILE

    @property
    def manifest_file(self) -> Path:
        """What it was made from and with, and how it ended."""
        return self.folder / MANIFEST_FILE

    @property
    def metrics_file(self) -> Path:
        """A line per update."""
        return self.folder / METRICS_FILE

    def report_file(self, split: str) -> Path:
        """The figures of an evaluation."""
        return self.folder / name_for_split(REPORT_FILE, split)

    def predictions_file(self, split: str) -> Path:
        """The lists of an evaluation."""
        return self.folder / name_for_split(PREDICTIONS_FILE, split)

    def pairs_file(self, split: str) -> Path:
        """The scored pairs of an evaluation."""
        return self.folder / name_for_split(PAIRS_FILE, split)

    def result_folder(self, recipe: Recipe) -> Path:
        """The trained weights."""
        whole = recipe.model.tuning == "full" or not self.is_language_model
        return self.folder / (MODEL_FOLDER if whole else ADAPTER_FOLDER)

    def section(self, recipe: Recipe) -> StageSection | AlignSection | BaselineSection:
        """Its table of a recipe.

        Raises:
            RecipeError: it is the untouched backbone, which has none.
        """
        return _KINDS[self.kind].section(recipe, self.table)

    def settings(self, recipe: Recipe) -> Settings:
        """The part of a recipe that it depends on, without secrets."""
        return _KINDS[self.kind].settings(redact_values(recipe.every_value()), self.table)

    def evaluation_settings(self, recipe: Recipe) -> Settings:
        """The part of a recipe that its lists and figures depend on besides, without secrets."""
        asked = dict(redact_values(recipe.every_value())["eval"])
        del asked["batch"]  # the figures are the same
        if not self.is_language_model:
            del asked["decode"]
        elif not self.is_guided:
            asked["decode"] = _drop_guide(asked["decode"])
        return {"eval": asked}

    def find_defaults(self, recipe: Recipe, settings: Settings) -> Settings:
        """The defaults of the keys of its ``settings``, training's or evaluation's, by dotted key.

        Keys without one are left out.
        """
        found = {
            key: recipe.find_default(re.sub(r"^stage(?=\.)", self.key, key))
            for key in flatten_table(settings)
        }
        return {key: default for key, default in found.items() if default is not None}

    def read_manifest(self, *needed: str) -> dict[str, Any]:
        """Its manifest (``read_run_manifest``)."""
        return read_run_manifest(self.manifest_file, needed)

    @property
    def exists(self) -> bool:
        """Whether its folder is a run's: it has a manifest, and a recipe or a report."""
        described = self.recipe_file.is_file() or any(self.folder.glob(_ANY_REPORT))
        return self.manifest_file.is_file() and described

    @property
    def is_done(self) -> bool:
        """Whether it came to its end."""
        return self.manifest_file.is_file() and self.read_manifest().get("status") == "done"

    @property
    def is_locked(self) -> bool:
        """Whether a living process works in its folder."""
        return is_held(lock_path(self.folder))

    def is_evaluated(self, split: str) -> bool:
        """Whether it has a report on a split."""
        return self.report_file(split).is_file()


@dataclass(frozen=True)
class Experiment:
    """A folder of prepared data and runs.

    Attributes:
        runs: in order: the untouched backbone, conventional models, SFT, alignments, guided runs;
            parents before what starts from them.
    """

    folder: Path
    runs: tuple[Run, ...]

    @property
    def prepared_folders(self) -> tuple[Path, ...]:
        """Where its prepared data lie: those of training, and those of another ``[eval.data]``."""
        return tuple(self.folder / name for name in PREPARED_FOLDERS)

    @property
    def names(self) -> list[str]:
        """The runs' names, in order."""
        return [run.name for run in self.runs]

    def find(self, name: str) -> Run | None:
        """The run of a name; None: there is none."""
        return next((run for run in self.runs if run.name == name), None)


def experiment_of(recipe: Recipe) -> Experiment:
    """The experiment that a recipe describes, whether or not anything of it was made."""
    baselines = (baseline_run(recipe, table) for table in recipe.baseline)
    aligns = (align_run(recipe, table) for table in recipe.in_order())
    bases = () if explain_no_base(recipe) else (base_run(recipe),)
    runs = (*bases, *baselines, sft_run(recipe), *aligns)
    return Experiment(recipe.folder, (*runs, *_guide_runs(recipe, runs)))


def _guide_runs(recipe: Recipe, runs: Sequence[Run]) -> list[Run]:
    """Every language model among ``runs`` with the guide of ``[eval.decode]``, if there is one."""
    name = recipe.eval.decode.guide
    if name is None or not recipe.task.ranks_catalogue:
        return []
    guide = next(run for run in runs if run.name == name)  # the recipe was read with one
    return [_join_runs(run, guide) for run in runs if run.is_language_model and run != guide]


def _join_runs(model: Run, guide: Run) -> Run:
    """The run of a language model with a guide."""
    name = f"{model}{_GUIDED_BY}{guide}"
    return Run(RunKind.GUIDED, name, model.folder.with_name(name), model, guide)


def base_run(recipe: Recipe) -> Run:
    """The run of the untouched backbone, where a recipe has one (``explain_no_base``)."""
    return _make_run(recipe, RunKind.BASE)


def explain_unknown_run(recipe: Recipe, name: str) -> str:
    """What to say behind a name that no run of a recipe has."""
    known = experiment_of(recipe).names
    expected = f"expected one of {', '.join(known)}"
    if (parts := _split_guided(name)) is not None:
        expected = f"set eval.decode.guide={parts[1]}; {expected}"
    if name == name_run(RunKind.BASE) and (reason := explain_no_base(recipe)):
        return f"{reason}: there is no zero-shot ranking; {expected}"
    return f"unknown, {expected}.{did_you_mean(name, known)}"


def sft_run(recipe: Recipe) -> Run:
    """The run of ``[sft]``."""
    return _make_run(recipe, RunKind.SFT)


def baseline_run(recipe: Recipe, table: str) -> Run:
    """The run of ``[baseline.TABLE]``."""
    return _make_run(recipe, RunKind.BASELINE, table)


def align_run(recipe: Recipe, table: str) -> Run:
    """The run of ``[align.TABLE]``, with its parents.

    Raises:
        RecipeError: the recipe has no such table.
    """
    if table not in recipe.align:
        known = ", ".join(recipe.align) or "none"
        raise RecipeError(
            f"[align.{table}]: not in the recipe (it has {known}); add the table to run it"
        )
    start = recipe.align[table].parent
    parent = _STARTS[start](recipe) if start in _STARTS else align_run(recipe, start)
    return _make_run(recipe, RunKind.ALIGN, table, parent)


def _make_run(recipe: Recipe, kind: RunKind, table: str = "", parent: Run | None = None) -> Run:
    return Run(kind, table, recipe.folder / name_run(kind, table), parent)


def _parse_name(name: str) -> tuple[RunKind, str]:
    """Kind and table behind a run's name; whatever is called otherwise counts as SFT."""
    if _split_guided(name) is not None:
        return RunKind.GUIDED, name
    kind, _, table = name.partition("-")
    if kind in _TABLED:
        return RunKind(kind), table
    return (RunKind.BASE if name == name_run(RunKind.BASE) else RunKind.SFT), ""


def _split_guided(name: str) -> tuple[str, str] | None:
    """The names of a guided run's language model and of its guide; None: it is no guided run."""
    model, plus, guide = name.rpartition(_GUIDED_BY)
    kind, _, table = guide.partition("-")
    named = kind in _TABLED if table else kind in (RunKind.SFT, RunKind.BASE)
    return (model, guide) if plus and model and named else None


def find_recipe_tables(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The alignments and the conventional models that typed run names ask for."""
    single = [part for name in names for part in _split_guided(name) or (name,)]
    found = [_parse_name(name) for name in single]
    aligns, baselines = (
        [table for kind, table in found if kind is wanted]
        for wanted in (RunKind.ALIGN, RunKind.BASELINE)
    )
    return aligns, baselines


def find_run_of_key(key: str) -> str | None:
    """The name of the run that a recipe's dotted key belongs to; None: it belongs to all."""
    kind, *rest = key.split(".")
    if kind == RunKind.SFT:
        return name_run(RunKind.SFT)
    return name_run(RunKind(kind), rest[0]) if kind in _TABLED and rest else None


def run_at(folder: Path) -> Run:
    """The run of a folder, whatever lies there; its name tells its kind."""
    if (parts := _split_guided(folder.name)) is not None:
        return _join_runs(*(run_at(folder.with_name(part)) for part in parts))
    kind, table = _parse_name(folder.name)
    has_table = kind.value in _TABLED
    return Run(kind, table, folder) if table or not has_table else Run(RunKind.SFT, "", folder)


def experiment_at(folder: Path) -> Experiment:
    """The experiment of a folder: the runs that lie there, as their recipe orders them.

    Raises:
        ArtefactError: the recipe of its newest run cannot be read.
    """
    runs = list_runs(folder)
    order = _order_runs(runs)
    return Experiment(folder, tuple(sorted(runs, key=lambda run: order.get(run.name, len(order)))))


def list_runs(folder: Path) -> list[Run]:
    """The runs that lie in an experiment's folder, by name."""
    found = (run_at(path) for path in sorted(folder.iterdir()) if path.is_dir())
    return [run for run in found if run.exists]


def _order_runs(runs: Iterable[Run]) -> dict[str, int]:
    """Place of each run that a recipe of these runs describes; the newest knows most."""
    recipes = [run.recipe_file for run in runs if run.recipe_file.is_file()]
    if not recipes:
        return {}
    newest = max(recipes, key=lambda path: path.stat().st_mtime_ns)
    try:
        tables = parse(newest.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtefactError(f"{newest}: not a readable recipe: {error}") from None
    names = [name_run(RunKind.BASE)]
    names += [name_run(RunKind.BASELINE, table) for table in tables.get("baseline", {})]
    names.append(name_run(RunKind.SFT))
    names += [name_run(RunKind.ALIGN, table) for table in tables.get("align", {})]
    return {name: place for place, name in enumerate(names)}


def name_for_split(name: str, split: str) -> str:
    """``report.json`` for the test split, ``report-valid.json`` for validation."""
    stem, dot, ending = name.partition(".")
    return name if split == "test" else f"{stem}-{split}{dot}{ending}"


def suggest_folder(folder: Path) -> str:
    """The folder called most like a missing one, as a sentence to append; empty if none is near."""
    return did_you_mean(folder.name, [p.name for p in folder.parent.glob("[!.]*") if p.is_dir()])


def read_run_manifest(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """``manifest.json`` of a run: files of other people may hold anything.

    Less may stand in it, of an older run, but not something else.

    Args:
        needed: tables that must be there; settings have a stage.

    Raises:
        ArtefactError: missing, damaged, or not the manifest of a run.
    """
    found = read_json(path)
    if isinstance(found, dict) and found.keys() >= set(needed):
        stage = _as_table(found.get("settings", {})).get("stage", {})
        tables = [*(found.get(key, {}) for key in _MANIFEST_TABLES), stage]
        tables.append(_as_table(stage).get("train", {}))
        complete = "settings" not in needed or "stage" in found["settings"]
        if complete and all(isinstance(table, dict) for table in tables):
            return found
    raise ArtefactError(f"{path}: not the manifest of a run")


def _as_table(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def flatten_table(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested tables, by dotted key."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten_table(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def _settings_of_stage(plain: Mapping[str, Any], stage: Mapping[str, Any]) -> Settings:
    """Of a language model."""
    shared = {key: plain[key] for key in ("seed", "data", "prompt", "model")}
    if "tokens" in plain:
        shared["tokens"] = {k: v for k, v in plain["tokens"].items() if k != "batch"}
    return {**shared, "stage": stage, "eval": chosen_by(plain)}


def chosen_by(plain: Mapping[str, Any]) -> Settings:
    """What of ``[eval]`` chooses among checkpoints; validation while training knows no guide."""
    asked = plain["eval"]
    return {"cutoffs": asked["cutoffs"], "decode": _drop_guide(asked["decode"])}


def _drop_guide(decode: Mapping[str, Any]) -> Settings:
    return {key: value for key, value in decode.items() if key not in GUIDE_KEYS}


def _settings_of_guided(plain: Mapping[str, Any]) -> Settings:
    """A guided run trains nothing; what it depends on besides its parts chooses its weight."""
    asked = {key: plain["eval"][key] for key in ("cutoffs", "seen", "decode")}
    rows = {"validate_rows": plain["train"]["validate_rows"]}
    return {"seed": plain["seed"], "data": plain["data"], "stage": {}, "eval": asked, "train": rows}


def _settings_of_base(plain: Mapping[str, Any]) -> Settings:
    """The untouched backbone knows no seed and no adapter; its stage trains nothing."""
    model = {key: plain["model"][key] for key in _BACKBONE_KEYS if key in plain["model"]}
    return {"data": plain["data"], "prompt": plain["prompt"], "model": model, "stage": {}}


def _refuse_section(recipe: Recipe, table: str) -> StageSection:
    raise RecipeError(
        f"{name_run(RunKind.BASE)}: is {recipe.model.backbone} as it is; it has no table, and "
        "nothing of it is trained"
    )


def _refuse_guided() -> StageSection:
    raise RecipeError("a guided run has no table of its own, and nothing of it is trained")


def _settings_of_baseline(plain: Mapping[str, Any], table: str) -> Settings:
    """A conventional model knows no prompt and no decoder; one without training, nothing but data.

    (What it knows of the language model is the catalogue's entries, a fact of the run.)
    """
    stage = dict(plain["baseline"][table])
    if stage["model"] in UNTRAINED:
        del stage["train"]
        return {"data": plain["data"], "stage": stage}
    cutoffs = {"cutoffs": plain["eval"]["cutoffs"]}
    return {"seed": plain["seed"], "data": plain["data"], "stage": stage, "eval": cutoffs}


_KINDS: Final = {
    RunKind.BASE: _Kind(
        command=("eval", "--run", RunKind.BASE.value),
        tabled=False,
        section=_refuse_section,
        settings=lambda plain, _: _settings_of_base(plain),
    ),
    RunKind.GUIDED: _Kind(
        command=("eval", "--run"),
        tabled=False,
        section=lambda recipe, _: _refuse_guided(),
        settings=lambda plain, _: _settings_of_guided(plain),
    ),
    RunKind.SFT: _Kind(
        command=("sft",),
        tabled=False,
        section=lambda recipe, _: recipe.sft,
        settings=lambda plain, _: _settings_of_stage(plain, plain["sft"]),
    ),
    RunKind.ALIGN: _Kind(
        command=("align", "--method"),
        tabled=True,
        section=lambda recipe, table: recipe.align[table],
        settings=lambda plain, table: _settings_of_stage(plain, plain["align"][table]),
    ),
    RunKind.BASELINE: _Kind(
        command=("baseline", "--model"),
        tabled=True,
        section=lambda recipe, table: recipe.baseline[table],
        settings=_settings_of_baseline,
    ),
}
_TABLED: Final = frozenset(kind.value for kind, facts in _KINDS.items() if facts.tabled)
_STARTS: Final[Mapping[str, Callable[[Recipe], Run | None]]] = {  # no names of alignments
    "sft": sft_run,
    "base": lambda _: None,
}
_BACKBONE_KEYS: Final = (
    "backbone",
    "revision",
    "weights",
    "tuning",
    "quantize",
    "dtype",
    "attention",
)
_ANY_REPORT: Final = f"{Path(REPORT_FILE).stem}*{Path(REPORT_FILE).suffix}"
_MANIFEST_TABLES: Final = ("settings", "facts", "outcome", "cost")
