"""The rank-pair task of a recipe: its rows for a training stage, and for evaluation.

given:  pairs of the source       -> the same pair rows in every epoch
own:    (history, target) rows    -> one liked item against drawn ones, anew in every epoch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmrec_cli.data.columns import DISLIKED, NEGATIVES, PREFERENCE, USER_ID
from llmrec_cli.data.leaves import gather_leaves
from llmrec_cli.data.negatives import count_disliked, fixed_negatives, owned_entries
from llmrec_cli.data.prompts import load_rank_template, require_titles
from llmrec_cli.engine.pairs import (
    DrawnPairs,
    PairEncoder,
    UserPairs,
    fixed_pairs,
    given_pairs,
    question_rows,
    require_k,
    require_room,
    score_pairs,
)
from llmrec_cli.engine.rows import AnyRow, LeftOut, PairRow, count_left_out
from llmrec_cli.methods.contract import Negatives
from llmrec_cli.recipe.data import PromptSection
from llmrec_cli.recipe.train import TrainSection
from llmrec_cli.stage.workbench import Workbench, subset
from llmrec_cli.training.dataset import RowTransform
from llmrec_cli.training.negatives import NegativeSampler, users_of

ONE_UNIFORM = Negatives(k=1, draw="uniform")


@dataclass(frozen=True)
class StageRows:
    """What a training stage works on, whatever its task."""

    rows: Sequence[AnyRow]  # of the rank-pair task: pair rows, or rows to draw pairs for
    valid_rows: Sequence[AnyRow]
    rank_valid: Callable[[Any], Mapping[str, float]]  # of a policy in evaluation mode
    transforms: Sequence[RowTransform] | None = None  # complete the rows; None: negatives do
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)  # of histories, by split
    notes: tuple[str, ...] = ()  # what else a person has to know of these rows


def pair_stage(
    bench: Workbench, section: TrainSection, wanted: Negatives | None, *, aligns: bool
) -> StageRows:
    """Training and validation rows of a stage.

    Args:
        wanted: the method's negatives; None: the other candidate of every row is drawn uniformly.
        aligns: the stage reads the source's pairs to align on, where it has any.

    Raises:
        DataError: a user has more or fewer pairs than the method takes, or too few items to draw.
    """
    prepared, encoder = bench.prepared, pair_encoder(bench, bench.recipe.prompt)
    frame = prepared.split(PREFERENCE if aligns and PREFERENCE in prepared.splits else "train")
    valid = subset(prepared.split("valid"), section.validate_rows)
    asked = questions(bench, valid, "valid")
    encoded = encoder.encode(asked)
    valid_rows, notes = _equally_many(encoded)
    left_out = {"valid": left_out_of_pairs(asked, encoded)}

    def rank_valid(policy: Any) -> Mapping[str, float]:
        ranks = bench.ranks
        scores = score_pairs(policy, valid_rows, bench.trie, batch=section.batch, ranks=ranks)
        return {"auc_paired": auc_paired(valid[USER_ID].tolist(), scores)}

    if NEGATIVES in frame.columns:
        training = given_pairs(frame)
        given = encoder.encode(training)
        require_k(given, wanted.k if wanted else None, frame[USER_ID].tolist())
        left_out["train"] = left_out_of_pairs(training, given)
        return StageRows(given, valid_rows, rank_valid, (), left_out, notes)
    sampler = _sampler(bench, frame, wanted or ONE_UNIFORM)
    asked_rows = question_rows(frame)
    own = sampler.require(asked_rows)
    notes += sampler.dropped(asked_rows, own)
    steps_per_epoch = -(-len(own) // section.batch)
    draw = DrawnPairs(encoder, sampler, bench.recipe.seed, steps_per_epoch)
    first = [row for row in draw(own, 0) if isinstance(row, PairRow)]  # pairs of the first epoch
    whole = (len(row.history) for row in own for _ in range((wanted or ONE_UNIFORM).k))
    left_out["train"] = count_left_out(whole, (n for row in first for n in row.left_out))
    return StageRows(own, valid_rows, rank_valid, (draw,), left_out, notes)


def pair_encoder(bench: Workbench, prompt: PromptSection) -> PairEncoder:
    """Encodes pairs of the workbench's catalogue.

    Raises:
        RecipeError: the template has no wording for the task.
        DataError: an item has no title to be shown, or no item of a history has room.
    """
    template = load_rank_template(prompt.template, Path)
    titles = require_titles(prompt.template, template.render_history, bench.prepared.items)
    encoder = PairEncoder(template, bench.codec, titles, prompt.max_tokens, bench.room.context)
    require_room(encoder, prompt.template)
    return encoder


def questions(bench: Workbench, frame: pd.DataFrame, split: str) -> list[UserPairs]:
    """The pairs of a validation or test split: the source's, or one fixed one per row."""
    if NEGATIVES in frame.columns:
        return given_pairs(frame)
    entry_I = bench.leaf_of_item.astype(np.int64)
    owned = owned_entries([bench.prepared.split(name) for name in bench.prepared.splits], entry_I)
    seed, stream = bench.recipe.seed, f"{split}-pairs"
    others = fixed_negatives(frame, owned, entry_I, seed=seed, stream=stream)
    return fixed_pairs(frame, others, seed)


def candidates(frame: pd.DataFrame, asked: Sequence[UserPairs]) -> str:
    """Where the other candidates of ``questions`` come from, in words and counts."""
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


def _sampler(bench: Workbench, frame: pd.DataFrame, wanted: Negatives) -> NegativeSampler:
    leaves = gather_leaves(bench.prepared.items, bench.leaf_of_item)
    users = users_of(frame, leaves, wanted.below)
    return NegativeSampler(wanted, leaves, users, bench.recipe.seed)


def left_out_of_pairs(asked: Sequence[UserPairs], rows: Sequence[PairRow]) -> LeftOut:
    """How much of their histories the prompts of these pairs leave out."""
    whole = (len(pairs.history) for pairs in asked for _ in pairs.others)
    return count_left_out(whole, (n for row in rows for n in row.left_out))


def _equally_many(rows: Sequence[PairRow]) -> tuple[list[PairRow], tuple[str, ...]]:
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
