"""The Python face: the commands as functions that return values and print nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import llmrec_cli
from llmrec_cli import (
    Comparison,
    Recipe,
    Recommender,
    TrainedRun,
    compare,
    evaluate,
    load_recipe,
    prepare,
    train,
)
from llmrec_cli.errors import ArtefactError, RecipeError
from llmrec_cli.pipeline import run
from llmrec_cli.report.tables import comparison_to_csv
from llmrec_cli.training import launch
from tests.experiments import RECIPE, copied, make_experiment

HEAVY = {"torch", "transformers", "pydantic", "pandas", "polars", "numpy"}
NAMES = sorted(set(llmrec_cli.__all__) - {"__version__"})


@pytest.mark.starts_python("it shows that nothing heavy is imported")
def test_the_package_imports_nothing_heavy_and_a_recipe_no_torch() -> None:
    code = (
        "import sys, llmrec_cli\n"
        "assert set(llmrec_cli.__all__) <= set(dir(llmrec_cli))\n"
        f"assert not {HEAVY!r} & set(sys.modules)\n"
        "recipe = llmrec_cli.load_recipe('quickstart', ['train.max_steps=3'])\n"
        "assert recipe.sft.train.max_steps == 3\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_names_are_where_a_type_checker_takes_them_from() -> None:
    tree = ast.parse(Path(llmrec_cli.__file__).read_text())
    (checked,) = [n for n in tree.body if isinstance(n, ast.If) and isinstance(n.test, ast.Name)]
    found = {
        alias.name: (node.module or "").removeprefix("llmrec_cli.")
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == llmrec_cli._HOMES
    assert sorted(found) == NAMES
    for name in NAMES:
        assert getattr(llmrec_cli, name).__module__ == f"llmrec_cli.{found[name]}"


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        _ = getattr(llmrec_cli, "evalute")  # noqa: B009 - the access is the test


def public_functions() -> list[Callable[..., Any]]:
    """The functions of the face, and the methods of what it gives."""
    found = [getattr(llmrec_cli, name) for name in NAMES]
    functions: list[Callable[..., Any]] = [one for one in found if inspect.isfunction(one)]
    for owner in [one for one in found if inspect.isclass(one) and one is not Recipe]:
        values = [getattr(value, "__func__", value) for value in vars(owner).values()]
        functions += [f for f in values if inspect.isfunction(f) and not f.__name__.startswith("_")]
    return functions


@pytest.mark.parametrize("function", public_functions(), ids=lambda f: f.__qualname__)
def test_docstrings_tell_arguments_results_and_errors(function: Callable[..., Any]) -> None:
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    named = [name for name in signature.parameters if name not in ("self", "cls")]
    said = text.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    assert [name for name in named if f"    {name}: " not in said] == []
    assert "\nReturns:\n    " in text
    assert not named or "\nRaises:\n    " in text
    assert {*named, "return"} <= set(inspect.get_annotations(function))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    make_experiment(home, "x")
    return home


@pytest.fixture
def recipe(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Of a finished experiment; the working folder is its own copy."""
    copied(made, tmp_path, monkeypatch)
    return load_recipe("tiny.toml", ["name=x"])


def test_values_of_a_finished_experiment(recipe: Recipe, capfd: pytest.CaptureFixture[str]) -> None:
    data = prepare(recipe)
    assert data.reused
    assert "note: interactions that tie in time" in "".join(data.notes)  # of the audit
    run = train(recipe, "sft", resume=True)
    assert (run.name, run.folder) == ("sft", recipe.folder / "sft")
    assert run.outcome["steps"] == 2
    assert run.metrics["step"].tolist() == [1, 2]
    assert run.cost["seconds"] > 0
    assert run.notes == (f"{run.folder}: already finished",)
    board = evaluate(recipe, existing="keep")
    assert [one.name for one in board.standings] == [
        *("baseline-itemknn", "baseline-pop", "sft", "align-msl")
    ]
    kept, *others = board.notes
    assert kept.startswith("evaluated on test before, and kept: ")
    assert compare([recipe.folder]) == replace(board, notes=tuple(others))
    assert compare([run.folder, Path("tiny.toml"), "name=x"]).n_rows == 60
    recommended = Recommender.load(run.folder).recommend([], k=3)
    assert [item.rank for item in recommended] == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


def test_the_leaderboard_is_a_table_of_pandas(recipe: Recipe) -> None:
    board = compare([recipe.folder], baseline="baseline-itemknn", metric="hr@10")
    frame = board.to_frame("hr@10").set_index("entry")
    assert list(frame.index) == [one.name for one in board.standings]
    found = board.find_estimate("sft")
    assert found == board.find_estimate("sft", "hr@10", board.headline)
    sft: Any = frame.loc["sft", ["mean", "low", "high"]]
    assert sft.tolist() == [found.mean, found.low, found.high]
    assert frame["p_holm"].isna().tolist() == [True, False, False, False]
    assert len(board.to_frame()) == len(board.standings) * len(board.metrics)
    other = board.to_frame("ndcg@10", "remove")
    assert (other["seen"] == "remove").all()
    assert other["mean"].tolist() != board.to_frame("ndcg@10", "keep")["mean"].tolist()
    assert ",".join(frame.reset_index().columns) == comparison_to_csv(board).partition("\n")[0]
    for wrong in (("sfd", None, None), ("sft", "ndcg", None), ("sft", None, "pairs")):
        with pytest.raises(ArtefactError, match="there is"):
            board.find_estimate(*wrong)


