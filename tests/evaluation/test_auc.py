"""AUC of pairs: by hand, against all comparisons written out, and side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.auc import (
    METRICS,
    PAIRED,
    PairProtocol,
    _coins,
    _weighted_auc,
    auc_figures,
    build_pair_report,
    measure_pooled_auc,
    read_pairs,
    score_users,
    share_first_shown,
    write_pairs,
)
from llmrec_cli.evaluation.comparison import (
    Comparison,
    Entry,
    Evaluation,
    build_comparability_keys,
    build_comparison,
)
from llmrec_cli.evaluation.entries import UNKNOWN
from llmrec_cli.report.tables import comparison_to_lines
from tests.evaluation.sample_entries import evaluated_data, predictions_of, question

PROTOCOL = PairProtocol("test", "as given", "games", {"data": "1"}, "rank-pair")


def pairs(*rows: tuple[str, float, float], first: bool = True) -> pd.DataFrame:
    users, chosen, rejected = zip(*rows, strict=True)
    columns = {"row": range(len(rows)), "user_id": users, "target": 0, "negative": 1}
    scores = {"chosen_first": first, "chosen_score": chosen, "rejected_score": rejected}
    return pd.DataFrame(columns | scores)


# user a: won and tied (.75); user b: lost (0); user c: won (1) -> mean over users 1.75 / 3
BY_HAND = pairs(("a", -1.0, -2.0), ("b", -3.0, -1.0), ("a", -2.0, -2.0), ("c", -1.5, -4.0))


def test_paired_auc_by_hand() -> None:
    users = score_users(BY_HAND)
    assert dict(zip(users["user_id"], users["auc_paired"], strict=True)) == {
        "a": 0.75,
        "b": 0.0,
        "c": 1.0,
    }
    report = build_pair_report(BY_HAND, PROTOCOL, resamples=100)
    assert report["metrics"]["auc_paired"]["mean"] == pytest.approx(1.75 / 3)
    assert (report["rows"], report["users"], report["pairs"]) == (4, 3, 4)


def test_pooled_auc_by_hand() -> None:
    """Liked 3 and 1, disliked 2 and 1: of four comparisons 3 > 2, 3 > 1, 1 = 1 and 1 < 2."""
    score_N, liked_N = np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert _weighted_auc(score_N, liked_N, np.ones((1, 4)))[0] == pytest.approx(2.5 / 4)
    doubled = np.array([[2.0, 1.0, 1.0, 1.0]])  # the user with 3 is drawn twice
    assert _weighted_auc(score_N, liked_N, doubled)[0] == pytest.approx(4.5 / 6)
    assert np.isnan(_weighted_auc(score_N, np.ones(4, bool), np.ones((1, 4)))[0])


def many(n: int = 400, gap: float = 0.5, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(gap, 1, n).round(1), rng.normal(0, 1, n).round(1)
    return pairs(
        *((f"u{i // 2}", c, r) for i, (c, r) in enumerate(zip(chosen, rejected, strict=True)))
    )


def slow_auc(liked_N: Any, disliked_M: Any) -> float:
    """Every liked score against every disliked one, ties 1/2."""
    liked_N1, disliked_M = np.asarray(liked_N)[:, None], np.asarray(disliked_M)
    return float(((liked_N1 > disliked_M) + 0.5 * (liked_N1 == disliked_M)).mean())


def test_the_pooled_auc_is_that_of_all_comparisons() -> None:
    frame = many()
    liked = _coins(len(frame), seed=3)
    scores = np.where(liked, frame["chosen_score"], frame["rejected_score"])
    expected = slow_auc(scores[liked], scores[~liked])
    assert measure_pooled_auc([frame], 200, seed=3).mean == pytest.approx(expected, abs=1e-12)
    assert 0.4 < liked.mean() < 0.6
    assert not np.array_equal(liked, _coins(len(frame), seed=4))


def test_the_paired_auc_compares_within_users() -> None:
    frame = many().assign(user_id=[f"u{i}" for i in range(400)])
    scores = zip(frame["chosen_score"], frame["rejected_score"], strict=True)
    expected = [slow_auc([c], [r]) for c, r in scores]
    assert score_users(frame)["auc_paired"].mean() == pytest.approx(np.mean(expected))


def test_the_pooled_interval_draws_users() -> None:
    """Against resampling done plainly: users with all of their rows, AUC anew."""
    frame = many(n=120)
    interval = measure_pooled_auc([frame], resamples=600, seed=0)
    liked = _coins(len(frame), 0)
    score = np.where(liked, frame["chosen_score"], frame["rejected_score"])
    rng, users = np.random.default_rng(5), frame["user_id"].unique()
    places = {user: np.flatnonzero(frame["user_id"] == user) for user in users}
    slow = []
    for _ in range(600):
        at = np.concatenate([places[u] for u in rng.choice(users, len(users))])
        slow.append(slow_auc(score[at][liked[at]], score[at][~liked[at]]))
    assert interval.low == pytest.approx(np.quantile(slow, 0.025), abs=0.03)
    assert interval.high == pytest.approx(np.quantile(slow, 0.975), abs=0.03)
    assert interval.low < interval.mean < interval.high


def test_a_model_that_always_takes_the_first_is_seen() -> None:
    shown = pairs(("a", 2.0, 1.0), ("b", 1.0, 2.0), ("c", 1.0, 1.0))
    assert share_first_shown(shown) == 0.5
    assert share_first_shown(shown.assign(chosen_first=[True, False, True])) == pytest.approx(
        2.5 / 3
    )


def test_users_that_training_did_not_show_stand_apart() -> None:
    report = build_pair_report(BY_HAND, PROTOCOL, frozenset({"a", "x"}), resamples=100)
    assert report["new_users"]["users"] == 2
    assert report["new_users"]["metrics"]["auc_paired"]["mean"] == 0.5
    assert "new_users" not in build_pair_report(BY_HAND, PROTOCOL, resamples=100)
    assert "new_users" not in build_pair_report(BY_HAND, PROTOCOL, frozenset("abc"), resamples=100)
    json.dumps(report, allow_nan=False)


def entry_of(
    name: str, *frames: pd.DataFrame, protocol: PairProtocol = PROTOCOL, data: str = "1"
) -> Entry:
    """An entry of the rank-pair task, a frame per seed."""
    runs = []
    for seed, frame in enumerate(frames):
        report = build_pair_report(frame, protocol, resamples=50)
        runs.append(Evaluation(name, name, None, seed, {}, report, None, frame))
    place = evaluated_data(predictions_of(1), test=data)
    traits = build_comparability_keys(runs[0], place, "language model")
    return Entry(name, "language model", place, tuple(runs), traits, UNKNOWN)


def compared(*entries: Entry) -> Comparison:
    asked = question(
        policies=("pairs",), headline="pairs", cutoffs=(), compared=PAIRED, baseline="sft"
    )
    return build_comparison(entries, asked)


def test_a_comparison_shows_both_auc_and_the_difference_of_the_paired_one() -> None:
    base, better = many(gap=0.0), many(gap=2.0)
    found = compared(entry_of("sft", base), entry_of("align-dmpo", better))
    assert found.metrics == METRICS
    assert found.standings[0].contrasts == {"pairs": {}}
    ours = found.standings[1]
    assert set(ours.contrasts["pairs"]) == {"auc_paired"}
    gain = ours.contrasts["pairs"]["auc_paired"]
    assert gain.low > 0
    delta = score_users(better)["auc_paired"].mean() - score_users(base)["auc_paired"].mean()
    assert gain.mean == pytest.approx(delta)
    pooled = ours.metrics["pairs"]["auc_pooled"]
    alone = measure_pooled_auc([better], 200, 0)
    figures = (pooled.mean, pooled.low, pooled.high)
    assert figures == pytest.approx((alone.mean, alone.low, alone.high))
    lines = comparison_to_lines(found)
    assert lines[0] == "test: 400 rows of 200 users, two candidates (as given)"
    assert "AUC_PAIRED" in lines[1]
    assert "seen =" not in "".join(lines)


def test_seeds_of_pairs_are_averaged() -> None:
    seeds = [many(seed=seed) for seed in range(3)]
    found = compared(entry_of("sft", many(gap=0.0)), entry_of("align-dmpo", *seeds)).standings[1]
    paired, pooled = found.metrics["pairs"].values()
    assert paired.by_seed == pytest.approx([score_users(f)["auc_paired"].mean() for f in seeds])
    assert pooled.by_seed == pytest.approx([measure_pooled_auc([f], 2, 0).mean for f in seeds])
    assert pooled.mean == pytest.approx(np.mean(pooled.by_seed))
    figures = auc_figures(seeds, 200, 0)["metrics"]
    assert figures["auc_paired"]["mean"] == pytest.approx(paired.mean)
    assert (figures["auc_pooled"]["low"], figures["auc_pooled"]["high"]) == pytest.approx(
        (pooled.low, pooled.high)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"protocol": PairProtocol("test", "uniform", "games", {"data": "1"}, "rank-pair")},
            "candidates: two candidates (uniform), baseline two candidates (as given)",
        ),
        (
            {"protocol": PairProtocol("test", "as given", "movies", {"data": "1"}, "rank-pair")},
            "template: movies, baseline games",
        ),
        ({"data": "2"}, "other test rows"),
    ],
)
def test_different_protocols_do_not_compare(changes: dict[str, Any], reason: str) -> None:
    found = compared(entry_of("sft", BY_HAND), entry_of("align-dmpo", BY_HAND, **changes))
    assert found.standings[1].why_not == reason
    assert found.standings[1].contrasts == {"pairs": {}}


def test_other_candidates_for_the_same_rows_do_not_compare() -> None:
    found = compared(entry_of("sft", BY_HAND), entry_of("x", BY_HAND.assign(negative=2)))
    assert found.standings[1].why_not == "evaluated: 4 pairs, but not the baseline's"


def test_scored_pairs_come_back_from_disk(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", BY_HAND)
    back = read_pairs(tmp_path / "pairs.parquet")
    assert back["chosen_score"].tolist() == BY_HAND["chosen_score"].tolist()
    assert back["user_id"].tolist() == BY_HAND["user_id"].tolist()
    with pytest.raises(ArtefactError, match="a score is NaN"):
        write_pairs(tmp_path / "x.parquet", pairs(("a", float("nan"), 0.0)))
    assert not (tmp_path / "x.parquet").exists()
    (tmp_path / "pairs.parquet").write_bytes(b"no")
    for name in ("pairs.parquet", "missing.parquet"):
        with pytest.raises(ArtefactError, match=f"{name}: not a file of scored pairs"):
            read_pairs(tmp_path / name)
