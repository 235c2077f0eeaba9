"""A run's recorded settings beside a recipe's: what counts as the same."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec_cli.config.loader import find_recipe, read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import ArtefactError
from llmrec_cli.runs.record import (
    count_opening,
    require_same_evaluation,
    require_same_settings,
    start_run,
)
from llmrec_cli.runs.run import Run, align_run, base_run, baseline_run, flatten_table, sft_run
from llmrec_cli.utils.files import write_json


def test_a_file_is_the_same_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped recipe by its name has absolute paths, a checkout's has relative ones."""
    (tmp_path / "there").mkdir()
    for name in ("reviews.json", "other.json"):
        (tmp_path / "there" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    recipe_file = find_recipe("quickstart")

    def recipe_with(path: str) -> tuple[str, list[str]]:
        return str(recipe_file), [f"out={tmp_path}", f"data.reviews=[{path!r}]"]

    begun = read_recipe(*recipe_with("there/reviews.json"))
    run = sft_run(begun)
    start_run(begun, run, {}, resume=False)
    for same in (tmp_path / "there/reviews.json", tmp_path / "link/reviews.json"):
        require_same_settings(read_recipe(*recipe_with(str(same))), run)
    for other in ("there/other.json", "gone/reviews.json"):
        with pytest.raises(ArtefactError, match=rf"started with data\.reviews = .*now \['{other}"):
            require_same_settings(read_recipe(*recipe_with(other)), run)


WORDS = ("data.reviews=./r", "data.metadata=./m", "model.backbone=./base", "align.lml.parent=sft")
IDS = (*WORDS, "tokens.kind=semantic-id", "tokens.vectors=random", "prompt.template=sequence")


def start(make_run: Callable[[Recipe], Run], *words: str) -> tuple[Recipe, Run]:
    """A begun run of the quickstart with a pretrained base."""
    Path("base").mkdir()
    recipe = read_recipe(str(find_recipe("quickstart")), words)
    run = make_run(recipe)
    start_run(recipe, run, {}, resume=False)
    return recipe, run


def align_lml(recipe: Recipe) -> Run:
    return align_run(recipe, "lml")


def run_sasrec(recipe: Recipe) -> Run:
    return baseline_run(recipe, "sasrec")


def rewrite(run: Run, key: str, value: object = None) -> None:
    """A run's record without one of its settings, or with another value."""
    manifest = run.read_manifest()
    *tables, name = key.split(".")
    table = functools.reduce(dict.__getitem__, tables, manifest["settings"])
    del table[name]
    if value is not None:
        table[name] = value
    write_json(run.manifest_file, manifest)


@pytest.mark.parametrize(
    ("make_run", "words"),
    [(base_run, WORDS), (sft_run, WORDS), (align_lml, WORDS), (run_sasrec, WORDS), (sft_run, IDS)],
)
def test_runs_of_versions_that_did_not_know_a_key_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_run: Callable[[Recipe], Run],
    words: tuple[str, ...],
) -> None:
    """Whatever key a run did not record: the recipe must have its default, not another value."""
    monkeypatch.chdir(tmp_path)
    recipe, run = start(make_run, *words)
    whole = run.read_manifest()
    settings = flatten_table(whole["settings"])
    defaults = run.find_defaults(recipe, run.settings(recipe))
    kept = {key for key, default in defaults.items() if default == settings[key]}
    assert kept
    assert settings.keys() - kept
    for key, value in settings.items():
        rewrite(run, key)
        if key in kept:
            require_same_settings(recipe, run)
            start_run(recipe, run, {}, resume=True)
        elif key != "model.new_tokens":  # filled in by what the older versions did
            told = re.escape(f"started with {key} = {defaults.get(key)!r}, now {value!r}")
            with pytest.raises(ArtefactError, match=told):
                require_same_settings(recipe, run)
        write_json(run.manifest_file, whole)
        if key in kept:
            rewrite(run, key, f"not {value}")
            with pytest.raises(ArtefactError, match=rf"{re.escape(key)} = .not .*, now "):
                require_same_settings(recipe, run)
            write_json(run.manifest_file, whole)


def test_an_evaluation_of_a_version_that_did_not_know_a_key_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, run = start(sft_run, *WORDS)
    asked = run.evaluation_settings(recipe)
    recorded = {"eval": {key: value for key, value in asked["eval"].items() if key != "resamples"}}
    count_opening(run, "test", recorded)
    require_same_evaluation(recipe, run, "test", asked)
    other = read_recipe(str(find_recipe("quickstart")), [*WORDS, "eval.resamples=777"])
    with pytest.raises(ArtefactError, match=r"eval\.resamples = 2000, now 777"):
        require_same_evaluation(other, run, "test", run.evaluation_settings(other))