def test_mistakes_raise_before_any_work(recipe: Recipe) -> None:
    with pytest.raises(
        RecipeError, match=r'run "algn-msl": unknown, expected .* Did you mean align-msl'
    ):
        train(recipe, "algn-msl")
    with pytest.raises(RecipeError, match='run "sfd"'):
        evaluate(recipe, ["sfd"])
    with pytest.raises(RecipeError, match='run "sfd"'):
        load_recipe("tiny.toml", runs=["sfd"])
    with pytest.raises(RecipeError, match="Did you mean learning_rate"):
        load_recipe("tiny.toml", ["train.learning_rte=1"])
    with pytest.raises(RecipeError, match='split = "train": expected "test" or "valid"'):
        evaluate(recipe, split="train")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match='seen = "both": expected None or "keep" or "remove"'):
        compare([recipe.folder], seen="both")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="overrides = 'seed=1': expected a list"):
        load_recipe("tiny.toml", "seed=1")
    with pytest.raises(TypeError, match="runs = 'runs/x': expected a list"):
        compare(str(recipe.folder))
    with pytest.raises(ArtefactError, match="--again"):
        evaluate(recipe, ["sft"])
    with pytest.raises(ArtefactError, match="is finished and is never overwritten"):
        train(recipe, "sft")
    with pytest.raises(ArtefactError, match="run first: llmrec prepare"):
        train(load_recipe("tiny.toml", ["name=y"]), "sft")


def test_runs_that_the_recipe_has_no_table_for_get_the_defaults(recipe: Recipe) -> None:
    more = load_recipe("tiny.toml", ["name=x"], runs=["align-dmpo", "baseline-sasrec", "sft"])
    assert set(more.align) - set(recipe.align) == {"dmpo"}
    assert set(more.baseline) - set(recipe.baseline) == {"sasrec"}


def test_keys_that_play_no_part_are_warned_of(recipe: Recipe) -> None:
    with pytest.warns(UserWarning, match=r"\[eval.decode\] beams = 7") as heard:
        load_recipe("tiny.toml", ["eval.decode.beams=7"])
    assert [Path(one.filename).name for one in heard] == [Path(__file__).name]


def test_what_is_said_is_kept_and_passed_on(
    recipe: Recipe, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "is_rank", lambda: False)
    several = recipe.model_copy(
        update={"launch": recipe.launch.model_copy(update={"processes": 2, "device": "cpu"})}
    )
    heard: list[str] = []
    run = train(several, "sft", resume=True, progress=heard.append)
    assert run.notes == tuple(heard)
    assert "launch.processes = 2: 2 processes are wanted, and this one works alone" in heard[0]
    assert capfd.readouterr() == ("", "")
    assert train(several, "sft", resume=True, progress=True).notes == run.notes
    assert capfd.readouterr() == ("", "".join(f"{line}\n" for line in heard))


def test_the_audit_of_unprepared_data_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE)
    heard: list[str] = []
    data = prepare(load_recipe("tiny.toml", ["data.k_core=9"]), progress=heard.append)
    assert not data.reused
    assert list(data.notes[: len(heard)]) == heard
    assert any("data.k_core = 9" in line for line in heard)


@pytest.mark.slow
def test_stages_are_the_commands_own_and_print_nothing(
    recipe: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    own = load_recipe("tiny.toml", ["name=own"])
    prepare(own)
    runs = [train(own, name) for name in ("baseline-itemknn", "sft", "align-msl")]
    assert all(isinstance(run, TrainedRun) for run in runs)
    assert any("checkpoints are chosen on 10 of" in line for line in runs[-1].notes)
    board = evaluate(own)
    assert capfd.readouterr() == ("", "")
    assert figures(board) == figures(compare([recipe.folder]))  # that llmrec run made
    again = evaluate(own, ["sft"], existing="again")
    assert figures(again) == figures(board)


def figures(board: Comparison) -> dict[str, Any]:
    return {one.name: (one.metrics, one.contrasts, one.lists) for one in board.standings}


@pytest.mark.slow
def test_notes_of_an_evaluation_come_before_those_of_the_comparison(recipe: Recipe) -> None:
    words = ["name=after", "eval.decode.mask=after", "align.msl.parent=base"]
    after = load_recipe("tiny.toml", words)
    prepare(after)
    train(after, "align-msl")
    first, *_, last = evaluate(after, ["align-msl"]).notes
    assert first.startswith("align-msl: warning: trained on legal tokens only")
    assert last.startswith("audit of after: ")


def test_advice_of_libraries_to_developers_is_not_shown(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advise(*args: object, **options: object) -> None:
        warnings.warn("is deprecated", FutureWarning, stacklevel=1)

    monkeypatch.setattr(run, "train_run", advise)
    train(recipe, "sft")  # where warnings are errors
    with pytest.raises(FutureWarning):
        advise()


@pytest.mark.slow
def test_recipes_of_other_precision_follow_each_other(recipe: Recipe) -> None:
    """Accelerate's state is one for a process; a program's own is as before afterwards."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    try:
        theirs = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=3)
        words = ["name=half", "model.dtype=bfloat16", "launch.device=cpu"]
        half = load_recipe("tiny.toml", words)
        prepare(half)
        assert train(half, "sft").outcome["steps"] == 2
        assert theirs.mixed_precision == "no"
        assert theirs.gradient_accumulation_steps == 3
        single = load_recipe("tiny.toml", ["name=single"])
        prepare(single)
        train(single, "sft")
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
