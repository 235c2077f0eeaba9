"""A run's recorded settings beside a recipe's: what counts as the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec_cli.config.loader import find_recipe, read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import ArtefactError
from llmrec_cli.runs.record import require_same_settings, start_run
from llmrec_cli.runs.run import Run, align_run, base_run, sft_run
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


LATER_KEYS = {"model.weights": "pretrained", "prompt.chat": False}
"""Keys of a recipe that runs of earlier versions did not record, and their defaults."""


@pytest.mark.parametrize("make_run", [base_run, sft_run, lambda recipe: align_run(recipe, "lml")])
def test_runs_of_earlier_versions_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run: Callable[[Recipe], Run]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    words = [
        "data.reviews=./r",
        "data.metadata=./m",
        "model.backbone=./base",
        "align.lml.parent=sft",
    ]
    recipe = read_recipe(str(find_recipe("quickstart")), words)
    run = make_run(recipe)
    start_run(recipe, run, {}, resume=False)
    manifest = run.read_manifest()
    for key, default in LATER_KEYS.items():
        table, _, name = key.partition(".")
        assert manifest["settings"][table].pop(name) == default
    write_json(run.manifest_file, manifest)
    require_same_settings(recipe, run)
    start_run(recipe, run, {}, resume=True)
    manifest["settings"]["model"]["weights"] = "random"  # a run of this version
    write_json(run.manifest_file, manifest)
    with pytest.raises(ArtefactError, match=r"model\.weights = 'random', now 'pretrained'"):
        require_same_settings(recipe, run)
