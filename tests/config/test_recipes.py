"""Every shipped recipe loads, explains itself, and points at things that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from llmrec_cli.config.loader import find_shipped_folder, list_shipped_names, read_recipe
from llmrec_cli.data.prompts import template_names
from llmrec_cli.sources.download import find_category, load_generations

NAMES = list_shipped_names()
FOLDER = find_shipped_folder()


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
        "papers/bear-toy",
        "findings/bear-exact",
        "papers/dmpo-games-k1",
        "papers/dmpo-games-k3",
        "papers/dmpo-cross-domain",
        "dmpo-games-scratch-k1",
        "dmpo-games-scratch-k3",
    }
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_loads(name: str) -> None:
    recipe = read_recipe(name)
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
    assert read_recipe(name).prompt.template in ["sequence", *template_names()]


def test_names_of_runs_are_distinct() -> None:
    """Two recipes of one name would write into the same folder."""
    names = [read_recipe(name).name for name in NAMES]
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
    assert "extends" in table or read_recipe(name).model.backbone == "scratch"


def test_the_quickstart_reads_the_shipped_sample() -> None:
    data = read_recipe("quickstart").data
    for path in (*data.reviews, *data.metadata):
        assert Path(path).is_file(), path


@pytest.mark.parametrize("category", ["toy", "clothing", "book"])
def test_the_papers_setting_of_msl(category: str) -> None:
    """The released script's values, docs/methods/msl.md."""
    recipe = read_recipe(f"papers/msl-{category}")
    lora, data, decode = recipe.model.lora, recipe.data, recipe.eval.decode
    assert recipe.model.backbone == "meta-llama/Meta-Llama-3-8B"
    assert (lora.r, lora.alpha, lora.dropout, lora.targets) == (8, 16, 0.05, ("q_proj", "v_proj"))
    for train in (recipe.sft.train, *(stage.train for stage in recipe.align.values())):
        assert (train.learning_rate, train.schedule, train.warmup) == (1e-4, "linear", 20)
        assert (train.batch, train.epochs, train.rows) == (128, 10, "window")
    assert (data.format, data.split, data.sample.train) == ("msl-windows", "given", 10_000)
    assert data.history == 10, "windows of 5 to 11 items"
    assert (recipe.eval.cutoffs, recipe.eval.rows, recipe.eval.seen) == ((1, 5, 10), None, "keep")
    assert (decode.search, decode.beams, decode.mask) == ("beam", 10, "before")
    assert (decode.length_penalty, decode.temperature) == (1, 1)
    assert {stage.method for stage in recipe.align.values()} == {"msl"}
    assert {stage.parent for stage in recipe.align.values()} == {"base"}
    options = {name: stage.options.model_dump() for name, stage in recipe.align.items()}
    taus = {name: found["tau"] for name, found in options.items()}
    released = {"msl-fixed": 4.5} if category == "toy" else {}
    assert taus == {"msl": 1, "msl-ats": "ats"} | released
    ats = {key: value for key, value in options["msl-ats"].items() if key.startswith("ats_")}
    released_ats = {"eta": 0.25, "rate": 0.05, "start": 1.5, "min": 1.5, "max": 5}
    assert ats == {f"ats_{key}": value for key, value in released_ats.items()}


def test_the_papers_setting_of_bear() -> None:
    """The command of the authors' README; the rest is MSL's, docs/methods/bear.md."""
    recipe, msl = read_recipe("papers/bear-toy"), read_recipe("papers/msl-toy")
    assert recipe.model.backbone == "meta-llama/Llama-3.2-3B"
    assert recipe.model.lora == msl.model.lora
    assert (recipe.data, recipe.prompt, recipe.eval) == (msl.data, msl.prompt, msl.eval)
    assert recipe.sft.train == msl.sft.train
    assert {stage.parent for stage in recipe.align.values()} == {"base"}
    assert recipe.align["msl"] == msl.align["msl"]
    assert recipe.align["bear"].options.model_dump() == {
        "variant": "released",
        "beams": 10,
        "tau": 1.0,
        "lambda": 0.25,
        "xi": 2.75,
    }


def test_the_study_of_bear_trains_rivals_from_the_same_weights() -> None:
    recipe = read_recipe("findings/bear-exact")
    assert {name: stage.parent for name, stage in recipe.align.items()} == dict.fromkeys(
        ("msl", "bear", "bear-regularizer", "bear-plain"), "base"
    )
    assert {str(stage.train) for stage in recipe.align.values()} == {str(recipe.sft.train)}
    assert recipe.eval.decode.search == "exact"
    released = dict(recipe.align["bear"].options.model_dump())
    for name, change in (
        ("bear-regularizer", {"variant": "regularizer"}),
        ("bear-plain", {"lambda": 0.0}),
    ):
        assert recipe.align[name].options.model_dump() == released | change


