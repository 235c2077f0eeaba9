"""AUC of the generate task: every row's target beside one item that its user does not own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from llmrec_cli.data.columns import HISTORY, ROW, TARGET, USER_ID
from llmrec_cli.data.leaves import Leaves
from llmrec_cli.data.negatives import fixed_negatives, owned_entries
from llmrec_cli.engine.answer_scores import score_candidates
from llmrec_cli.engine.ranks import Column
from llmrec_cli.models.policy import Policy
from llmrec_cli.report.pairs import CHOSEN_SCORE, OTHER, REJECTED_SCORE, SHOWN_FIRST
from llmrec_cli.stage import workbench
from llmrec_cli.stage.scorer import Score

Floats = np.ndarray[Any, np.dtype[np.float64]]
ScoreTwo = Callable[[pd.DataFrame, list[int]], Floats]
"""(rows, the other item of each) -> score of the target and of the other item, [rows, 2]."""


def candidates_of(bench: workbench.Workbench, frame: pd.DataFrame, split: str) -> list[int]:
    """The other item of every row, always the same: a disliked one where there is one, else any.

    Raises:
        DataError: a user owns the whole catalogue.
    """
    prepared, entry_I = bench.prepared, bench.leaf_of_item.astype(np.int64)
    owned = owned_entries([prepared.split(name) for name in prepared.splits], entry_I)
    seed, stream = bench.recipe.seed, f"{split}-candidates"
    return fixed_negatives(frame, owned, entry_I, seed=seed, stream=stream)


def scored_pairs(frame: pd.DataFrame, others: list[int], score: ScoreTwo) -> pd.DataFrame:
    """The rows of ``frame`` as scored pairs, ``report.pairs.SCHEMA``."""
    score_R2 = score(frame, others)
    columns: dict[str, Any] = {
        OTHER: others,
        SHOWN_FIRST: False,
        CHOSEN_SCORE: score_R2[:, 0],
        REJECTED_SCORE: score_R2[:, 1],
    }
    return frame[[ROW, USER_ID, TARGET]].assign(**columns).reset_index(drop=True)


def by_policy(bench: workbench.Workbench, model: Any) -> ScoreTwo:
    """Log-probabilities, normalised as ``[eval.decode]`` has it."""
    section = bench.recipe.eval
    policy = Policy(model).eval()

    def score(frame: pd.DataFrame, others: list[int]) -> Floats:
        windows = workbench.build_window_rows(bench, frame)

        def work(numbers: Sequence[int]) -> list[Column]:
            rows = [replace(windows[i], negatives=((others[i],),)) for i in numbers]
            score_R2 = score_candidates(
                policy,
                rows,
                bench.trie,
                legal=section.decode.mask == "before",
                temperature=section.decode.temperature,
                batch=section.batch,
                device=bench.ranks.device,
            )
            return [(torch.from_numpy(score_R2), 0)]

        found: Floats = bench.ranks.shared_out(len(windows), work)[0].numpy()
        return found

    return score


def by_scorer(score_all: Score, leaves: Leaves, rows_at_once: int) -> ScoreTwo:
    """Scores of a conventional model."""

    def score(frame: pd.DataFrame, others: list[int]) -> Floats:
        found = np.empty((len(frame), 2))
        asked_R2 = leaves.leaf_of_item_I[np.column_stack([frame[TARGET], others])]
        for start in range(0, len(frame), rows_at_once):
            part = slice(start, start + rows_at_once)
            score_BL = score_all(frame[HISTORY].iloc[part].tolist())
            found[part] = np.take_along_axis(np.asarray(score_BL), asked_R2[part], axis=1)
        return found

    return score


def by_count(leaves: Leaves) -> ScoreTwo:
    """Training interactions: popularity."""

    def score(frame: pd.DataFrame, others: list[int]) -> Floats:
        asked_R2 = leaves.leaf_of_item_I[np.column_stack([frame[TARGET], others])]
        counts: Floats = leaves.count_L[asked_R2].astype(np.float64)
        return counts

    return score
