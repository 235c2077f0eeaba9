"""What a recipe's task and its packed rows rule out: problems that no single table can see."""

from __future__ import annotations

from collections.abc import Iterator

from llmrec_cli.methods import find
from llmrec_cli.recipe.baseline import UNTRAINED
from llmrec_cli.recipe.data import DataSection, clock_problem
from llmrec_cli.recipe.formats import one_of
from llmrec_cli.recipe.model import TREE_ATTENTION
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.recipe.stages import AlignSection
from llmrec_cli.recipe.train import TrainSection

DRAWS = ("uniform", "popularity", "disliked")  # what a pair's other candidate can be drawn by


def data_problems(recipe: Recipe) -> Iterator[str]:
    """What a ``[data]`` section asks of a source that cannot give it, one line per problem."""
    for table, data in _data_tables(recipe):
        if (problem := clock_problem(data)) is not None:
            yield f"[{table}] {problem}"
        if data.format == "semantic-ids" and data.identity == "disambiguate":
            yield (
                f'[{table}] identity = "disambiguate": semantic IDs have no title to extend; '
                'use "merge"'
            )
        if data.format == "interactions" and data.metadata and not data.columns.title:
            yield f"[{table}.columns] title is missing: which column of metadata has titles?"


def _data_tables(recipe: Recipe) -> Iterator[tuple[str, DataSection]]:
    yield "data", recipe.data
    if recipe.eval.data is not None:
        yield "eval.data", recipe.eval.data


def task_problems(recipe: Recipe) -> Iterator[str]:
    """One line per problem, as in ``load_recipe``."""
    pair = recipe.prompt.task == "rank-pair"
    if recipe.prompt_for_eval.task != recipe.prompt.task:
        ours = recipe.prompt_for_eval.model_fields_set
        unsaid = "" if "task" in ours else "; a table of its own does not inherit it: set it there"
        yield (
            f'[eval.prompt] task = "{recipe.prompt_for_eval.task}": expected the task that is '
            f'trained, "{recipe.prompt.task}"{unsaid}'
        )
    yield from _format_problems(recipe, pair)
    stages = dict(_trained(recipe))
    for table, train in stages.items():
        yield from _train_problems(table, train, pair)
    if pair and any("select" not in train.model_fields_set for train in stages.values()):
        yield (
            f'[train] select is not set, and its default "{TrainSection().select}" ranks the '
            'catalogue: task "rank-pair" needs select = "auc" or "loss"'
        )
    yield from _packing_problems(recipe)
    if pair:
        yield from _template_problems(recipe)
        for name, baseline in recipe.baseline.items():
            if baseline.model != "pop":
                yield f'[baseline.{name}]: ranks the catalogue; task "rank-pair" knows pop only'
        for name, section in recipe.align.items():
            yield from _method_problems(name, section, given=recipe.data.format == "rank-pairs")


def _format_problems(recipe: Recipe, pair: bool) -> Iterator[str]:
    for table, data in _data_tables(recipe):
        if data.format == "rank-pairs" and not pair:
            yield (
                f'[{table}] format = "rank-pairs": needs [prompt] task = "rank-pair", with a '
                'wording such as "games" as its template, and train.select = "auc" or "loss"'
            )
        if data.format == "semantic-ids" and pair:
            yield f'[{table}] format = "semantic-ids": task "rank-pair" ranks titles; it has none'


def _trained(recipe: Recipe) -> Iterator[tuple[str, TrainSection]]:
    """The training settings of every stage, and their tables."""
    yield "sft.train", recipe.sft.train
    for name, section in recipe.align.items():
        yield f"align.{name}.train", section.train
    for name, baseline in recipe.baseline.items():
        if baseline.model not in UNTRAINED and recipe.prompt.task == "generate":
            yield f"baseline.{name}.train", baseline.train


def _train_problems(table: str, train: TrainSection, pair: bool) -> Iterator[str]:
    written = "select" in train.model_fields_set
    if written and train.select == ("ndcg" if pair else "auc"):
        expected = '"auc" or "loss"' if pair else '"ndcg" or "loss"'
        task = "rank-pair" if pair else "generate"
        yield f'[{table}] select = "{train.select}": task "{task}" needs {expected}'
    if pair and train.rows != "window":
        yield f'[{table}] rows = "{train.rows}": task "rank-pair" needs "window"'


def _packing_problems(recipe: Recipe) -> Iterator[str]:
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


def _template_problems(recipe: Recipe) -> Iterator[str]:
    for table, prompt in (("prompt", recipe.prompt), ("eval.prompt", recipe.eval.prompt)):
        if prompt is not None and prompt.template == "sequence":
            yield (
                f'[{table}] template = "sequence": task "rank-pair" needs a wording, such as '
                '"games", "movies" or "items"'
            )


def _method_problems(name: str, section: AlignSection, given: bool) -> Iterator[str]:
    method = find(section.method)
    negatives = method.needs(section.options).negatives
    where = f"[align.{name}]"
    draws = "" if given else f" (with negatives = {one_of(DRAWS)}, but for lml)"
    known = f"expected method dmpo, dpo, sdpo or lml{draws}"
    legal, compares = method.legal_only(section.options), negatives is not None
    if legal and (compares or "support" not in type(section.options).model_fields):
        what = f'method = "{section.method}": looks at the catalogue\'s tokens only'
        instead = "" if compares else f", which it has not; {known}"
        yield f'{where} {what}; task "rank-pair" ranks texts and needs support = "vocab"{instead}'
    elif negatives is None and section.method != "lml":
        yield (
            f'{where} method = "{section.method}": task "rank-pair" knows chosen and rejected '
            f"answers; {known}"
        )
    elif negatives is not None and negatives.draw not in DRAWS and not given:
        yield (
            f'{where} negatives = "{negatives.draw}": task "rank-pair" draws the other candidate '
            f"without asking a model, by {', '.join(DRAWS)}"
        )
