"""The rank-pair task's figures: two kinds of AUC over the scores of chosen and rejected answers.

Shape suffixes: N scored answers, U users, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.data.schema import ROW, TARGET, USER_ID
from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.predictions import to_jsonable
from llmrec_cli.evaluation.statistics import Interval, bootstrap_means, count_users, draw_users
from llmrec_cli.utils.files import create_atomically

Floats = NDArray[np.float64]

PAIRED, POOLED, FIRST = "auc_paired", "auc_pooled", "first_shown"
METRICS: Final = (PAIRED, POOLED)
CHOSEN_SCORE, REJECTED_SCORE = "chosen_score", "rejected_score"
SHOWN_FIRST, OTHER = "chosen_first", "negative"
SCHEMA: Final = pa.schema(
    [
        pa.field(ROW, pa.int32(), nullable=False),
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(TARGET, pa.int32(), nullable=False),
        pa.field(OTHER, pa.int32(), nullable=False),
        pa.field(SHOWN_FIRST, pa.bool_(), nullable=False),
        pa.field(CHOSEN_SCORE, pa.float64(), nullable=False),
        pa.field(REJECTED_SCORE, pa.float64(), nullable=False),
    ]
)
DEFINITIONS: Final = {
    "score": "log pi of an answer after its prompt: summed over its tokens, EOS included, "
    "normalised over the vocabulary; the chosen answer lists the liked title first",
    PAIRED: "share of users whose chosen answer scores higher than the rejected one, ties 1/2: the "
    "mean over a user's pairs, then over users",
    POOLED: "the paper's AUC: for every pair a coin (of the seed) keeps the chosen answer's score "
    "as a liked example or the rejected one's as a disliked one; the area under the ROC curve over "
    "all of them, across users",
    FIRST: "share of pairs in which the answer that begins with the candidate shown first scores "
    "higher, ties 1/2: .5 has no habit of position",
    "low, high": "95 % percentile bootstrap over users (a user with all of his or her rows)",
    "new_users": "the same figures for users who have no training or preference row",
}


@dataclass(frozen=True, slots=True)
class PairProtocol:
    """What a figure depends on.  Two runs are comparable only where all of it agrees."""

    split: str
    candidates: str  # where the other candidates come from
    template: str
    hashes: Mapping[str, str]  # "data" (compared between runs), "run"
    task: str


def score_users(pairs: pd.DataFrame) -> pd.DataFrame:
    """One row per user, in order of the user's first row: ``auc_paired``; ROW and TARGET of it.

    Args:
        pairs: the columns of ``SCHEMA``, one row per pair.
    """
    chosen, rejected = (pairs[name].to_numpy(np.float64) for name in (CHOSEN_SCORE, REJECTED_SCORE))
    above = (chosen > rejected) + 0.5 * (chosen == rejected)
    grouped = pairs.assign(**{PAIRED: above}).groupby(USER_ID, sort=False)
    return grouped.agg({ROW: "first", TARGET: "first", PAIRED: "mean"}).reset_index()


def measure_pooled_auc(runs: Sequence[pd.DataFrame], resamples: int, seed: int) -> Interval:
    """AUC over one example per pair, liked or disliked by a coin; NaN where all are of one kind.

    The interval resamples users, each with all of their examples.

    Args:
        runs: the same pairs as scored by several seeds; the mean of their areas.
        seed: of the coins and the draws.
    """
    user_N, users = pd.factorize(runs[0][USER_ID], sort=True)
    mean = float(np.mean(pooled_by_run(runs, seed)))
    if len(users) == 1 or mean != mean:
        return Interval(mean, float("nan"), float("nan"))
    draws = draw_users(len(users), resamples, np.random.default_rng(seed))
    drawn_B = np.concatenate([_areas(runs, seed, w[:, user_N]) for w in draws])
    low, high = np.nanquantile(drawn_B, (0.025, 0.975))
    return Interval(mean, float(low), float(high))


def pooled_by_run(runs: Sequence[pd.DataFrame], seed: int) -> tuple[float, ...]:
    """``auc_pooled`` of every run on its own."""
    once_1N = np.ones((1, len(runs[0])))
    return tuple(float(_areas([run], seed, once_1N)[0]) for run in runs)


def _areas(runs: Sequence[pd.DataFrame], seed: int, weight_BN: Floats) -> Floats:
    """Mean area over runs, for each way to weigh the pairs."""
    liked_N, areas_B = _coins(len(runs[0]), seed), np.zeros(len(weight_BN))
    for run in runs:
        score_N = np.where(liked_N, run[CHOSEN_SCORE], run[REJECTED_SCORE]).astype(np.float64)
        areas_B += _weighted_auc(score_N, liked_N, weight_BN) / len(runs)
    return areas_B


def _coins(n: int, seed: int) -> NDArray[np.bool_]:
    key = np.array([seed % 2**64, crc32(b"pooled-auc")], np.uint64)
    words = np.random.Philox(key=key).random_raw(n)
    return (words >> np.uint64(63)).astype(bool)


def _weighted_auc(score_N: Floats, liked_N: NDArray[np.bool_], weight_BN: Floats) -> Floats:
    """AUC of examples that count ``weight`` times, ties 1/2; NaN without one of the two kinds."""
    order_N = np.argsort(score_N, kind="stable")
    starts = np.flatnonzero(np.diff(score_N[order_N], prepend=np.nan) != 0)  # of equal scores
    liked_BV = np.add.reduceat((weight_BN * liked_N)[:, order_N], starts, axis=1)
    disliked_BV = np.add.reduceat((weight_BN * ~liked_N)[:, order_N], starts, axis=1)
    below_BV = disliked_BV.cumsum(1) - disliked_BV / 2
    n_pairs_B = liked_BV.sum(1) * disliked_BV.sum(1)
    with np.errstate(invalid="ignore"):
        areas_B: Floats = (liked_BV * below_BV).sum(1) / n_pairs_B
    return areas_B


def share_first_shown(pairs: pd.DataFrame) -> float:
    """Share of pairs decided for the candidate that the prompt shows first, ties 1/2."""
    gap = pairs[CHOSEN_SCORE].to_numpy() - pairs[REJECTED_SCORE].to_numpy()
    towards_first = np.where(pairs[SHOWN_FIRST], gap, -gap)
    return float(((towards_first > 0) + 0.5 * (towards_first == 0)).mean())


def compute_auc_figures(runs: Sequence[pd.DataFrame], resamples: int, seed: int) -> dict[str, Any]:
    """Counts and metrics of some pairs; intervals as dictionaries of mean, low and high.

    Args:
        runs: the same pairs as scored by several seeds, whose means are taken.
    """
    users = [score_users(pairs) for pairs in runs]
    mean_U = np.mean([rows[PAIRED] for rows in users], axis=0)
    paired = bootstrap_means(users[0].assign(**{PAIRED: mean_U}), [PAIRED], resamples, seed)
    pooled = measure_pooled_auc(runs, resamples, seed)
    return {
        "rows": int(runs[0][ROW].nunique()),
        "users": count_users(runs[0]),
        "pairs": len(runs[0]),
        "metrics": {PAIRED: asdict(paired[PAIRED]), POOLED: asdict(pooled)},
        FIRST: float(np.mean([share_first_shown(pairs) for pairs in runs])),
    }


def auc_figures(runs: Sequence[pd.DataFrame], resamples: int, seed: int) -> dict[str, Any]:
    """``compute_auc_figures`` of the generate task.  Its prompts show no candidates, so there is no
    share of the one that is shown first."""
    found = compute_auc_figures(runs, resamples, seed) | {
        "definitions": {name: DEFINITIONS[name] for name in (PAIRED, POOLED)}
    }
    plain: dict[str, Any] = to_jsonable({k: v for k, v in found.items() if k != FIRST})
    return plain


def auc_line(found: Mapping[str, Any]) -> str:
    """``auc_figures`` in words: each metric's mean and the ends of its interval."""
    shown = [
        f"{name} " + " ".join("unknown" if v is None else f"{v:.4f}" for v in ends.values())
        for name, ends in found["metrics"].items()
    ]
    return ", ".join(shown)


