"""Intervals and tests over users: against scipy, and what happens without the guard on clusters."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from llmrec_cli.errors import ArtefactError
from llmrec_cli.report.statistics import Interval, bootstrap_means, n_users, paired_difference


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


def width(of: Interval) -> float:
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
        return total.sum(axis) / count.sum(axis)

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
    once, five = paired_difference(a, b, "m"), paired_difference(*copies, "m")
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
        p_values.append(paired_difference(a, b, "m", resamples=400, seed=seed).p)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


def test_p_equals_the_exact_count_of_sign_flips() -> None:
    delta = np.array([0.5, 0.25, -0.125, 1.0, 0.75, 0.0])
    a, b = rows_of(delta), rows_of(np.zeros(6))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (np.abs(signs @ delta) >= abs(delta.sum())).mean()
    assert paired_difference(a, b, "m", resamples=100_000).p == pytest.approx(exact, abs=0.005)


def test_equal_sums_in_another_order_count_as_ties() -> None:
    delta = np.full(30, 0.1)
    delta[15:] = -0.1
    p = paired_difference(rows_of(delta), rows_of(np.zeros(30)), "m").p
    assert p == 1.0  # the observed sum is 0 (or 1e-17): every flip is at least as far


def test_difference_is_a_minus_b_and_finds_a_planted_one() -> None:
    base = skewed(400, 10)
    noise = np.random.default_rng(11).normal(0.2, 0.5, 400)
    got = paired_difference(rows_of(base + noise), rows_of(base), "m", resamples=2000)
    assert got.mean == pytest.approx(noise.mean())
    assert 0 < got.low < got.mean < got.high
    assert got.p == 1 / 2001
    turned = paired_difference(rows_of(base), rows_of(base + noise), "m", resamples=2000)
    assert (turned.low, turned.high) == pytest.approx((-got.high, -got.low), rel=0.1)


def test_pairing_goes_by_row_id_not_by_place() -> None:
    a, b = rows_of(skewed(50, 12)), rows_of(skewed(50, 13))
    assert paired_difference(a, b.iloc[::-1], "m") == paired_difference(a, b, "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.iloc[1:], r"different rows: 5 and 4; row 0 is in one only"),
        (lambda rows: rows.assign(row=rows["row"] + 1), r"different rows: 5 and 5; row 0"),
        (lambda rows: rows.assign(user_id="u9"), r"row 0 is not the same .*user_id u000000 and u9"),
        (lambda rows: rows.assign(target=[3, 3, 4, 3, 3]), r"row 2 .*: target 3 and 4"),
        (lambda rows: pd.concat([rows, rows.tail(1)]), r"row 4 occurs twice"),
    ],
)
def test_runs_over_different_rows_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    rows = rows_of(np.arange(5))
    with pytest.raises(ArtefactError, match=message):
        paired_difference(rows, change(rows), "m")


def test_a_seed_decides_everything_and_row_order_nothing() -> None:
    rng = np.random.default_rng(14)
    rows = rows_of(rng.integers(0, 8, 300) / 8, rng.integers(0, 90, 300))
    assert interval(rows, seed=1) == interval(rows, seed=1) == interval(rows.iloc[::-1], seed=1)
    assert interval(rows, seed=1) != interval(rows, seed=2)


def test_resamples_in_several_chunks_equal_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(skewed(40, 15))
    whole = interval(rows), paired_difference(rows, rows.assign(m=1.0), "m")
    monkeypatch.setattr("llmrec_cli.report.statistics._DRAWS", 1000)
    chunked = interval(rows), paired_difference(rows, rows.assign(m=1.0), "m")
    assert width(chunked[0]) == pytest.approx(width(whole[0]))
    assert chunked[1].p == pytest.approx(whole[1].p, abs=0.02)


def test_one_user_has_a_mean_but_no_interval() -> None:
    rows = rows_of(np.array([0.0, 1.0, 1.0, 0.0]), np.zeros(4, dtype=int))
    got = interval(rows)
    assert got.mean == 0.5
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert paired_difference(rows, rows.assign(m=0.0), "m").p == 1.0
    assert n_users(rows) == 1


def test_equal_values_give_a_point_and_no_difference() -> None:
    rows = rows_of(np.full(30, 0.25))
    assert interval(rows) == Interval(0.25, 0.25, 0.25)
    same = paired_difference(rows, rows, "m")
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
