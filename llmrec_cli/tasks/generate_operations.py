"""The operations of the generate task: rows of histories and catalogue items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import ItemTasks
from llmrec_cli.data.histories import read_histories
from llmrec_cli.data.schema import TARGET
from llmrec_cli.errors import RecipeError
from llmrec_cli.evaluation.ranking import measure_left_out, validation_metrics
from llmrec_cli.pipeline.loading import make_language_ranker
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.pipeline.setup import (
    CatalogueContext,
    build_training_rows,
    build_window_rows,
    choose_rows,
)
from llmrec_cli.runs.record import Existing
from llmrec_cli.runs.run import Run
from llmrec_cli.tasks.base import Operations, ShownRows, StageRows
from llmrec_cli.tensors.trie import paths
from llmrec_cli.training.item_tasks import ItemTaskEncoder, ItemTaskRows
from llmrec_cli.training.negatives import only_catalogue_rows
from llmrec_cli.training.rollouts import require_rollouts
from llmrec_cli.training.rows import (
    AnyRow,
    IntArray,
    Prompts,
    Row,
    count_rows_left_out,
    window_rows,
)
from llmrec_cli.utils.progress import Progress

if TYPE_CHECKING:
    from llmrec_cli.pipeline.compare import Compared

_LOOKED_AT = 1000  # training rows among which validate looks for a long history


def _make_rows(stage: TrainingStage, aligns: bool) -> StageRows:
    """Rows of a stage that learns to generate the next item."""
    context, recipe = stage.context, stage.context.recipe
    rows = build_training_rows(context, stage.section.rows)
    sampler = stage.sampler()
    valid = choose_rows(context.prepared.split("valid"), stage.section.validate_rows)

    def rank_valid(policy: Any, progress: Progress) -> dict[str, float]:
        ranker, cutoff = make_language_ranker(context, policy.model), max(recipe.eval.cutoffs)
        leaf_of_item = context.leaf_of_item
        return validation_metrics(ranker, context.ranks, valid, leaf_of_item, cutoff, progress)

    usable = sampler.require(rows) if sampler else rows
    valid_rows = build_window_rows(context, valid)
    _check_rollouts(stage)
    left_out = {
        "train": count_rows_left_out(context.prepared.split("train"), rows),
        "valid": count_rows_left_out(valid, valid_rows),
    }
    notes = sampler.describe_dropped(rows, usable) if sampler else ()
    made: Sequence[AnyRow] = usable
    if stage.item_tasks is not None:
        added = _make_item_tasks(stage, stage.item_tasks, usable)
        made = [*usable, *(row for found in added for row in found.rows)]
        notes = (*notes, _describe_item_tasks(added, made))
    return StageRows(made, valid_rows, rank_valid, left_out=left_out, notes=notes)


def _make_item_tasks(
    stage: TrainingStage, tasks: ItemTasks, rows: Sequence[Row]
) -> list[ItemTaskRows]:
    """The rows of item tasks beside the rows that recommend."""
    answers = sum(len(row.targets) for row in rows)
    encoder, seed = _encode_item_tasks(stage.context), stage.context.recipe.seed
    return encoder.make_rows(tasks.shares, answers, len(rows), seed)


def _encode_item_tasks(context: CatalogueContext) -> ItemTaskEncoder:
    template = context.encoder.marked
    if template is None:
        raise TypeError("a recipe with item tasks has a template of words")
    return ItemTaskEncoder(
        template,
        context.codec,
        context.prepared.items,
        context.catalogue,
        context.room.prompt,
        context.room.context,
    )


def _describe_item_tasks(added: Sequence[ItemTaskRows], rows: Sequence[AnyRow]) -> str:
    count = sum(len(found.rows) for found in added)
    listed = ", ".join(found.describe() for found in added)
    return f"{count:,} of {len(rows):,} rows are of item tasks: {listed}"


def _check_rows(stage: TrainingStage, aligns: bool) -> None:
    """Refuse prompts without room for an item, and rows with too few negatives or rollouts."""
    require_prompt_room(stage.context)
    _check_negatives(stage)
    _check_rollouts(stage)
    for task in stage.item_tasks.shares if stage.item_tasks else ():
        _encode_item_tasks(stage.context).show_first(task)


def require_prompt_room(context: CatalogueContext) -> None:
    """Refuse a wording that leaves no room for any item."""
    context.encoder.encode([()])


def _show_rows(stage: TrainingStage, found: StageRows) -> ShownRows:
    """The first row with, beside each token of an answer, how many tokens are legal there.

    Behind it stands the prompt of a long history as text, since a first row has a short one.
    """
    (first,) = only_catalogue_rows(found.rows[:1])
    lines = [*_show_row(stage.context, first), *_show_long_prompt(stage.context)]
    if stage.item_tasks is not None:
        lines += _show_item_tasks(stage.context, stage.item_tasks)
    return ShownRows(len(found.rows), tuple(lines))


def describe_left_out(context: CatalogueContext, frame: pd.DataFrame) -> str | None:
    """What the prompts of these rows have no room for."""
    return measure_left_out(context.encoder, context.ranks, frame).line(context.encoder.why)


def _evaluate(
    recipe: Recipe, runs: Sequence[Run], split: str, existing: Existing, progress: Progress
) -> Compared:
    """Rank the whole catalogue for every row of the split."""
    from llmrec_cli.pipeline.evaluate import evaluate_catalogue  # training does not need it

    return evaluate_catalogue(recipe, runs, split=split, existing=existing, progress=progress)


def _encode_answers(
    context: CatalogueContext, frame: pd.DataFrame, split: str
) -> list[tuple[IntArray, IntArray]]:
    """Every row's prompt, and its target."""
    prompts = context.encoder.encode(read_histories(frame))
    answers = [context.catalogue[item] for item in frame[TARGET]]
    return list(zip(prompts, answers, strict=True))


