"""What every task keeps to; a new one is tested by being in ``TASKS``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import llmrec_cli.tasks
from llmrec_cli.config.data import DataFormat, PromptSection
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.training import BaselineSection, TrainSection
from llmrec_cli.data.schema import TARGET
from llmrec_cli.errors import RecipeError, UserError
from llmrec_cli.pipeline import run
from llmrec_cli.pipeline.loading import longest_row
from llmrec_cli.pipeline.memory import measure_rows
from llmrec_cli.pipeline.plan import check_plan, plan_run
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.pipeline.setup import open_context
from llmrec_cli.runs.run import sft_run
from llmrec_cli.sources.synthetic import write_sample
from llmrec_cli.tasks import TASKS, find_reported_task
from llmrec_cli.tasks.base import SeenPolicy, Task, load_operations
from llmrec_cli.utils.progress import Silent

RECIPE = """
[data]
format = "amazon2018"
reviews = ["raw/Synthetic_Toys.json.gz"]
metadata = ["raw/meta_Synthetic_Toys.json.gz"]
split = "few-shot"
few_shot_users = 30
k_core = 2
history = 4
[prompt]
template = "items"
[model.scratch]
hidden = 16
layers = 1
heads = 2
feed_forward = 16
vocabulary = 400
[train]
batch = 16
max_steps = 2
validate_rows = 10
rows = "window"
[align.lml]
[eval]
resamples = 100
rows = 12
"""


def named(task: Task) -> str:
    return task.name


every_task = pytest.mark.parametrize("task", TASKS.values(), ids=named)


def words_of(task: Task) -> list[str]:
    """What makes ``RECIPE`` one of a task."""
    return [f"name={task.name}", f"prompt.task={task.name}", f"train.select={task.figure}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_sample(folder / "raw", seed=0, users=80, items=40, format="2018")
    (folder / "r.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def open_stage(task: Task, *words: str) -> TrainingStage:
    """The SFT stage of a task, on prepared data."""
    recipe = read_recipe("r.toml", [*words_of(task), *words])
    prepare_data(recipe, Path)
    return check_plan(open_context(recipe, Silent()), plan_run(recipe, sft_run(recipe)))


def allowed(model: Any, key: str) -> set[str]:
    return set(get_args(model.model_fields[key].annotation))


def test_the_recipe_knows_the_same_tasks() -> None:
    assert allowed(PromptSection, "task") == set(TASKS)
    assert PromptSection().task == find_reported_task({}).name


@every_task
def test_a_task_is_found_by_its_name_and_has_a_file_of_that_name(task: Task) -> None:
    folder = Path(llmrec_cli.tasks.__file__).parent
    assert (folder / f"{task.name.replace('-', '_')}.py").is_file()
    assert TASKS[task.name] is task
    assert find_reported_task({"task": task.name}) is task


@pytest.mark.parametrize("reported", [{}, {"task": "unheard-of"}, {"task": ["a"]}])
def test_a_report_that_names_no_known_task_is_of_the_default(reported: dict[str, Any]) -> None:
    assert find_reported_task(reported).name == PromptSection().task


@every_task
def test_what_a_task_declares_is_what_recipes_and_comparisons_know(task: Task) -> None:
    assert set(task.select) <= allowed(TrainSection, "select")
    assert set(task.rows) <= allowed(TrainSection, "rows")
    assert set(task.policies) <= set(get_args(SeenPolicy))
    assert {*task.own_formats, *task.unfit_formats} <= set(get_args(DataFormat))
    assert set(task.baselines) <= allowed(BaselineSection, "model") or "pop" in task.baselines
    assert task.candidates.format("all") != task.candidates
    for path in task.unused:
        found: Any = read_recipe("quickstart")
        for key in path:
            found = getattr(found, key)


def test_every_format_is_of_some_task_and_none_is_of_two() -> None:
    for form in get_args(DataFormat):
        owners = [task.name for task in TASKS.values() if form in task.own_formats]
        readers = [task for task in TASKS.values() if form not in task.unfit_formats]
        assert len(owners) <= 1
        assert readers


@every_task
def test_a_recipe_of_the_task_loads_and_other_choices_are_refused(
    task: Task, at_home: Path
) -> None:
    assert read_recipe("r.toml", words_of(task)).task is task
    for key, known in (("select", task.select), ("rows", task.rows)):
        for value in allowed(TrainSection, key) - set(known):
            with pytest.raises(RecipeError, match=f'{key} = "{value}".* needs "'):
                read_recipe("r.toml", [*words_of(task), f"train.{key}={value}"])
    for form in task.unfit_formats:
        with pytest.raises(RecipeError, match=f'format = "{form}": task "{task.name}" '):
            read_recipe("r.toml", [*words_of(task), f"data.format={form}", "data.index=x"])


@every_task
def test_keys_without_use_are_noted(task: Task, at_home: Path) -> None:
    for path, why in task.unused.items():
        notes = list[str]()
        value = {"auc": "true", "seen": "remove", "cutoffs": "[3]"}.get(path[-1], "{beams=7}")
        read_recipe("r.toml", [*words_of(task), f"{'.'.join(path)}={value}"], say=notes.append)
        assert any(why in note for note in notes), path


@every_task
def test_rows_are_made_checked_and_shown_alike(task: Task, at_home: Path) -> None:
    stage = open_stage(task)
    operations = load_operations(task)
    made = operations.make_rows(stage, False)
    operations.check_rows(stage, False)
    shown = operations.show_rows(stage, made)
    assert 0 < len(made.rows) == shown.count
    assert 0 < len(made.valid_rows) <= stage.section.validate_rows
    assert min(measure_rows(stage, made).tokens) > 0
    assert all(shown.first)
    assert set(made.left_out) == {"train", "valid"}


@every_task
def test_answers_are_encoded_as_an_export_compares_them(task: Task, at_home: Path) -> None:
    context = open_stage(task).context
    frame = context.prepared.split("test").head(3)
    encoded = load_operations(task).encode_answers(context, frame, "test")
    assert len(encoded) == 3
    decode = context.codec.tokenizer.decode
    for (prompt, answer), target in zip(encoded, frame[TARGET], strict=True):
        assert answer[-1] == context.codec.eos
        assert context.prepared.items["title"].iloc[target] in decode(answer)
        assert len(prompt) + len(answer) <= longest_row(context)
    example = load_operations(task).make_example(context)
    assert (example is None) == task.ranks_catalogue


@every_task
def test_a_prompt_without_room_is_found_before_training(task: Task, at_home: Path) -> None:
    operations = load_operations(task)
    operations.check_evaluation(open_stage(task).context)
    for check in (
        operations.check_rows,
        lambda stage, _: operations.check_evaluation(stage.context),
    ):
        with pytest.raises(UserError, match=r"max_tokens = 8"):
            check(open_stage(task, "prompt.max_tokens=8", f"name={task.name}-narrow"), False)


@every_task
def test_a_run_is_trained_evaluated_and_compared(task: Task, at_home: Path) -> None:
    compared = run.run(read_recipe("r.toml", words_of(task)), progress=Silent()).comparison
    assert [own.name for own in compared.standings] == ["baseline-pop", "sft", "align-lml"]
    assert compared.headline == task.policies[0]
    assert compared.candidates.startswith(task.candidates.partition("{}")[0])


def test_a_module_without_operations_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("llmrec_cli.tasks.generate_operations")
    module.OPERATIONS = None  # type: ignore[attr-defined]  # what a mistaken file would hold
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(TypeError, match=r"generate_operations\.py: OPERATIONS is NoneType"):
        load_operations(TASKS["generate"])
