"""Intervals and tests over users: against scipy, and what happens without the guard on clusters."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.statistics import (
    DETECTABLE,
    Interval,
    UserSums,
    bootstrap_means,
    correct_holm,
    count_users,
    paired_differences,
    seed_differences,
    seed_interval,
    standard_errors,
    sum_by_user,
)


def rows_of(values: np.ndarray, users: np.ndarray | None = None) -> pd.DataFrame:
    users = np.arange(len(values)) if users is None else users
    return pd.DataFrame(
        {
            "row": np.arange(len(values)),
            "user_id": [f"u{user:06d}" for user in users],
            "target": 3,
            "m": np.asarray(values, dtype=np.float64),
        }
    )


def interval(rows: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> Interval:
    return bootstrap_means(rows, ["m"], resamples, seed)["m"]


class Paired(NamedTuple):
    """What ``paired_differences`` tells about one metric."""

    mean: float
    low: float
    high: float
    p: float
    detectable: float


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, resamples: int = 2000, seed: int = 0
) -> Paired:
    delta = a["m"].to_numpy() - b["m"].to_numpy()
    found = paired_differences(sum_by_user(a["user_id"], delta[:, None]), resamples, seed)
    return Paired(*(float(column[0]) for column in found))


def width(of: Interval | Paired) -> float:
    return of.high - of.low


def skewed(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=n) ** 2


def test_one_row_per_user_agrees_with_scipy() -> None:
    values = skewed(200, 1)
    ours = interval(rows_of(values), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width(ours))
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width(ours))


def test_several_rows_per_user_agree_with_scipys_paired_ratio() -> None:
    rng = np.random.default_rng(3)
    users = np.sort(rng.integers(0, 80, 300))
    rows = rows_of(rng.random(300) + users / 40, users)
    per_user = rows.groupby("user_id")["m"].agg(["sum", "count"])

    def ratio(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(total.sum(axis) / count.sum(axis))

    theirs = scipy.stats.bootstrap(
        (per_user["sum"].to_numpy(), per_user["count"].to_numpy()),
        ratio,
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    ours = interval(rows, resamples=20_000)
    assert ours.mean == pytest.approx(rows["m"].mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width(ours))
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width(ours))


def test_copies_of_a_users_rows_are_no_new_evidence() -> None:
    once = rows_of(skewed(150, 5))
    copied = pd.concat([once] * 5, ignore_index=True)
    guarded, unguarded = copied, rows_of(copied["m"].to_numpy())  # every row a user of its own
    assert astuple(interval(guarded)) == pytest.approx(astuple(interval(once)))
    assert width(interval(unguarded)) == pytest.approx(
        width(interval(once)) / math.sqrt(5), rel=0.1
    )


def test_paired_difference_does_not_count_copies_either() -> None:
    a, b = rows_of(skewed(150, 6)), rows_of(skewed(150, 7))
    copies = [pd.concat([x] * 5, ignore_index=True) for x in (a, b)]
    for copied in copies:
        copied["row"] = np.arange(len(copied))
    once, five = paired_difference(a, b), paired_difference(copies[0], copies[1])
    assert (five.low, five.high) == pytest.approx((once.low, once.high))
    assert five.p == once.p


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for seed in range(200):
        users = np.repeat(np.arange(60), 4)
        rows = rows_of(rng.normal(size=60)[users] + rng.normal(size=240), users)
        got = interval(rows, seed, resamples=300)
        covered += got.low <= 0 <= got.high
    assert 180 <= covered <= 198  # 95 % of 200, three standard errors and some percentile bias


def test_p_is_uniform_when_labels_are_permuted() -> None:
    rng = np.random.default_rng(9)
    users = rng.integers(0, 40, 100)
    first, second = rng.random(100), rng.random(100) + 0.5 * rng.random(40)[users]
    p_values = []
    for seed in range(300):
        swapped = (rng.random(40) < 0.5)[users]
        a = rows_of(np.where(swapped, first, second), users)
        b = rows_of(np.where(swapped, second, first), users)
        p_values.append(paired_difference(a, b, resamples=400, seed=seed).p)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


def test_p_equals_the_exact_count_of_sign_flips() -> None:
    delta = np.array([0.5, 0.25, -0.125, 1.0, 0.75, 0.0])
    a, b = rows_of(delta), rows_of(np.zeros(6))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (np.abs(signs @ delta) >= abs(delta.sum())).mean()
    assert paired_difference(a, b, resamples=100_000).p == pytest.approx(exact, abs=0.005)


def test_equal_sums_in_another_order_count_as_ties() -> None:
    delta = np.full(30, 0.1)
    delta[15:] = -0.1
    p = paired_difference(rows_of(delta), rows_of(np.zeros(30))).p
    assert p == 1.0  # the observed sum is 0 (or 1e-17): every flip is at least as far


def test_difference_is_a_minus_b_and_finds_a_planted_one() -> None:
    base = skewed(400, 10)
    noise = np.random.default_rng(11).normal(0.2, 0.5, 400)
    got = paired_difference(rows_of(base + noise), rows_of(base), resamples=2000)
    assert got.mean == pytest.approx(noise.mean())
    assert 0 < got.low < got.mean < got.high
    assert got.p == 1 / 2001
    turned = paired_difference(rows_of(base), rows_of(base + noise), resamples=2000)
    assert (turned.low, turned.high) == pytest.approx((-got.high, -got.low), rel=0.1)


def test_a_seed_decides_everything_and_row_order_nothing() -> None:
    rng = np.random.default_rng(14)
    rows = rows_of(rng.integers(0, 8, 300) / 8, rng.integers(0, 90, 300))
    assert interval(rows, seed=1) == interval(rows, seed=1) == interval(rows.iloc[::-1], seed=1)
    assert interval(rows, seed=1) != interval(rows, seed=2)


def test_resamples_in_several_chunks_equal_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(skewed(40, 15))
    whole = interval(rows), paired_difference(rows, rows.assign(m=1.0))
    monkeypatch.setattr("llmrec_cli.evaluation.statistics._DRAWS", 1000)
    chunked = interval(rows), paired_difference(rows, rows.assign(m=1.0))
    assert width(chunked[0]) == pytest.approx(width(whole[0]))
    assert chunked[1].p == pytest.approx(whole[1].p, abs=0.02)


def test_one_user_has_a_mean_but_no_interval() -> None:
    rows = rows_of(np.array([0.0, 1.0, 1.0, 0.0]), np.zeros(4, dtype=int))
    got = interval(rows)
    assert got.mean == 0.5
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert paired_difference(rows, rows.assign(m=0.0)).p == 1.0
    assert count_users(rows) == 1


def test_equal_values_give_a_point_and_no_difference() -> None:
    rows = rows_of(np.full(30, 0.25))
    assert interval(rows) == Interval(0.25, 0.25, 0.25)
    same = paired_difference(rows, rows)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_metrics_share_their_draws() -> None:
    rows = rows_of(skewed(60, 16))
    rows["twice"] = 2 * rows["m"]
    got = bootstrap_means(rows, ["m", "twice"])
    assert got["twice"].low == pytest.approx(2 * got["m"].low)
    assert astuple(got["m"]) == pytest.approx(astuple(interval(rows)))


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ArtefactError, match="no rows"):
        bootstrap_means(rows_of(np.array([])), ["m"])


def test_memory_stays_bounded_at_25_000_users() -> None:
    rows = rows_of(np.random.default_rng(17).random(25_000))
    tracemalloc.start()
    interval(rows, resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 * 2**20  # all 300 at once would take 180 MB and 2,000 resamples 1.2 GB


def test_several_metrics_share_their_draws_and_their_flips() -> None:
    """One call for all columns gives what a call for each of them gives."""
    rng = np.random.default_rng(18)
    users, delta = rng.integers(0, 50, 200), rng.normal(size=(200, 3))
    together = paired_differences(sum_by_user(users, delta), 500, 3)
    for at in range(3):
        alone = paired_differences(sum_by_user(users, delta[:, [at]]), 500, 3)
        assert [c[at] for c in together] == pytest.approx([c[0] for c in alone])


def test_p_agrees_with_scipys_permutation_test() -> None:
    """Paired samples, every assignment of signs: scipy flips the pairs of single rows."""
    rng = np.random.default_rng(19)
    a, b = rng.normal(0.35, 1, 11), rng.normal(size=11)
    theirs = scipy.stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue
    ours = paired_difference(rows_of(a), rows_of(b), resamples=40_000).p
    assert 0.02 < theirs < 0.9
    assert ours == pytest.approx(theirs, abs=0.01)


def test_rows_of_one_user_do_not_count_as_independent() -> None:
    """Equal rows of a user widen the interval by about the design effect, sqrt(n per user); with
    users taken for granted (every row a user of its own), it is too narrow and p too small."""
    rng = np.random.default_rng(20)
    users = np.repeat(np.arange(80), 6)
    per_user = rng.normal(0.12, 1, 80)[users]
    a, b = rows_of(per_user, users), rows_of(np.zeros(480), users)
    naive_a, naive_b = rows_of(per_user), rows_of(np.zeros(480))
    clustered, naive = paired_difference(a, b), paired_difference(naive_a, naive_b)
    assert width(clustered) == pytest.approx(width(naive) * math.sqrt(6), rel=0.1)
    assert clustered.p > naive.p
    assert clustered.detectable == pytest.approx(naive.detectable * math.sqrt(6), rel=0.02)


def test_rows_that_resemble_each_other_widen_by_the_known_design_effect() -> None:
    """Kish: variance times 1 + (n - 1) rho; here n = 5 rows a user and rho = 1/2, so 3."""
    rng = np.random.default_rng(21)
    users = np.repeat(np.arange(400), 5)
    values = rng.normal(size=400)[users] + rng.normal(size=2000)
    by_user = sum_by_user(users, values[:, None])
    by_row = sum_by_user(np.arange(2000), values[:, None])
    ratio = float(standard_errors(by_user)[0] / standard_errors(by_row)[0])
    assert ratio == pytest.approx(math.sqrt(3), rel=0.06)
    assert width(interval(rows_of(values, users))) == pytest.approx(
        2 * 1.96 * float(standard_errors(by_user)[0]), rel=0.1
    )


def test_the_standard_error_of_one_row_per_user_is_that_of_the_mean() -> None:
    values = skewed(90, 22)
    ours = float(standard_errors(sum_by_user(np.arange(90), values[:, None]))[0])
    assert ours == pytest.approx(scipy.stats.sem(values))


def test_the_standard_error_of_uneven_users_by_hand() -> None:
    """Users with 1, 2 and 3 rows that sum to 1, 0 and 2: mean 1/2, residuals 1/2, -1, 1/2."""
    sums = UserSums(np.array([[1.0], [0.0], [2.0]]), np.array([1.0, 2.0, 3.0]))
    assert standard_errors(sums)[0] == pytest.approx(math.sqrt(1.5 * 1.5) / 6)


def test_what_is_called_detectable_is_found_four_times_in_five() -> None:
    """2.80 standard errors away, the sign-flip test at 5 % rejects with 80 % power."""
    assert DETECTABLE == pytest.approx(1.959964 + 0.841621, abs=1e-6)
    rng, found = np.random.default_rng(23), 0
    true = DETECTABLE / math.sqrt(100)  # of noise with variance 1
    for seed in range(300):
        a = rows_of(rng.normal(true, 1, 100))
        found += paired_difference(a, rows_of(np.zeros(100)), 400, seed).p < 0.05
    assert 0.72 <= found / 300 <= 0.87  # three standard errors


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        # m = 4, rising: .005 * 4, .01 * 3, .03 * 2, .04 * 1, each at least the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.4, 0.5], [0.8, 0.8]),
        ([0.9, 0.8, 0.7], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holms_correction_by_hand(given: list[float], corrected: list[float]) -> None:
    assert correct_holm(given) == pytest.approx(corrected)


def test_holm_keeps_the_family_wise_error_under_no_difference() -> None:
    """Among ten tests of nothing at 5 %, some uncorrected p is small two times in five."""
    p_values = np.random.default_rng(24).random((4000, 10))
    assert (p_values.min(axis=1) < 0.05).mean() == pytest.approx(0.401, abs=0.03)
    corrected = np.array([min(correct_holm(list(row))) for row in p_values])
    assert (corrected < 0.05).mean() == pytest.approx(0.05, abs=0.012)


def test_intervals_over_seeds_agree_with_scipys_t() -> None:
    ours, theirs = [0.31, 0.35, 0.30, 0.36], [0.30, 0.30, 0.29, 0.33]
    alone = scipy.stats.ttest_1samp(ours, 0).confidence_interval()
    assert seed_interval(ours) == pytest.approx((alone.low, alone.high))
    paired = scipy.stats.ttest_rel(ours, theirs).confidence_interval()
    by_seed, low, high = seed_differences(ours, theirs, matched=True)
    assert by_seed == pytest.approx((0.01, 0.05, 0.01, 0.03))
    assert (low, high) == pytest.approx((paired.low, paired.high))
    welch = scipy.stats.ttest_ind(ours, theirs[:3], equal_var=False).confidence_interval()
    by_seed, low, high = seed_differences(ours, theirs[:3], matched=False)
    assert by_seed == pytest.approx([a - np.mean(theirs[:3]) for a in ours])
    assert (low, high) == pytest.approx((welch.low, welch.high))


def test_a_baseline_without_seeds_is_taken_as_it_is() -> None:
    ours = [0.31, 0.35, 0.30]
    found = scipy.stats.ttest_1samp(np.array(ours) - 0.3, 0).confidence_interval()
    by_seed, low, high = seed_differences(ours, [0.3], matched=False)
    assert by_seed == pytest.approx((0.01, 0.05, 0.0))
    assert (low, high) == pytest.approx((found.low, found.high))


def test_one_seed_tells_nothing_about_others() -> None:
    assert all(map(math.isnan, seed_interval([0.3])))
    assert all(map(math.isnan, seed_differences([0.3], [0.2, 0.25], matched=False)[1:]))
    assert seed_interval([0.25, 0.25]) == (0.25, 0.25)
