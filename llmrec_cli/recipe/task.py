"""Problems that no single table can see: names, parents, sources, the task, packed rows."""

from __future__ import annotations

from collections.abc import Iterator

from llmrec_cli.methods import find
from llmrec_cli.recipe.baseline import CONVENTIONAL, UNTRAINED
from llmrec_cli.recipe.data import DataSection, clock_problem
from llmrec_cli.recipe.formats import one_of
from llmrec_cli.recipe.model import TREE_ATTENTION
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.stages import ALIGNMENTS, AlignSection, StageSection
from llmrec_cli.recipe.toml import show
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.tasks import TASKS
from llmrec_cli.tasks.base import Task


def name_problems(recipe: Recipe) -> Iterator[str]:
    """Tables that say the name of what is a table of its own."""
    for tables, found in ((ALIGNMENTS, recipe.align), (CONVENTIONAL, recipe.baseline)):
        for name, only in tables.misnamed(found).items():
            said = getattr(found[name], tables.key)
            yield (
                f"[{tables.table}.{name}] {tables.key} = {show(said)}: {only} is "
                f"[{tables.table}.{only}] alone"
            )


def link_problems(recipe: Recipe) -> Iterator[str]:
    """What a stage asks of another table that does not grant it: the first one alone."""
    stages: dict[str, StageSection | AlignSection] = {"sft": recipe.sft}
    stages |= {f"align.{name}": section for name, section in recipe.align.items()}
    template = recipe.prompt.template
    for name, stage in stages.items() if "sequence" in recipe.task.rows else ():
        if stage.train.rows == "sequence" and template != "sequence":
            yield (
                f'[{name}.train] rows = "sequence" needs prompt.template = "sequence", not '
                f'"{template}": a text prompt is not a prefix of the next one'
            )
            return
    try:
        recipe.in_order()
    except ValueError as error:
        yield str(error)


def data_problems(recipe: Recipe) -> Iterator[str]:
    """What a ``[data]`` section asks of a source that cannot give it, one line per problem."""
    for table, data in _list_data_tables(recipe):
        if (problem := clock_problem(data)) is not None:
            yield f"[{table}] {problem}"
        if data.form.items_are_tokens and data.identity == "disambiguate":
            yield (
                f'[{table}] identity = "disambiguate": semantic IDs have no title to extend; '
                'use "merge"'
            )
        if data.form.names_columns and data.metadata and not data.columns.title:
            yield f"[{table}.columns] title is missing: which column of metadata has titles?"


def _list_data_tables(recipe: Recipe) -> Iterator[tuple[str, DataSection]]:
    yield "data", recipe.data
    if recipe.eval.data is not None:
        yield "eval.data", recipe.eval.data


def task_problems(recipe: Recipe) -> Iterator[str]:
    """One line per problem, as in ``load_recipe``."""
    task = recipe.task
    if recipe.prompt_for_eval.task != recipe.prompt.task:
        ours = recipe.prompt_for_eval.model_fields_set
        unsaid = "" if "task" in ours else "; a table of its own does not inherit it: set it there"
        yield (
            f'[eval.prompt] task = "{recipe.prompt_for_eval.task}": expected the task that is '
            f'trained, "{recipe.prompt.task}"{unsaid}'
        )
    yield from _check_formats(recipe)
    stages = dict(_list_trainings(recipe))
    for table, train in stages.items():
        yield from _check_training(table, train, task)
    default = TrainSection.model_fields["select"].default
    unset = any("select" not in train.model_fields_set for train in stages.values())
    if default not in task.select and unset:
        yield (
            f'[train] select is not set, and its default "{default}" ranks the '
            f'catalogue: task "{task.name}" needs select = {one_of(task.select)}'
        )
    yield from _check_packing(recipe)
    if task.shows_candidates:
        yield from _check_templates(recipe)
    for name, baseline in recipe.baseline.items():
        if task.baselines and baseline.model not in task.baselines:
            known = ", ".join(task.baselines)
            yield f'[baseline.{name}]: ranks the catalogue; task "{task.name}" knows {known} only'
    for name, section in recipe.align.items():
        problems = task.check_method(section, recipe.data.format in task.own_formats)
        yield from (f"[align.{name}] {problem}" for problem in problems)


def _check_formats(recipe: Recipe) -> Iterator[str]:
    """Formats that belong to another task, or that the recipe's cannot read."""
    for table, data in _list_data_tables(recipe):
        named = f'[{table}] format = "{data.format}"'
        for task in TASKS.values():
            if task is not recipe.task and data.format in task.own_formats:
                hint = task.own_formats[data.format]
                yield f'{named}: needs [prompt] task = "{task.name}", {hint}'
        if data.format in recipe.task.unfit_formats:
            why = recipe.task.unfit_formats[data.format]
            yield f'{named}: task "{recipe.task.name}" {why}'


def _list_trainings(recipe: Recipe) -> Iterator[tuple[str, TrainSection]]:
    """The training settings of every stage, and their tables."""
    yield "sft.train", recipe.sft.train
    for name, section in recipe.align.items():
        yield f"align.{name}.train", section.train
    for name, baseline in recipe.baseline.items():
        if baseline.model not in UNTRAINED and recipe.task.ranks_catalogue:
            yield f"baseline.{name}.train", baseline.train


def _check_training(table: str, train: TrainSection, task: Task) -> Iterator[str]:
    needs = f'task "{task.name}" needs'
    if "select" in train.model_fields_set and train.select not in task.select:
        yield f'[{table}] select = "{train.select}": {needs} {one_of(task.select)}'
    if train.rows not in task.rows:
        yield f'[{table}] rows = "{train.rows}": {needs} {one_of(task.rows)}'


def _check_packing(recipe: Recipe) -> Iterator[str]:
    """Stages whose rows are packed, with attention that would ignore the mask."""
    if recipe.model.attention in TREE_ATTENTION:
        return
    packed = {"sft.train": recipe.sft.train.rows == "user"}
    for name, section in recipe.align.items():
        negatives = find(section.method).needs(section.options).negatives
        packed[f"align.{name}"] = section.train.rows == "user" or negatives is not None
    for table in (table for table, packs in packed.items() if packs):
        yield (
            f"[{table}] packs several answers into a row: model.attention = "
            f'"{recipe.model.attention}" cannot mask them, expected {" or ".join(TREE_ATTENTION)}'
        )


def _check_templates(recipe: Recipe) -> Iterator[str]:
    for table, prompt in (("prompt", recipe.prompt), ("eval.prompt", recipe.eval.prompt)):
        if prompt is not None and prompt.template == "sequence":
            yield (
                f'[{table}] template = "sequence": task "{recipe.task.name}" needs a wording, '
                'such as "games", "movies" or "items"'
            )
