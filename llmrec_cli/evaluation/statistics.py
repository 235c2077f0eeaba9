"""Intervals and tests over users and over seeds.

A user may have several rows, and rows of one user resemble each other.  So users are drawn here,
each with all of their rows, and never single rows.  Every result is a function of its arguments and
the seed.  Shape suffixes: R rows, U users, M metrics, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from llmrec_cli.data.schema import USER_ID
from llmrec_cli.errors import ArtefactError

Floats = NDArray[np.float64]

_DRAWS = 2_000_000  # users drawn at a time: bounds memory to about 50 MB
_TAILS = (0.025, 0.975)
_SIGNS = 1  # of the stream of the sign flips; the bootstrap's is the seed's own
DETECTABLE = float(ndtri(0.975) + ndtri(0.8))  # standard errors: 5 % two-sided, 80 % power


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over rows with its 95 % bootstrap interval; NaN ends where one user has all rows."""

    mean: float
    low: float
    high: float


class UserSums(NamedTuple):
    """Sums over the rows of each user, in order of user id."""

    sum_UM: Floats
    count_U: Floats

    def means(self) -> Floats:
        """Mean over rows, [M]."""
        mean_M: Floats = self.sum_UM.sum(axis=0) / self.count_U.sum()
        return mean_M


class Differences(NamedTuple):
    """Means of paired differences over rows, with their intervals and tests, [M] each."""

    mean_M: Floats
    low_M: Floats
    high_M: Floats
    p_M: Floats
    detectable_M: Floats


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
    sums = sum_by_user(rows[USER_ID], rows[list(metrics)].to_numpy(np.float64))
    low_M, high_M = bootstrap_percentiles(sums, resamples, seed)
    ends = zip(sums.means(), low_M, high_M, strict=True)
    return {name: Interval(*map(float, e)) for name, e in zip(metrics, ends, strict=True)}


def sum_by_user(users: ArrayLike, value_RM: Floats) -> UserSums:
    """Add up the rows of every user.

    Args:
        users: of each row, its user.
        value_RM: finite values.

    Raises:
        ArtefactError: there are no rows.
    """
    if len(value_RM) == 0:
        raise ArtefactError("there are no rows to average")
    code_R, found = pd.factorize(np.asarray(users, dtype=object), sort=True)
    columns = [np.bincount(code_R, value_R, len(found)) for value_R in value_RM.T]
    sum_UM = np.stack(columns, axis=1).astype(np.float64)
    return UserSums(sum_UM, np.bincount(code_R).astype(np.float64))


def bootstrap_percentiles(
    sums: UserSums, resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Ends of the 95 % intervals of the means when users are drawn; all metrics in one draw."""
    sum_UM, count_U = sums
    if len(count_U) == 1:  # one user says nothing about others; [mean, mean] would look certain
        unknown = np.full(sum_UM.shape[1], np.nan)
        return unknown, unknown
    both_UM = np.column_stack([sum_UM, count_U])
    draws = draw_users(len(count_U), resamples, np.random.default_rng(seed))
    drawn_BM = np.concatenate([w @ both_UM for w in draws])
    low_M, high_M = np.quantile(drawn_BM[:, :-1] / drawn_BM[:, -1:], _TAILS, axis=0)
    return low_M, high_M


def paired_differences(delta: UserSums, resamples: int = 2000, seed: int = 0) -> Differences:
    """Means of ``a - b`` over the same rows, tested against no difference.

    The interval is the percentile bootstrap over users, drawn as in ``bootstrap_percentiles``.

    ``p`` is the two-sided sign-flip randomisation test (Fisher 1935; Smucker et al., CIKM 2007):
    under no difference the two systems' names could be swapped for any user; p = (1 + swaps at
    least as far from 0) / (1 + resamples), never 0.

    ``detectable`` is the smallest true difference that a two-sided test at the 5 % level finds with
    80 % power, ``(z(.975) + z(.8)) * SE`` = 2.80 SE (Cohen 1988, ch. 2), SE the standard error over
    users (``standard_errors``).  With it, a difference that is absent can be distinguished from one
    that these rows could not have shown.  NaN where one user has all rows.

    Args:
        delta: each user's sum of ``a - b``.
    """
    low_M, high_M = bootstrap_percentiles(delta, resamples, seed)
    p_M = _sign_flip_p(delta.sum_UM, resamples, np.random.default_rng([seed, _SIGNS]))
    return Differences(delta.means(), low_M, high_M, p_M, DETECTABLE * standard_errors(delta))


def standard_errors(sums: UserSums) -> Floats:
    """Standard error of the mean over rows when users are the sample, [M].

    The mean is a ratio, sum of sums / sum of counts: its linearised (sandwich) variance is
    ``U / (U - 1) sum_u (sum_u - mean count_u)^2 / (sum_u count_u)^2`` (Cochran 1977, 6.13); with
    one row per user that is s / sqrt(U).  NaN for one user.
    """
    n_users = len(sums.count_U)
    if n_users == 1:
        return np.full(sums.sum_UM.shape[1], np.nan)
    residual_UM = sums.sum_UM - sums.count_U[:, None] * sums.means()
    factor = n_users / (n_users - 1)
    error_M: Floats = np.sqrt(factor * (residual_UM**2).sum(axis=0)) / sums.count_U.sum()
    return error_M


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 6, 1979) of p-values tested together.

    With m values in rising order, the corrected i-th is ``max_{j <= i} min(1, (m - j + 1) p_(j))``.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[at]))
        corrected[at] = highest
    return corrected


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent seeds, Student's t; NaN for one seed."""
    return _student_interval(values, (0.0,))


