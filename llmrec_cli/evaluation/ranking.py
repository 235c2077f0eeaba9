"""Ranking and scoring the rows of a split with a Ranker, on all processes.

rank_rows           the lists of all rows; each process ranks its share
score_items         the scores of chosen items of all rows
validation_metrics  HR and NDCG of validation rows, as training logs them
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from llmrec_cli.data.histories import read_histories
from llmrec_cli.data.schema import TARGET
from llmrec_cli.decoding.ranker import LanguageModelRanker
from llmrec_cli.evaluation.metrics import metric_of_ranks
from llmrec_cli.models.base import (
    NO_LEAF,
    Advance,
    Histories,
    RankedLists,
    Ranker,
    batches_by_length,
)
from llmrec_cli.training.distributed import Column, Ranks
from llmrec_cli.training.rows import LeftOut, PromptEncoder, Row, count_left_out
from llmrec_cli.utils.progress import Progress, advance_for_all

LeafOfItem = NDArray[np.integer[Any]]


def rank_rows(
    ranker: Ranker,
    ranks: Ranks,
    histories: Histories,
    k: int,
    exclude: Histories = (),
    advance: Advance = lambda n: None,
) -> RankedLists:
    """``ranker.rank`` for all rows.  Each process ranks its share; all processes get all lists."""
    n_rows = len(histories)

    def work(numbers: Sequence[int]) -> list[Column]:
        found = ranker.rank(
            [histories[i] for i in numbers],
            k,
            [exclude[i] for i in numbers] if exclude else (),
            advance_for_all(advance, len(numbers), n_rows),
        )
        return _columns_of(found)

    return _lists_of(ranks.share_work(n_rows, work))


def rank_windows(
    ranker: LanguageModelRanker,
    ranks: Ranks,
    rows: Sequence[Row],
    exclude: Histories,
    k: int,
    advance: Advance = lambda n: None,
    keys: Sequence[int] = (),
) -> list[list[int]]:
    """For each window row the first ``k`` entries outside its ``exclude``, best first.

    Args:
        keys: of each row, for draws in place of the best, as in ``rank_catalogue``.
    """
    [order] = batches_by_length([len(row.prompt) for row in rows], len(rows)) if rows else [[]]

    def work(numbers: Sequence[int]) -> list[Column]:
        asked = [order[i] for i in numbers]
        prompts = [rows[i].prompt for i in asked]
        for_all = advance_for_all(advance, len(asked), len(rows))
        return _columns_of(
            ranker.rank_prompts(
                prompts,
                k,
                [exclude[i] for i in asked],
                for_all,
                keys=[keys[i] for i in asked] if keys else (),
            )
        )

    found = _lists_of(ranks.share_work(len(rows), work))
    places = found.places_outside([exclude[i] for i in order], k)
    lists: list[list[int]] = [[]] * len(rows)
    for i, leaf_K, kept in zip(order, found.leaf_BK, places, strict=True):
        lists[i] = leaf_K[kept].tolist()
    return lists


def score_items(
    ranker: Ranker,
    ranks: Ranks,
    histories: Histories,
    items: NDArray[np.int64],
    advance: Advance = lambda n: None,
) -> NDArray[np.float64]:
    """``ranker.score`` for all rows, by all processes together."""

    def work(numbers: Sequence[int]) -> list[Column]:
        for_all = advance_for_all(advance, len(numbers), len(histories))
        found = ranker.score([histories[i] for i in numbers], items[list(numbers)], for_all)
        return [(torch.from_numpy(found), 0)]

    scored: NDArray[np.float64] = ranks.share_work(len(histories), work)[0].numpy()
    return scored


def validation_metrics(
    ranker: Ranker,
    ranks: Ranks,
    frame: pd.DataFrame,
    leaf_of_item: LeafOfItem,
    cutoff: int,
    progress: Progress,
) -> dict[str, float]:
    """Mean NDCG and HR at ``cutoff`` on validation rows, the history kept among the candidates."""
    with progress.track("validation", len(frame), unit="rows") as advance:
        found = rank_rows(ranker, ranks, read_histories(frame), cutoff, advance=advance)
    hit_BK = found.leaf_BK == leaf_of_item[frame[TARGET].to_numpy()][:, None]
    rank_B = np.where(hit_BK.any(axis=1), hit_BK.argmax(axis=1) + 1, 0)
    # torch's order of additions, in which every earlier run was logged
    return {
        name: float(torch.from_numpy(metric_of_ranks(name, rank_B)).mean())
        for name in (f"ndcg@{cutoff}", f"hr@{cutoff}")
    }


def measure_left_out(encoder: PromptEncoder, ranks: Ranks, frame: pd.DataFrame) -> LeftOut:
    """How much of the histories of ``frame`` has no room in their prompts; by all processes."""
    histories = read_histories(frame)

    def work(numbers: Sequence[int]) -> list[Column]:
        prompts = encoder.encode_counted([histories[i] for i in numbers])
        return [(torch.from_numpy(prompts.left_out_N), 0)]

    [left_out_N] = ranks.share_work(len(frame), work)
    return count_left_out(map(len, histories), left_out_N.tolist())


def _columns_of(found: RankedLists) -> list[Column]:
    return [
        (torch.from_numpy(found.leaf_BK), NO_LEAF),
        (torch.from_numpy(found.score_BK), -math.inf),
        (torch.from_numpy(found.proven_B).int(), 0),
    ]


def _lists_of(columns: Sequence[torch.Tensor]) -> RankedLists:
    leaf_BK, score_BK, proven_B = columns
    return RankedLists(leaf_BK.numpy(), score_BK.numpy(), proven_B.bool().numpy())
