"""Targets: what users write and type; recipes, overrides, templates, sweeps, names of downloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final

import tomli_w

from llmrec_cli.config.loader import find_shipped_folder, list_shipped_names, read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.prompts import load_rank_template, load_template
from llmrec_cli.pipeline.compare import parse_external_files
from llmrec_cli.sources.download import (
    find_category,
    find_generation,
    load_generations,
    mirror_hosts,
)
from llmrec_cli.sweep.plan import make_plan
from tests.robustness.fuzz.mutate import Files
from tests.robustness.fuzz.target import Target, Wrong

EXTENDED: Final = b'extends = "base.toml"\n[train]\nbatch = 4\n[align.msl]\nparent = "sft"\n'
SWEEP: Final = """
[sweep]
sampler = "tpe"
trials = 3
seeds = [0, 1]
prune = true
stage = "align-dmpo"
[sweep.space]
"align.dmpo.beta" = [0.1, 0.5]
"align.dmpo.train.learning_rate" = { low = 1e-5, high = 1e-3, log = true }
"""
OVERRIDES: Final = (
    *("train.learning_rate=1e-4", 'prompt.template="toys"', "data.k_core=0", "seed=7", "name=a-b"),
    *("eval.cutoffs=[1, 5, 10]", "align.dmpo.beta=0.2", "model.scratch.hidden=16", "out=runs"),
    *("data.start=2018-01-01", "data.sample={ train = 3 }", "align.x.method=msl", "track.online=0"),
)
GRID: Final = (
    *(
        "align.dmpo.beta=0.1,0.5",
        "sft.train.epochs=1,2",
        'align.dmpo.negatives="uniform","popularity"',
    ),
    *("align.ilrec.n=1,2", "baseline.sasrec.hidden=8,16"),
)
NAMES: Final = (
    *("amazon2018/Gift_Cards", "amazon2023", "amazon-2018/gift-cards", "amazon2014/Books"),
    *(
        "http://localhost:8000/data",
        "https://example.org/a/",
        "http://[::1]/x",
        "recbole=base.toml",
    ),
)


def _recipes() -> list[Files]:
    shipped = [find_shipped_folder() / f"{name}.toml" for name in list_shipped_names()]
    base = (find_shipped_folder() / "quickstart.toml").read_bytes()
    files = [{"recipe.toml": path.read_bytes(), "base.toml": base} for path in shipped]
    return [f for f in files if b"extends" not in f["recipe.toml"]] + [
        {"recipe.toml": EXTENDED, "base.toml": base},
        {"recipe.toml": base + SWEEP.encode(), "base.toml": base},
    ]


def _recipe(folder: Path, rng: Random) -> None:
    recipe = read_recipe("recipe.toml", rng.choice(((), (), ("seed=3",))))
    same_again(recipe, folder)


def same_again(recipe: Recipe, folder: Path) -> None:
    """A resolved recipe, written, is the same recipe again."""
    (folder / "again.toml").write_bytes(tomli_w.dumps(recipe.to_table()).encode())
    if read_recipe("again.toml") != recipe:
        raise Wrong("the resolved recipe is another one")


def _words(folder: Path, name: str) -> list[str]:
    """Words of a command line: what a shell would hand over, without NUL."""
    text = (folder / name).read_bytes().decode("utf-8", errors="surrogateescape")
    return [word for word in text.replace("\0", "").split("\n") if word]


def _override(folder: Path, rng: Random) -> None:
    words = _words(folder, "words.words")
    read_recipe("quickstart", rng.sample(words, min(len(words), 3)), ["msl"])


def _plan(folder: Path, rng: Random) -> None:
    words, asked = _words(folder, "grid.words"), json.loads((folder / "fixed.json").read_bytes())
    wanted = {"stage": rng.choice((None, None, "align-dmpo")), **asked}
    chosen = rng.sample(words, min(len(words), 2)) if rng.random() < 0.6 else []
    plan = make_plan("recipe.toml", [], wanted, chosen, rng.choice(("study", "a.b")))
    if plan.section.sampler == "grid" and len(plan.list_points()) < 200:
        for point in plan.list_points()[:3]:
            plan.load_point(point, 0)


def _template(folder: Path, rng: Random) -> None:
    template = load_template("template.toml", folder.joinpath)
    template.render(["a", "b"])
    template.render([])
    load_rank_template("template.toml", folder.joinpath)


def _download(folder: Path, rng: Random) -> None:
    """A word as a name, a generation, a mirror, and another tool's lists."""
    words = _words(folder, "names.words") or [""]
    rng.choice(list(_questions(rng.choice(words))))()


def _questions(word: str) -> Iterator[Callable[[], object]]:
    generation = next(iter(load_generations().values()))
    yield lambda: find_category(word)
    yield lambda: find_generation(word)
    yield lambda: mirror_hosts(generation, word)
    yield lambda: parse_external_files([word])


def _of(name: str, words: Sequence[str], **more: bytes) -> Callable[[], list[Files]]:
    return lambda: [{name: "\n".join(words).encode(), **more}]


SHIPPED: Final = Path(__file__).parents[3] / "llmrec_cli/data/templates"

TARGETS: Final = [
    Target("recipe", _recipes, _recipe),
    Target("recipe-overrides", _of("words.words", OVERRIDES), _override),
    Target(
        "sweep-plan",
        lambda: [
            {**files, "grid.words": "\n".join(GRID).encode(), "fixed.json": b"{}"}
            for files in _recipes()
            if b"[sweep]" in files["recipe.toml"]
        ],
        _plan,
        fixed=("fixed.json", "base.toml"),
    ),
    Target(
        "template",
        lambda: [
            {"template.toml": (SHIPPED / f"{name}.toml").read_bytes()}
            for name in ("toys", "books", "movies", "items")
        ],
        _template,
    ),
    Target("download-words", _of("names.words", NAMES), _download),
]