@pytest.mark.parametrize("category", ["instruments", "arts", "games"])
def test_the_papers_setting_of_ilrec(category: str) -> None:
    """docs/methods/ilrec.md."""
    recipe = read_recipe(f"papers/ilrec-{category}")
    lora, data, decode = recipe.model.lora, recipe.data, recipe.eval.decode
    assert recipe.model.backbone == "meta-llama/Llama-3.1-8B"
    assert (lora.r, lora.alpha, lora.targets) == (64, 32, ("all-linear",))
    for train in (recipe.sft.train, *(stage.train for stage in recipe.align.values())):
        assert (train.learning_rate, train.schedule, train.warmup) == (5e-5, "cosine", 0.05)
        assert (train.batch, train.epochs, train.rows) == (256, 1, "window")
    format = "semantic-ids" if category == "instruments" else "amazon2018"
    assert (data.format, data.split, data.history) == (format, "leave-one-out", 20)
    assert (data.k_core, data.min_history, data.sample.train) == (5, 1, None)
    assert recipe.prompt.template != "sequence"
    assert (recipe.eval.cutoffs, recipe.eval.seen) == ((5, 10), "keep")
    assert (decode.search, decode.beams, decode.mask) == ("beam", 20, "before")
    assert {stage.parent for stage in recipe.align.values()} == {"base"}
    options = recipe.align["ilrec"].options.model_dump(by_alias=True)
    paper: dict[str, object] = {"n": 4, "a": 0.1, "lambda": 0.1, "mu": 0.005, "phi": 1}
    paper |= {"reward_temperature": 1, "ensemble": "mean", "space": "probability"}
    paper |= {"support": "vocab"}
    paper |= {"negatives_from": "ensemble", "cpo": True, "cpd": True, "crr": True}
    assert paper.items() <= options.items()
    ablated = {name: stage.options.model_dump() for name, stage in recipe.align.items()}
    if category == "instruments":
        for term in ("cpo", "cpd", "crr"):
            assert ablated[f"ilrec-without-{term}"][term] is False
        assert ablated["ilrec-final-negatives"]["negatives_from"] == "final"
    assert ablated["ilrec-legal"]["support"] == "legal"


@pytest.mark.parametrize("name", ["dmpo-games-k1", "dmpo-games-k3", "dmpo-cross-domain"])
def test_the_papers_setting_of_dmpo(name: str) -> None:
    """The released script's values, docs/methods/preference.md."""
    recipe = read_recipe(f"papers/{name}")
    lora, stage, crosses = recipe.model.lora, recipe.align["dmpo"], name == "dmpo-cross-domain"
    assert recipe.model.backbone == "meta-llama/Llama-2-7b-chat-hf"
    assert (lora.r, lora.alpha, lora.targets) == (8, 16, ("all-linear",))
    epochs = {"sft": 1 if crosses else 5} | dict.fromkeys(recipe.align, 3)  # 1,000 users for 100
    for run, train in {"sft": recipe.sft.train, "dmpo": stage.train}.items():
        assert (train.learning_rate, train.schedule, train.batch) == (1e-4, "cosine", 8)
        assert train.epochs == epochs[run]
    assert stage.parent == "sft"
    options = stage.options.model_dump()
    k = 1 if name.endswith("k1") else 3
    assert (options["k"], options["beta"], options["variant"]) == (k, 0.1, "paper")
    assert recipe.prompt.task == recipe.prompt_for_eval.task == "rank-pair"
    assert recipe.prompt_for_eval.template == "games"
    if crosses:
        assert (options["negatives"], recipe.data.min_rating) == ("disliked", 4)
        return
    released = recipe.align["dmpo-released"].options.model_dump()
    assert (released["variant"], released["sft"], released["k"]) == ("released", 1, k)
    assert {recipe.align[run].train.epochs for run in recipe.align} == {3}


@pytest.mark.parametrize("name", NAMES)
def test_official_files_come_with_the_command_that_fetches_them(name: str) -> None:
    """What a recipe reads from ``raw/`` and an official host has is what ``download`` brings."""
    recipe = read_recipe(name)
    tables = [recipe.data, *([recipe.eval.data] if recipe.eval.data else [])]
    wanted = {
        Path(file).name
        for data in tables
        if data.format in load_generations()
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