def build_pair_report(
    pairs: pd.DataFrame,
    protocol: PairProtocol,
    trained_users: frozenset[str] = frozenset(),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """A run's figures, ready for ``json.dump``.

    Args:
        pairs: the columns of ``SCHEMA``.
        trained_users: where some of the evaluated users are among them, ``new_users`` has the
            figures of the others.
    """
    report = compute_auc_figures([pairs], resamples, seed) | {
        "protocol": asdict(protocol),
        "bootstrap": {"resamples": resamples, "seed": seed},
        "definitions": DEFINITIONS,
    }
    new = pairs[~pairs[USER_ID].isin(trained_users)]
    if 0 < len(new) < len(pairs):
        report["new_users"] = compute_auc_figures([new], resamples, seed)
    plain: dict[str, Any] = to_jsonable(report)
    return plain


def write_pairs(path: Path, pairs: pd.DataFrame) -> None:
    """Write the scores of every pair, in order; the file appears complete or not at all.

    Raises:
        ArtefactError: a score is NaN.
        MachineError: the disk or its permissions refuse.
    """
    if pairs[[CHOSEN_SCORE, REJECTED_SCORE]].isna().any(axis=None):
        raise ArtefactError(f"{path}: a score is NaN; expected log-probabilities")
    arrays = [pa.array(pairs[field.name], type=field.type) for field in SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    create_atomically(path, lambda stream: pq.write_table(table, stream, compression="zstd"))


def read_pairs(path: Path) -> pd.DataFrame:
    """The scores of every pair.

    Raises:
        ArtefactError: the file is missing, damaged, or lacks a column.
    """
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        frame: pd.DataFrame = table.select(SCHEMA.names).cast(SCHEMA).to_pandas()
    except (FileNotFoundError, KeyError, ValueError, pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtefactError(f"{path}: not a file of scored pairs: {reason}") from error
    return frame
