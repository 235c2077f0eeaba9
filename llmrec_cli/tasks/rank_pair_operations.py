"""The operations of the rank-pair task: pairs for training, for validation, and for display.

given:  pairs of the source       -> the same pair rows in every epoch
own:    (history, target) rows    -> one liked item against drawn ones, anew in every epoch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from llmrec_cli.config.data import PromptSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.data.negatives import count_disliked, fixed_negatives, owned_entries
from llmrec_cli.data.prompts import Question, load_rank_template, require_titles
from llmrec_cli.data.schema import COUNT, DISLIKED, NEGATIVES, PREFERENCE, TITLE, USER_ID
from llmrec_cli.errors import DataError
from llmrec_cli.methods.contract import Negatives
from llmrec_cli.pipeline.context import CatalogueContext, choose_rows
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.runs.record import Existing
from llmrec_cli.runs.run import Run
from llmrec_cli.tasks.operations import Operations, ShownRows, StageRows
from llmrec_cli.tasks.pairs import (
    DrawPairs,
    PairEncoder,
    UserPairs,
    fix_pairs,
    make_question_rows,
    parse_pairs,
    require_history_room,
    require_pair_count,
    score_pairs,
)
from llmrec_cli.training.dataset import Dataset
from llmrec_cli.training.negatives import NegativeSampler, gather_users
from llmrec_cli.training.rows import IntArray, LeftOut, PairRow, count_left_out
from llmrec_cli.utils.progress import Progress

if TYPE_CHECKING:
    from llmrec_cli.pipeline.compare import Compared

ONE_UNIFORM = Negatives(k=1, draw="uniform")


def make_rows(stage: TrainingStage, aligns: bool) -> StageRows:
    """Pairs to train on and to validate with.

    Where the method asks for no negatives, the other candidate of every row is drawn uniformly.

    Args:
        aligns: the stage reads the source's pairs to align on, where it has any.

    Raises:
        DataError: a user has more or fewer pairs than the method takes, or too few items to draw.
    """
    bench, section, wanted = stage.bench, stage.section, stage.needs.negatives
    prepared, encoder = bench.prepared, make_pair_encoder(bench, bench.recipe.prompt)
    frame = prepared.split(PREFERENCE if aligns and PREFERENCE in prepared.splits else "train")
    valid = choose_rows(prepared.split("valid"), section.validate_rows)
    asked = choose_pairs(bench, valid, "valid")
    encoded = encoder.encode(asked)
    valid_rows, notes = _trim_to_fewest(encoded)
    left_out = {"valid": count_pairs_left_out(asked, encoded)}

    def rank_valid(policy: Any) -> Mapping[str, float]:
        ranks = bench.ranks
        scores = score_pairs(policy, valid_rows, bench.trie, batch=section.batch, ranks=ranks)
        return {"auc_paired": auc_paired(valid[USER_ID].tolist(), scores)}

    if NEGATIVES in frame.columns:
        training = parse_pairs(frame)
        encoded_training = encoder.encode(training)
        require_pair_count(encoded_training, wanted.k if wanted else None, frame[USER_ID].tolist())
        left_out["train"] = count_pairs_left_out(training, encoded_training)
        return StageRows(encoded_training, valid_rows, rank_valid, (), left_out, notes)
    sampler = _make_sampler(bench, frame, wanted or ONE_UNIFORM)
    asked_rows = make_question_rows(frame)
    own = sampler.require(asked_rows)
    notes += sampler.dropped(asked_rows, own)
    steps_per_epoch = -(-len(own) // section.batch)
    draw = DrawPairs(encoder, sampler, bench.recipe.seed, steps_per_epoch)
    first = [row for row in draw(own, 0) if isinstance(row, PairRow)]  # pairs of the first epoch
    whole = (len(row.history) for row in own for _ in range((wanted or ONE_UNIFORM).k))
    left_out["train"] = count_left_out(whole, (n for row in first for n in row.left_out))
    return StageRows(own, valid_rows, rank_valid, (draw,), left_out, notes)


def check_rows(stage: TrainingStage, aligns: bool) -> None:
    """What ``make_rows`` refuses."""
    make_rows(stage, aligns)


def show_rows(stage: TrainingStage, aligns: bool) -> ShownRows:
    """The first pair: its prompt, and both answers."""
    found = make_rows(stage, aligns)
    completed = Dataset(found.rows, found.transforms or ()).complete_rows(found.rows, 0)
    rows = [row for row in completed if isinstance(row, PairRow)]
    words = stage.bench.codec.tokenizer.convert_ids_to_tokens
    chosen, rejected = rows[0].answers[0]
    first = {"prompt": rows[0].prompts[0], "chosen": chosen, "rejected": rejected}
    longest = max(
        len(prompt) + max(map(len, answers))
        for row in rows
        for prompt, answers in zip(row.prompts, row.answers, strict=True)
    )
    lines = tuple(f"{name}: {' '.join(words(ids.tolist()))}" for name, ids in first.items())
    return ShownRows(len(rows), lines, longest)


def check_evaluation(bench: CatalogueContext) -> None:
    """Refuse a test split without rows, or whose prompts cannot be made."""
    frame = bench.prepared.split("test")
    if len(frame) == 0:
        raise DataError(f"{bench.prepared.folder}: no test rows")
    make_pair_encoder(bench, bench.recipe.prompt_for_eval).encode(
        choose_pairs(bench, frame, "test")
    )


def evaluate(
    recipe: Recipe, runs: Sequence[Run], split: str, existing: Existing, progress: Progress
) -> Compared:
    """Score the pairs of the split."""
    from llmrec_cli.tasks.rank_pair_evaluation import evaluate_pairs  # training does not need it

    return evaluate_pairs(recipe, runs, split=split, existing=existing, progress=progress)


def encode_answers(
    bench: CatalogueContext, frame: pd.DataFrame, split: str
) -> list[tuple[IntArray, IntArray]]:
    """The prompt of every row's first pair, and its chosen answer."""
    encoder = make_pair_encoder(bench, bench.recipe.prompt_for_eval)
    rows = encoder.encode(choose_pairs(bench, frame, split))
    return [(row.prompts[0], row.answers[0][0]) for row in rows]


