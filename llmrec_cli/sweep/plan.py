"""The plan of a sweep: its space, the run to judge, and the recipe of every point.

Everything is checked here, before anything is imported that trains or stored that stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from llmrec_cli import methods
from llmrec_cli.config.loader import parse_value, read_recipe
from llmrec_cli.config.names import RunKind
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import UNTRAINED, Range, Selection, SweepSection, TrainSection
from llmrec_cli.errors import RecipeError
from llmrec_cli.runs.run import (
    Run,
    baseline_run,
    chosen_by,
    experiment_of,
    explain_unknown_run,
    find_recipe_tables,
    find_run_of_key,
)
from llmrec_cli.utils.toml import parse

Point: TypeAlias = dict[str, str]
"""Keys of the recipe to values as TOML text."""

_FOLDER = "sweep"
_WHY_NOT = {
    "name": "names the folder of the runs",
    "out": "names the folder of the runs",
    "extends": "is the file below this one",
    "description": "changes nothing",
    "seed": "is no setting to choose; average over several with --seeds",
    "launch": "changes nothing about the result",
    "track": "changes nothing about the result",
    "sweep": "is the search itself",
    "data": "changes the validation rows, whose figures would not compare",
    "eval": "changes how validation is scored, whose figures would not compare",
}
_JUDGING = ("select", "validate_rows")  # keys of [train]


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, checked."""

    word: str  # the recipe as it was named
    overrides: tuple[str, ...]
    recipe: Recipe  # without any swept value
    space: Mapping[str, Sequence[str] | Range]  # choices as TOML text
    run: str  # name of the run that is judged
    section: SweepSection
    study: str

    @property
    def folder(self) -> Path:
        """Where the study and its trials live."""
        return self.recipe.folder / _FOLDER / self.study

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.section.seeds) or (self.recipe.seed,)

    @property
    def trials(self) -> int:
        """How many points are to be tried."""
        return len(self.list_points()) if self.section.sampler == "grid" else self.section.trials

    @property
    def metric(self) -> str:
        """What points are judged by, on validation."""
        return self.selection.describe(self.recipe.eval.cutoffs)

    @property
    def selection(self) -> Selection:
        """What chooses the checkpoints of the judged run."""
        section: TrainSection = self.find_run(self.recipe).section(self.recipe).train
        return section.selection

    def find_run(self, recipe: Recipe) -> Run:
        """The run that is judged, in one of the sweep's experiments.

        Raises:
            RecipeError: there is no such run.
        """
        run = experiment_of(recipe).find(self.run)
        if run is None:
            raise RecipeError(f"--stage {self.run}: {explain_unknown_run(recipe, self.run)}")
        return run

    def list_points(self) -> list[Point]:
        """All points of a grid; the last key varies fastest."""
        choices = [values for values in self.space.values() if not isinstance(values, Range)]
        return [dict(zip(self.space, values, strict=True)) for values in product(*choices)]

    def load_point(self, point: Point, seed: int) -> tuple[Recipe, list[str]]:
        """The experiment that tries a point with a seed, and the words that make it."""
        name = f"point-{hash_point(point)}-seed-{seed}"
        return self._load_recipe(point, seed, f"name={name}", f"out={self.folder.as_posix()}")

    def load_shared(self, seed: int) -> tuple[Recipe, list[str]]:
        """The experiment whose runs the points of a seed share: the recipe's own, for its seed."""
        if seed == self.recipe.seed:
            return self._load_recipe({}, seed, f"name={self.recipe.name}")
        return self._load_recipe({}, seed, f"name=seed-{seed}", f"out={self.folder.as_posix()}")

    def _load_recipe(self, point: Point, seed: int, *further: str) -> tuple[Recipe, list[str]]:
        overrides = [*self.overrides, *format_overrides(point), f"seed={seed}", *further]
        return read_recipe(self.word, overrides, *find_recipe_tables([self.run])), [
            self.word,
            *overrides,
        ]

    def describe(self) -> dict[str, Any]:
        """What a study must have in common with the sweep that goes on with it."""
        plain = self.recipe.every_value()
        for key in ("name", "out", "description", "launch", "track", "sweep"):
            plain.pop(key, None)
        plain["eval"] = chosen_by(plain)
        space = {
            key: values.model_dump() if isinstance(values, Range) else list(values)
            for key, values in self.space.items()
        }
        return {
            "run": self.run,
            "space": space,
            "seeds": list(self.seeds),
            "sampler": self.section.sampler,
            "recipe": plain,
        }


def make_plan(
    word: str, overrides: Sequence[str], asked: Mapping[str, Any], grid: Iterable[str], study: str
) -> SweepPlan:
    """The sweep that a recipe and a command line ask for.

    Args:
        word: the recipe's path or shipped name.
        asked: keys of ``[sweep]`` from the command line; None where it is silent.
        grid: ``KEY=VALUE,VALUE`` words; they take the place of the recipe's space.
        study: name of the study, a folder's name.

    Raises:
        RecipeError: what cannot be swept, or cannot be judged; no key, or an unknown one.
    """
    recipe = read_recipe(word, overrides)
    if recipe.id_tokens is not None:
        raise RecipeError(
            f'{word}: [tokens] kind = "{recipe.id_tokens.kind}": a sweep makes no IDs for its '
            'points; sweep on titles (tokens.kind=title), or on format = "semantic-ids" with the '
            "index.json that llmrec tokenize made"
        )
    section = recipe.sweep or SweepSection()
    given = {key: value for key, value in asked.items() if value is not None}
    words = list(grid)
    if words:
        given |= {"sampler": "grid", "space": dict(map(_parse_grid_word, words))}
    section = SweepSection.model_validate({**section.model_dump(exclude_unset=True), **given})
    if not section.space:
        raise RecipeError(
            f"{word}: nothing to sweep; add --grid align.NAME.KEY=VALUE,VALUE or a [sweep] table"
        )
    space = {key: _list_choices(key, values) for key, values in section.space.items()}
    if section.sampler == "grid":
        _require_lists(space)
    for key in space:
        _require_sweepable(key)
    _check_values(word, overrides, space)
    run = section.stage or _find_judged_run(space)
    plain = read_recipe(word, overrides, *find_recipe_tables([run]))
    plan = SweepPlan(word, tuple(overrides), plain, space, run, section, _check_study_name(study))
    _require_judge(plan)
    return plan


