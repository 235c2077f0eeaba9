"""Names of runs are cut and joined in one module, and every artefact's name is written once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmrec_cli
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.names import RunKind, list_run_names
from llmrec_cli.config.recipe import PREPARED_FOLDERS
from llmrec_cli.errors import RecipeError
from llmrec_cli.runs.run import (
    Run,
    align_run,
    experiment_of,
    explain_unknown_run,
    find_recipe_tables,
    find_run_of_key,
    run_at,
)
from llmrec_cli.utils import files

PACKAGE = Path(llmrec_cli.__file__).parent
CUTS_NAMES = "runs/run.py"
FILES = {value for name, value in vars(files).items() if name.endswith("_FILE")} | {
    files.HASHES_FILE
}
FOLDERS = {value for name, value in vars(files).items() if name.endswith("_FOLDER")}
FOLDERS |= set(PREPARED_FOLDERS)
OWNERS = {"utils/files.py": FILES | FOLDERS, "config/recipe.py": set(PREPARED_FOLDERS)}
STANDALONE = "serving/exported/rank.py"  # travels with an export, imports nothing of ours
RUN_NAME = re.compile(r"(align|baseline)-[a-z0-9_]*")


def docstrings(tree: ast.Module) -> set[int]:
    """Constants that stand alone as a statement."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def violations(path: Path, name: str) -> Iterator[str]:
    """Where a module writes an artefact's name, or cuts or joins a run's."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent, own = docstrings(tree), OWNERS.get(name, set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in silent and node.value in FILES - own:
                yield f"{name}:{node.lineno}: the artefact {node.value}"
            if name != CUTS_NAMES and RUN_NAME.fullmatch(node.value) and id(node) not in silent:
                yield f"{name}:{node.lineno}: the run {node.value}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            folder = node.right.value if isinstance(node.right, ast.Constant) else None
            if isinstance(folder, str) and folder in FOLDERS:
                yield f"{name}:{node.lineno}: the folder {folder}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            cut = node.func.attr in ("partition", "split", "rpartition", "rsplit")
            first = node.args[0] if node.args else None
            if cut and isinstance(first, ast.Constant) and first.value == "-":
                yield f"{name}:{node.lineno}: cuts at a hyphen"


MODULES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).as_posix()
           not in (CUTS_NAMES, STANDALONE, "data/backends/base.py")]  # fmt: skip


def test_nobody_else_cuts_a_run_name_or_writes_an_artefact_name() -> None:
    found = [v for p in MODULES for v in violations(p, p.relative_to(PACKAGE).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('kind, _, name = run.partition("-")', "cuts at a hyphen"),
        ('run = f"align-{name}"', "the run align-"),
        ('name = run.removeprefix("baseline-")', "the run baseline-"),
        ('POP = "baseline-pop"', "the run baseline-pop"),
        ('path = folder / "report.json"', "the artefact report.json"),
        ('path = folder / "adapter"', "the folder adapter"),
        ('path = home / "prepared"', "the folder prepared"),
    ],
)
def test_a_name_written_elsewhere_would_be_found(line: str, what: str, tmp_path: Path) -> None:
    module = tmp_path / "x.py"
    module.write_text(f'"""report.json is told of here."""\n{line}\n')
    assert [found.partition(": ")[2] for found in violations(module, "x.py")] == [what]


def test_runs_of_a_recipe_know_kind_folder_parent_and_command(tmp_path: Path) -> None:
    choices = [f"out={tmp_path}", "align.msl.parent=dpo", "align.dpo.parent=sft"]
    recipe = read_recipe("quickstart", choices)
    experiment = experiment_of(recipe)
    names = experiment.names
    assert names.index("align-dpo") < names.index("align-msl")
    msl = experiment.find("align-msl")
    assert msl is not None
    assert (msl.kind, msl.table, msl.heading) == (RunKind.ALIGN, "msl", "[align.msl]")
    assert (str(msl), msl.folder) == ("align-msl", recipe.folder / "align-msl")
    assert [run.name for run in msl.lineage] == ["sft", "align-dpo", "align-msl"]
    assert msl.lineage[0].parent is None
    assert msl.command == ["align", "--method", "msl"]
    assert msl.section(recipe) is recipe.align["msl"]
    assert not msl.is_done
    sft, sasrec = (experiment.find(name) for name in ("sft", "baseline-sasrec"))
    assert sft is not None
    assert sasrec is not None
    assert (sft.heading, sft.command) == ("[sft]", ["sft"])
    assert sasrec.command == ["baseline", "--model", "sasrec"]
    assert (sasrec.is_language_model, sft.is_language_model) == (False, True)
    assert experiment.find("align-nothing") is None
    with pytest.raises(RecipeError, match=r"^\[align.nothing\]: not in the recipe \(it has msl, "):
        align_run(recipe, "nothing")


def test_a_pretrained_backbone_is_a_run_that_eval_makes(tmp_path: Path) -> None:
    recipe = read_recipe("quickstart", [f"out={tmp_path}", "model.backbone=acme/model"])
    first = experiment_of(recipe).runs[0]
    assert (first.name, first.kind, first.table) == ("base", RunKind.BASE, "")
    assert first.command == ["eval", "--run", "base"]
    assert first == run_at(recipe.folder / "base")
    assert (first.is_untouched, first.is_made_by_eval, first.is_language_model) == (True,) * 3
    settings = first.settings(recipe)
    other = ["seed=3", "model.lora.r=2", "train.epochs=9", "eval.rows=3"]
    changed = read_recipe("quickstart", [f"out={tmp_path}", "model.backbone=acme/model", *other])
    assert first.settings(changed) == settings
    assert "acme/model" in settings["model"].values()
    for choice in ("model.dtype=bfloat16", "model.revision=v2", "prompt.max_tokens=64"):
        words = [f"out={tmp_path}", "model.backbone=acme/model", choice]
        assert first.settings(read_recipe("quickstart", words)) != settings, choice
    with pytest.raises(RecipeError, match=r"^base: is acme/model as it is; it has no table"):
        first.section(recipe)
    pop = experiment_of(recipe).find("baseline-pop")
    assert pop is not None
    assert pop.is_made_by_eval
    assert sum(run.is_made_by_eval for run in experiment_of(recipe).runs) == 2


def test_random_weights_are_no_run() -> None:
    ids = read_recipe("amazon2018/instruments-semantic-ids", ["model.backbone=acme/model"])
    for recipe, reason in (
        (read_recipe("quickstart"), 'model.backbone = "scratch" has random weights'),
        (ids, 'the tokens of data.format = "semantic-ids" are new to the backbone'),
    ):
        assert experiment_of(recipe).find("base") is None
        assert explain_unknown_run(recipe, "base").startswith(reason)
        assert "random" not in explain_unknown_run(recipe, "bases")


def test_a_run_in_another_experiment_has_its_parents_there() -> None:
    recipe = read_recipe("quickstart", ["align.msl.parent=sft"])
    run = align_run(recipe, "msl").within(Path("elsewhere"))
    assert run.folder == Path("elsewhere/align-msl")
    assert [link.folder for link in run.lineage] == [Path("elsewhere/sft"), run.folder]


@pytest.mark.parametrize(
    ("name", "kind", "table"),
    [
        ("sft", RunKind.SFT, ""),
        ("align-a-b", RunKind.ALIGN, "a-b"),
        ("baseline-pop", RunKind.BASELINE, "pop"),
        ("copy-of-align", RunKind.SFT, ""),
        ("baseline", RunKind.SFT, ""),
    ],
)
def test_a_folder_name_tells_the_kind(name: str, kind: RunKind, table: str) -> None:
    assert run_at(Path("e", name)) == Run(kind, table, Path("e", name))


def test_typed_names_and_swept_keys_name_their_tables() -> None:
    assert find_recipe_tables(["sft", "align-a-b", "baseline-x", "foo", "align"]) == (
        ["a-b", ""],
        ["x"],
    )
    keys = ("sft.train.batch", "align.msl.tau", "baseline.pop.train.batch", "align", "train.batch")
    assert [find_run_of_key(key) for key in keys] == [
        "sft",
        "align-msl",
        "baseline-pop",
        None,
        None,
    ]


def test_a_guided_run_is_named_by_its_parts(tmp_path: Path) -> None:
    recipe = read_recipe("quickstart", [f"out={tmp_path}", "eval.decode.guide=baseline-itemknn"])
    runs = experiment_of(recipe).runs
    guided = experiment_of(recipe).find("align-msl+baseline-itemknn")
    assert guided is not None
    assert guided.kind is RunKind.GUIDED
    assert [str(part) for part in guided.parts] == ["align-msl", "baseline-itemknn"]
    assert (guided.is_guided, guided.is_language_model, guided.is_made_by_eval) == (True,) * 3
    assert not guided.holds_weights
    assert guided.command == ["eval", "--run", "align-msl+baseline-itemknn"]
    assert guided.heading == "[eval.decode]"
    assert [str(run) for run in runs if run.is_guided] == [
        f"{run}+baseline-itemknn" for run in runs if run.is_language_model and not run.is_guided
    ]
    again = run_at(guided.folder)
    assert (again.kind, again.name) == (guided.kind, guided.name)
    assert [part.folder for part in again.parts] == [part.folder for part in guided.parts]
    assert run_at(tmp_path / "sft+more").kind is RunKind.SFT
    with pytest.raises(RecipeError, match="has no table of its own"):
        guided.section(recipe)


def test_a_guide_changes_no_other_run(tmp_path: Path) -> None:
    words = [f"out={tmp_path}"]
    guide = ["eval.decode.guide=baseline-pop", "eval.decode.weight=3", "eval.decode.weights=[0]"]
    plain, guided = read_recipe("quickstart", words), read_recipe("quickstart", [*words, *guide])
    for run in experiment_of(plain).runs:
        assert run.settings(guided) == run.settings(plain)
        assert run.evaluation_settings(guided) == run.evaluation_settings(plain)
    assert "weight" not in str(plain.to_table()["eval"])


@pytest.mark.parametrize(
    ("guide", "hint"),
    [
        ("baseline-itemkn", " Did you mean baseline-itemknn?"),
        ("align-mls", " Did you mean align-msl?"),
        ("base", ""),
        ("sft+baseline-pop", " Did you mean baseline-pop?"),
    ],
)
def test_a_guide_that_is_no_run(guide: str, hint: str) -> None:
    """Said wherever the recipe is read: by ``sft`` and ``align`` too, which know no guide."""
    known = experiment_of(read_recipe("quickstart")).names
    with pytest.raises(RecipeError) as caught:
        read_recipe("quickstart", [f"eval.decode.guide={guide}"])
    head, problem = str(caught.value).splitlines()
    assert head.endswith("quickstart.toml: 1 problem")
    assert problem == (
        f'  [eval.decode] guide = "{guide}": no run of the recipe, expected one of '
        f"{', '.join(known)}.{hint}"
    )


def test_a_guide_may_be_a_run_that_the_command_adds() -> None:
    words = ["eval.decode.guide=align-lml"]
    with pytest.raises(RecipeError, match="no run of the recipe"):
        read_recipe("quickstart", words)
    found = experiment_of(read_recipe("quickstart", words, aligns=["lml"]))
    assert "sft+align-lml" in found.names


def test_lists_of_another_domain_have_no_guide() -> None:
    words = ["eval.decode.guide=baseline-pop", "eval.data.format=amazon2018", "eval.data.reviews=a"]
    with pytest.raises(RecipeError) as caught:
        read_recipe("quickstart", words)
    assert '"baseline-pop": lists of another domain ([eval.data]) have no guide' in str(
        caught.value
    )


def test_the_names_of_runs_are_those_of_the_experiment() -> None:
    for name in ("quickstart", "findings/bear-exact"):
        recipe = read_recipe(name)
        assert list_run_names(recipe) == experiment_of(recipe).names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval.decode.search=all", "eval.decode.length_penalty=1"], "length_penalty must be 0"),
        (["eval.decode.weights=[1, 2]"], "expected 0 among them"),
        (["eval.decode.weight=-1"], "greater than or equal to 0"),
        (["eval.decode.weight=best"], "validation"),
        (["eval.decode.weights=[0, inf]"], "finite"),
    ],
)
def test_a_guide_that_cannot_be_searched(words: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe("quickstart", ["eval.decode.guide=baseline-pop", *words])


def test_a_weight_without_a_guide_is_noted() -> None:
    notes: list[str] = []
    read_recipe("quickstart", ["eval.decode.weight=2"], say=notes.append)
    assert any("no guide is named (eval.decode.guide)" in note for note in notes)
    notes.clear()
    given = ["eval.decode.guide=sft", "eval.decode.weight=2", "eval.decode.weights=[0, 1]"]
    read_recipe("quickstart", given, say=notes.append)
    assert any("weight = 2 is given, and none is chosen" in note for note in notes)