def make_example(bench: CatalogueContext) -> str:
    """A prompt about the most popular items, and both answers."""
    popular = bench.prepared.items.sort_values(COUNT, ascending=False, kind="stable")
    one, two, liked, other = (popular[TITLE].dropna().tolist() * 4)[:4]
    template = load_rank_template(bench.recipe.prompt_for_eval.template, Path)
    prompt = template.render(Question((one, two), liked, other))
    answers = (template.render_answer(*pair) for pair in ((liked, other), (other, liked)))
    return "\n\n".join([prompt, *answers])


def make_pair_encoder(bench: CatalogueContext, prompt: PromptSection) -> PairEncoder:
    """Encodes pairs of the workbench's catalogue.

    Raises:
        RecipeError: the template has no wording for the task.
        DataError: an item has no title to be shown, or no item of a history has room.
    """
    template = load_rank_template(prompt.template, Path)
    titles = require_titles(prompt.template, template.render_history, bench.prepared.items)
    encoder = PairEncoder(template, bench.codec, titles, prompt.max_tokens, bench.room.context)
    require_history_room(encoder, prompt.template)
    return encoder


def choose_pairs(bench: CatalogueContext, frame: pd.DataFrame, split: str) -> list[UserPairs]:
    """The pairs of a validation or test split: the source's, or one fixed one per row."""
    if NEGATIVES in frame.columns:
        return parse_pairs(frame)
    entry_I = bench.leaf_of_item.astype(np.int64)
    owned = owned_entries([bench.prepared.split(name) for name in bench.prepared.splits], entry_I)
    seed, stream = bench.recipe.seed, f"{split}-pairs"
    others = fixed_negatives(frame, owned, entry_I, seed=seed, stream=stream)
    return fix_pairs(frame, others, seed)


def describe_candidates(frame: pd.DataFrame, asked: Sequence[UserPairs]) -> str:
    """Where the other candidates of ``choose_pairs`` come from, in words and counts."""
    if NEGATIVES in frame.columns:
        return "as given"
    if DISLIKED not in frame.columns:
        return "one fixed uniform negative per row"
    disliked = count_disliked(frame, [user.others[0] for user in asked])
    return f"one fixed negative per row: {disliked:,} disliked, {len(asked) - disliked:,} uniform"


def auc_paired(users: Sequence[str], scores: Sequence[np.ndarray[Any, Any]]) -> float:
    """Share of users whose chosen answer scores higher, ties 1/2; the mean over a user's pairs."""
    above = [((s[:, 0] > s[:, 1]) + 0.5 * (s[:, 0] == s[:, 1])) for s in scores]
    names = np.repeat(users, [len(values) for values in above])
    return float(pd.Series(np.concatenate(above)).groupby(names).mean().mean())


def _make_sampler(
    bench: CatalogueContext, frame: pd.DataFrame, wanted: Negatives
) -> NegativeSampler:
    leaves = gather_entries(bench.prepared.items, bench.leaf_of_item)
    users = gather_users(frame, leaves, wanted.below)
    return NegativeSampler(wanted, leaves, users, bench.recipe.seed)


def count_pairs_left_out(asked: Sequence[UserPairs], rows: Sequence[PairRow]) -> LeftOut:
    """How much of their histories the prompts of these pairs leave out."""
    whole = (len(pairs.history) for pairs in asked for _ in pairs.others)
    return count_left_out(whole, (n for row in rows for n in row.left_out))


def _trim_to_fewest(rows: Sequence[PairRow]) -> tuple[list[PairRow], tuple[str, ...]]:
    """Every user's first k pairs, k what the user with the fewest has: a batch is a rectangle.

    Returns:
        The rows, and what to say of the pairs that are left out.
    """
    k = min((len(row.prompts) for row in rows), default=0)
    cut = [replace(row, prompts=row.prompts[:k], answers=row.answers[:k]) for row in rows]
    pairs, lost = sum(len(row.prompts) for row in rows), sum(len(row.prompts) - k for row in rows)
    if not lost:
        return cut, ()
    return cut, (
        f"validation: left out {lost:,} of {pairs:,} pairs: every user counts with {k}, as many as "
        "the user with the fewest has",
    )


OPERATIONS = Operations(
    make_rows=make_rows,
    check_rows=check_rows,
    show_rows=show_rows,
    describe_left_out=lambda bench, frame: None,  # counted when pairs are made, by every stage
    check_evaluation=check_evaluation,
    evaluate=evaluate,
    encode_answers=encode_answers,
    make_example=make_example,
)
