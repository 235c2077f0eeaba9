"""Every shipped recipe loads, explains itself, and points at things that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from llmrec_cli.data.locations import find_category, generations
from llmrec_cli.data.prompts import template_names
from llmrec_cli.recipe.file import load_recipe, shipped_folder, shipped_names

NAMES = shipped_names()
FOLDER = shipped_folder()


def text(name: str) -> str:
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def opening(name: str) -> str:
    lines = text(name).splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_the_promised_recipes_are_shipped() -> None:
    promised = {
        "quickstart",
        "amazon2014/digital-music",
        "amazon2014/musical-instruments",
        "amazon2018/gift-cards",
        "amazon2018/gift-cards-scratch",
        "amazon2018/instruments-scratch",
        "amazon2018/instruments-semantic-ids",
        "amazon2023/all-beauty",
        "papers/msl-toy",
        "papers/msl-clothing",
        "papers/msl-book",
        "papers/dmpo-games-k1",
        "papers/dmpo-games-k3",
        "papers/dmpo-cross-domain",
        "dmpo-games-scratch-k1",
        "dmpo-games-scratch-k3",
    }
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.align, "a recipe without an alignment shows nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_opens_with_command_needs_and_expectation(name: str) -> None:
    comment = opening(name)
    assert f"llmrec run {name}" in comment
    for word in ("Needs:", "Expect"):
        assert f"\n# {word}" in comment, word


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_uses_a_shipped_template(name: str) -> None:
    assert load_recipe(name).prompt.template in ["sequence", *template_names()]


def test_names_of_runs_are_distinct() -> None:
    """Two recipes of one name would write into the same folder."""
    names = [load_recipe(name).name for name in NAMES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("base-*.toml")), ids=lambda path: path.stem)
def test_a_base_file_is_extended_and_says_what_it_needs(path: Path) -> None:
    users = [n for n in NAMES if tomllib.loads(text(n)).get("extends") == f"../{path.name}"]
    assert users
    assert "\n# Needs" in path.read_text() or "GPU" in path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_recipes_share_by_extending(name: str) -> None:
    """No copied backbones: a recipe with a hub backbone takes it from its base file."""
    table = tomllib.loads(text(name))
    assert table.get("model", {}).get("backbone", "scratch") == "scratch"
    assert "extends" in table or load_recipe(name).model.backbone == "scratch"


def test_the_quickstart_reads_the_shipped_sample() -> None:
    data = load_recipe("quickstart").data
    for path in (*data.reviews, *data.metadata):
        assert Path(path).is_file(), path


def test_the_papers_setting_of_msl() -> None:
    """The released script's values, docs/methods/msl.md."""
    recipe = load_recipe("papers/msl-toy")
    lora, train = recipe.model.lora, recipe.align["msl-ats"].train
    assert (lora.r, lora.alpha, lora.dropout, lora.targets) == (8, 16, 0.05, ("q_proj", "v_proj"))
    assert (train.learning_rate, train.schedule, train.warmup) == (1e-4, "linear", 20)
    assert (train.batch, train.epochs, recipe.data.sample.train) == (128, 10, 10_000)
    assert (recipe.eval.cutoffs, recipe.eval.decode.beams) == ((1, 5, 10), 10)
    assert {stage.method for stage in recipe.align.values()} == {"msl"}
    assert {stage.parent for stage in recipe.align.values()} == {"base"}


@pytest.mark.parametrize("k", [1, 3])
def test_the_papers_setting_of_dmpo(k: int) -> None:
    """The released script's values, docs/methods/preference.md."""
    recipe = load_recipe(f"papers/dmpo-games-k{k}")
    lora, sft, stage = recipe.model.lora, recipe.sft.train, recipe.align["dmpo"]
    assert (lora.r, lora.alpha, lora.targets) == (8, 16, ("all-linear",))
    for train, epochs in ((sft, 5), (stage.train, 3)):
        assert (train.learning_rate, train.schedule, train.batch) == (1e-4, "cosine", 8)
        assert train.epochs == epochs
    options = stage.options.model_dump()
    assert (options["k"], options["beta"], options["variant"]) == (k, 0.1, "paper")
    assert (recipe.prompt.task, recipe.prompt.template) == ("rank-pair", "games")


@pytest.mark.parametrize("name", NAMES)
def test_official_files_come_with_the_command_that_fetches_them(name: str) -> None:
    """What a recipe reads from ``raw/`` and an official host has is what ``download`` brings."""
    recipe = load_recipe(name)
    tables = [recipe.data, *([recipe.eval.data] if recipe.eval.data else [])]
    wanted = {
        Path(file).name
        for data in tables
        if data.format in generations()
        for file in data.files()
        if file.startswith("raw/")
    }
    brought = set()
    for word in re.findall(r"^#   Get them: llmrec download (\S+) --to raw$", opening(name), re.M):
        generation, category = find_category(word)
        files = generation.hosts[0].files
        paths = [*files["reviews"], *files["meta"]]
        brought |= {path.rsplit("/", 1)[-1].format(category=category) for path in paths}
    assert brought == wanted