def list_needed_runs(recipe: Recipe, run: Run) -> list[Run]:
    """The runs that have to be finished before a run, in order."""
    found = list[Run]()
    for link in run.lineage:
        if link.kind is RunKind.ALIGN:
            section = recipe.align[link.table]
            scores = methods.find_method(section.method).needs(section.options).item_scores
            found += [baseline_run(recipe, scores.model)] if scores else []
    return list(dict.fromkeys([*found, *run.lineage[:-1]]))


def format_overrides(point: Mapping[str, str]) -> list[str]:
    """A point as words of a command line."""
    return [f"{key}={value}" for key, value in point.items()]


def hash_point(point: Point) -> str:
    """A short name for a point, the same wherever it is tried."""
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:10]


def format_toml(value: Any) -> str:
    """A plain value as TOML in one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(format_toml, value))}]"
    if isinstance(value, (bool, str)):
        return json.dumps(value)
    return repr(value)


def _check_study_name(study: str) -> str:
    if not study or not all(letter.isalnum() or letter in "._-" for letter in study.lstrip(".")):
        raise RecipeError(f"--study {study}: expected letters, digits, dots, hyphens")
    return study


def _parse_grid_word(word: str) -> tuple[str, list[Any]]:
    """``KEY=VALUE,VALUE``; values are TOML, or plain words.

    Raises:
        RecipeError: not of that form.
    """
    key, equals, text = word.partition("=")
    if not equals or not text.strip():
        raise RecipeError(f"--grid {word}: expected KEY=VALUE,VALUE, e.g. align.dmpo.beta=0.1,0.5")
    try:
        return key.strip(), parse(f"values = [{text}]")["values"]
    except ValueError:
        return key.strip(), [parse_value(part.strip()) for part in text.split(",")]


def _list_choices(key: str, values: list[Any] | Range) -> Sequence[str] | Range:
    if isinstance(values, Range):
        return values
    texts = list(dict.fromkeys(map(format_toml, values)))
    if not texts:
        raise RecipeError(f'[sweep.space] "{key}" = []: expected at least one value')
    return texts


def _require_lists(space: Mapping[str, Sequence[str] | Range]) -> None:
    for key, values in space.items():
        if isinstance(values, Range):
            raise RecipeError(
                f'[sweep.space] "{key}": a range, and sampler = "grid" tries lists; list the '
                'values, or set sampler = "tpe"'
            )


def _require_sweepable(key: str) -> None:
    first, *rest = key.split(".")
    reason = _WHY_NOT.get(first)
    if reason is None and rest and rest[-1] in _JUDGING:
        reason = "changes how validation is scored, whose figures would not compare"
    if reason:
        raise RecipeError(f"sweep of {key}: {first if not rest else key} {reason}")


def _find_judged_run(keys: Iterable[str]) -> str:
    """The one run that the keys belong to; what belongs to all runs decides nothing.

    Raises:
        RecipeError: none, or several.
    """
    runs = list(dict.fromkeys(run for key in keys if (run := find_run_of_key(key))))
    if len(runs) > 1 and RunKind.SFT in runs:
        runs.remove(RunKind.SFT)  # a parent of the other one
    if len(runs) == 1:
        return runs[0]
    why = f"the keys belong to {', '.join(runs)}" if runs else "the keys belong to every run"
    raise RecipeError(f"sweep: {why}; say which run is judged with --stage, e.g. --stage sft")


def _check_values(
    word: str, overrides: Sequence[str], space: Mapping[str, Sequence[str] | Range]
) -> None:
    """Every value by itself makes a recipe; ranges are asked at both ends.

    Raises:
        RecipeError: names the key, the value and what was expected.
    """
    for key, values in space.items():
        tables = find_recipe_tables([find_run_of_key(key) or RunKind.SFT])
        ends = [repr(values.low), repr(values.high)] if isinstance(values, Range) else values
        for text in ends:
            read_recipe(word, [*overrides, f"{key}={text}"], *tables)


def _require_judge(plan: SweepPlan) -> None:
    """Refuse a run that has no figure on validation, or none that compares.

    Raises:
        RecipeError: says why.
    """
    stage = plan.find_run(plan.recipe).section(plan.recipe)
    if getattr(stage, "model", None) in UNTRAINED:
        raise RecipeError(
            f"sweep of {plan.run}: is fitted without validation; compare settings by name with "
            "llmrec eval --split valid"
        )
    if stage.train.selection.is_loss and any(".train." not in f".{key}" for key in plan.space):
        raise RecipeError(
            f'sweep of {plan.run}: train.select = "loss", and losses under different options do '
            f'not compare; set train.select = "{plan.recipe.task.figure}"'
        )