@dataclass(frozen=True)
class _NoPrompts:
    """Rows whose prompts nobody looks at: nothing is tokenized."""

    def encode_counted(self, histories: Sequence[Sequence[int]]) -> Prompts:
        none = np.zeros(0, np.int32)
        return Prompts([none] * len(histories), np.zeros(len(histories), np.int32))


def _list_windows(frame: pd.DataFrame) -> list[Row]:
    """The window rows of a split, without prompts."""
    return window_rows(frame, _NoPrompts())


def _check_rollouts(stage: TrainingStage) -> None:
    """Refuse a catalogue, and histories, that leave too few entries as rollouts."""
    wanted, context = stage.needs.rollouts, stage.context
    if wanted is None:
        return
    if wanted.k > context.trie.n_leaves:
        raise RecipeError(
            f"k = {wanted.k}: the catalogue has {context.trie.n_leaves} entries, and rollouts are "
            "different ones; lower k"
        )
    if wanted.seen == "keep":
        return
    valid = choose_rows(context.prepared.split("valid"), stage.section.validate_rows)
    for frame in (context.prepared.split("train"), valid):
        require_rollouts(_list_windows(frame), wanted, context.leaf_of_item)


def _check_negatives(stage: TrainingStage) -> None:
    sampler, prepared = stage.sampler(), stage.context.prepared
    if sampler is None:
        return
    wanted, batch = sampler.wanted, stage.section.batch
    usable = sampler.require(_list_windows(prepared.split("train")))
    sampler.usable_rows(_list_windows(prepared.split("valid")))
    smallest = len(usable) % batch or batch  # the last update of an epoch
    if wanted.draw == "in-batch" and stage.section.rows == "window" and smallest <= wanted.k:
        raise RecipeError(
            f'k = {wanted.k}: negatives = "in-batch" draws from the other rows of an update, and '
            f"{len(usable):,} rows with train.batch = {batch} leave {smallest} rows for the last "
            f"update of an epoch; expected at least {wanted.k + 1}: choose another train.batch, or "
            "lower k"
        )


def _show_row(context: CatalogueContext, row: Row) -> Iterator[str]:
    words = context.codec.tokenizer.convert_ids_to_tokens
    yield "prompt: " + " ".join(words(row.prompt.tolist()))
    leaf_B = context.trie.leaf_of_item_I[torch.tensor(row.targets[:3])]
    node_BT, token_BT, length_B = paths(context.trie, leaf_B)
    for nodes, tokens, length in zip(node_BT, token_BT, length_B.tolist(), strict=True):
        legal = context.trie.fan_out(nodes[:length]).tolist()
        shown = zip(words(tokens[:length].tolist()), legal, strict=True)
        yield "target: " + " ".join(f"{word}:{n}" for word, n in shown)
    if len(row.targets) > 3:
        yield f"... and {len(row.targets) - 3} more targets"


def _show_long_prompt(context: CatalogueContext) -> Iterator[str]:
    """The prompt of the longest history among the first training rows, as the model reads it."""
    histories = read_histories(context.prepared.split("train").head(_LOOKED_AT))
    longest = max(histories, key=len)
    (prompt,) = context.encoder.encode([longest])
    items = "1 item" if len(longest) == 1 else f"{len(longest)} items"
    yield f"as text, the prompt of a history of {items}:"
    yield context.codec.tokenizer.decode(prompt.tolist(), clean_up_tokenization_spaces=False)


def _show_item_tasks(context: CatalogueContext, tasks: ItemTasks) -> Iterator[str]:
    """A row of each item task, as text."""
    encoder = _encode_item_tasks(context)
    for task in tasks.shares:
        prompt, answer = encoder.show_first(task)
        yield f"as text, a row of {task}:"
        yield context.codec.spell([*prompt.tolist(), *answer.tolist()])


OPERATIONS = Operations(
    make_rows=_make_rows,
    check_rows=_check_rows,
    show_rows=_show_rows,
    describe_left_out=describe_left_out,
    check_evaluation=require_prompt_room,
    evaluate=_evaluate,
    encode_answers=_encode_answers,
    make_example=lambda context: None,  # rank.py, which an export brings, shows more
)
