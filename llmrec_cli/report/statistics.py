"""Intervals and tests over users.

A user may own several rows, and rows of one user resemble each other: whatever is drawn here is a
user with all of his or her rows, never a row.  Everything is a function of its arguments and the
seed.  Shape suffixes: R rows, U users, M metrics, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmrec_cli.data.columns import ROW, TARGET, USER_ID
from llmrec_cli.errors import ArtefactError

Floats = NDArray[np.float64]

_DRAWS = 2_000_000  # users drawn at a time: bounds memory to about 50 MB
_TAILS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over rows with its 95 % bootstrap interval; NaN ends where one user has all rows."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a - b over rows, its 95 % interval, and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap_means(
    rows: pd.DataFrame, metrics: Sequence[str], resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Mean of each metric over rows, with its 95 % percentile interval (Efron 1979, users drawn).

    All metrics share the same draws.

    Args:
        rows: ``user_id`` and one float column per metric, finite.
        metrics: names of those columns.
        resamples: number of bootstrap samples.
        seed: of the draws.

    Raises:
        ArtefactError: there are no rows.
    """
    sum_UM, count_U = _per_user(rows, metrics)
    mean_M = sum_UM.sum(axis=0) / count_U.sum()
    low_M, high_M = _percentiles(sum_UM, count_U, resamples, np.random.default_rng(seed))
    ends = zip(mean_M, low_M, high_M, strict=True)
    return {name: Interval(*map(float, e)) for name, e in zip(metrics, ends, strict=True)}


def paired_difference(
    rows_a: pd.DataFrame,
    rows_b: pd.DataFrame,
    metric: str,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Mean of ``a - b`` over the same rows.

    The interval is the percentile bootstrap over users.  ``p`` is the sign-flip randomisation test
    (Fisher 1935; Smucker et al., CIKM 2007): under no difference the two systems' names could be
    swapped for any user; p = (1 + swaps at least as far from 0) / (1 + resamples), never 0.

    Raises:
        ArtefactError: the two do not hold the same rows, users and targets.
    """
    a, b = _aligned(rows_a, rows_b)
    delta = a[[USER_ID]].assign(delta=a[metric].to_numpy() - b[metric].to_numpy())
    sum_UM, count_U = _per_user(delta, ["delta"])
    rng = np.random.default_rng(seed)
    low_M, high_M = _percentiles(sum_UM, count_U, resamples, rng)
    mean = float(sum_UM.sum() / count_U.sum())
    return Difference(
        mean, float(low_M[0]), float(high_M[0]), _sign_flip_p(sum_UM[:, 0], resamples, rng)
    )


def n_users(rows: pd.DataFrame) -> int:
    """Number of distinct users."""
    return int(rows[USER_ID].nunique())


def _aligned(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    a, b = (rows.sort_values(ROW, kind="stable") for rows in (rows_a, rows_b))
    for rows in (a, b):
        if rows[ROW].duplicated().any():
            raise ArtefactError(f"row {rows.loc[rows[ROW].duplicated(), ROW].iloc[0]} occurs twice")
    only = np.setxor1d(a[ROW], b[ROW])
    if len(only):
        raise ArtefactError(
            f"the runs were evaluated on different rows: {len(a)} and {len(b)}; row "
            f"{only[0]} is in one only"
        )
    for column in (USER_ID, TARGET):
        differs = a[column].to_numpy() != b[column].to_numpy()
        if differs.any():
            at = int(np.argmax(differs))
            raise ArtefactError(
                f"row {a[ROW].iloc[at]} is not the same in both runs: {column} "
                f"{a[column].iloc[at]} and {b[column].iloc[at]}"
            )
    return a, b


def _per_user(rows: pd.DataFrame, metrics: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum of each metric and number of rows of every user, in order of user id."""
    if len(rows) == 0:
        raise ArtefactError("there are no rows to average")
    codes_R, users = pd.factorize(rows[USER_ID], sort=True)
    sums = [np.bincount(codes_R, rows[m].to_numpy(np.float64), len(users)) for m in metrics]
    return np.stack(sums, axis=1), np.bincount(codes_R).astype(np.float64)


def _percentiles(
    sum_UM: Floats, count_U: Floats, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Ends of the 95 % interval of ``sum of sums / sum of counts`` when users are drawn."""
    if len(count_U) == 1:  # one user says nothing about others; [mean, mean] would look certain
        unknown = np.full(sum_UM.shape[1], np.nan)
        return unknown, unknown
    both_UM = np.column_stack([sum_UM, count_U])
    drawn_BM = np.concatenate([w @ both_UM for w in times_drawn(len(count_U), resamples, rng)])
    mean_BM = drawn_BM[:, :-1] / drawn_BM[:, -1:]
    low_M, high_M = np.quantile(mean_BM, _TAILS, axis=0)
    return low_M, high_M


def times_drawn(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each of n users occurs in each resample, some resamples at a time."""
    step = max(1, _DRAWS // n)
    for start in range(0, resamples, step):
        chunk = min(step, resamples - start)
        drawn = rng.integers(0, n, size=(chunk, n)) + np.arange(chunk)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=chunk * n).reshape(chunk, n)
        yield times.astype(np.float64)


def _sign_flip_p(sum_U: Floats, resamples: int, rng: np.random.Generator) -> float:
    moved_U = sum_U[sum_U != 0]  # a user without a difference has nothing to swap
    if len(moved_U) == 0:
        return 1.0
    # A swap that rebuilds the observed sum in another order of addition must count as equal.
    bar = abs(moved_U.sum()) - 1e-9 * np.abs(moved_U).sum()
    step, beyond = max(1, _DRAWS // len(moved_U)), 0
    for start in range(0, resamples, step):
        shape = (min(step, resamples - start), len(moved_U))
        sign_BU = rng.integers(0, 2, size=shape, dtype=np.int8) * 2.0 - 1.0
        beyond += int((np.abs(sign_BU @ moved_U) >= bar).sum())
    return (1 + beyond) / (1 + resamples)