def seed_differences(
    ours: Sequence[float], theirs: Sequence[float], *, matched: bool
) -> tuple[tuple[float, ...], float, float]:
    """Differences of each of our seeds, and the 95 % interval of their mean over seeds.

    Args:
        matched: the two have the same seeds in the same order: Student's t over their differences.
            Otherwise each of ours is set against the mean of theirs, and the interval is Welch's
            (Biometrika 34, 1947).  A single value of theirs is taken as exact.

    Returns:
        The differences, low and high; NaN ends where we have one seed only.
    """
    if matched:
        paired = tuple(a - b for a, b in zip(ours, theirs, strict=True))
        return paired, *seed_interval(paired)
    return tuple(a - float(np.mean(theirs)) for a in ours), *_student_interval(ours, theirs)


def _student_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Interval of mean(ours) - mean(theirs), variances apart; one value of theirs has none."""
    if len(ours) < 2:
        return math.nan, math.nan
    mean = float(np.mean(ours) - np.mean(theirs))
    parts = [(float(np.var(v, ddof=1)) / len(v), len(v) - 1) for v in (ours, theirs) if len(v) > 1]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return mean, mean
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    half = float(stdtrit(freedom, _TAILS[1])) * math.sqrt(variance)
    return mean - half, mean + half


def count_users(rows: pd.DataFrame) -> int:
    """Number of distinct users."""
    return int(rows[USER_ID].nunique())


def draw_users(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each of n users occurs in each resample, some resamples at a time."""
    step = max(1, _DRAWS // n)
    for start in range(0, resamples, step):
        chunk = min(step, resamples - start)
        drawn = rng.integers(0, n, size=(chunk, n)) + np.arange(chunk)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=chunk * n).reshape(chunk, n)
        yield times.astype(np.float64)


def _sign_flip_p(sum_UM: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """p of each metric; all of them see the same flips."""
    # A swap that rebuilds the observed sum in another order of addition must count as equal.
    bar_M = np.abs(sum_UM.sum(axis=0)) - 1e-9 * np.abs(sum_UM).sum(axis=0)
    n, beyond_M = len(sum_UM), np.zeros(sum_UM.shape[1])
    step = max(1, _DRAWS // n)
    for start in range(0, resamples, step):
        shape = (min(step, resamples - start), n)
        sign_BU = rng.integers(0, 2, size=shape, dtype=np.int8) * 2.0 - 1.0
        beyond_M += (np.abs(sign_BU @ sum_UM) >= bar_M).sum(axis=0)
    p_M: Floats = (1 + beyond_M) / (1 + resamples)
    return p_M
