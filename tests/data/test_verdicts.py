"""Verdicts: each check's level and figures, from counts written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec_cli.data.audit import (
    Ahead,
    Measured,
    Rows,
    Verdict,
    find_later_training,
    find_undecided,
    find_unheard,
    judge_all,
    measure_ahead,
    select_raised,
    tell_percent,
)
from llmrec_cli.data.schema import (
    AS_READ,
    CUT_ITEMS,
    CUT_ROWS,
    HISTORY,
    ITEM,
    ITEM_ID,
    NO_TARGET,
    NO_TITLE,
    SHORT_HISTORY,
    SPLITS,
    TARGET,
    TIMESTAMP,
    UNSAMPLED,
    USER,
    USER_ID,
)

NOTHING = {"count": 0, "of": 100, "examples": []}
DAY = 86_400_000


CUTS = {UNSAMPLED: 100, CUT_ROWS: 0, CUT_ITEMS: 0}
KEPT = {AS_READ: 100, NO_TARGET: 0, SHORT_HISTORY: 0, NO_TITLE: 0}


def manifest(
    audit: Mapping[str, Any] = MappingProxyType({}),
    *,
    split: str = "leave-one-out",
    form: str = "amazon2018",
) -> Any:
    """A manifest in which nothing is wrong, but for what ``audit`` overrides."""
    clean = {
        "items that share a title or tokens": NOTHING | {"groups": 0},
        "test targets that share a title or tokens": NOTHING,
        "targets in their own history": dict.fromkeys(("train", "valid", "test"), NOTHING),
        "test targets never seen in training": NOTHING,
        "users in several splits": {"train and valid": 0, "train and test": 0, "valid and test": 0},
        "rows that stand in two splits": dict.fromkeys(
            ("train and valid", "train and test", "valid and test"), NOTHING
        ),
        "interactions that tie in time": NOTHING | {"interactions": 0},
        "training rows later than the earliest test row": {"count": 0, "of": 100},
        "popularity in training": {"gini": 0.5, "share of the top 1 % of items": 0.1},
    }
    assert set(audit) <= set(clean) | {"test pairs that are trained on"}
    return {
        "data": {
            "split": split,
            "format": form,
            "columns": {"timestamp": "timestamp"},
            "history": 20,
            "min_history": 1,
        },
        "cleaning": {name: dict(KEPT) for name in SPLITS} if split == "given" else [],
        "splits": {name: {"rows": 100} | CUTS for name in SPLITS},
        "catalogue": {"items": 100, "of these without a name, dropped": 0, "examples": []},
        "audit": {**clean, **audit},
    }


def found(n: int, of: int = 100, *examples: Any) -> dict[str, Any]:
    return {"count": n, "of": of, "examples": list(examples)}


def judged(check: str, told: Any, **further: Any) -> Verdict:
    [verdict] = [v for v in judge_all(told, **further) if v.check == check]
    return verdict


def test_nothing_wrong_is_ok_throughout() -> None:
    assert {v.level for v in judge_all(manifest())} == {"ok"}
    assert len(judge_all(manifest())) == 10
    assert select_raised(judge_all(manifest())) == ()


@pytest.mark.parametrize(("count", "level"), [(0, "ok"), (1, "note"), (5, "warning")])
def test_rows_in_two_splits_are_a_leak(count: int, level: str) -> None:
    told = found(count, 100, *["u7"][:count])
    common = {"train and valid": NOTHING, "train and test": told, "valid and test": NOTHING}
    verdict = judged(
        "rows that stand in two splits", manifest({"rows that stand in two splits": common})
    )
    assert (verdict.level, verdict.count, verdict.of) == (level, count, 100)
    assert ("test rows stand in train" in verdict.text) == bool(count)


@pytest.mark.parametrize(("count", "level"), [(0, "ok"), (4, "note"), (81, "warning")])
def test_rows_that_a_given_split_lost_are_told(count: int, level: str) -> None:
    told = manifest(split="given")
    told["cleaning"]["test"][SHORT_HISTORY] = count
    verdict = judged("rows of the source that are left out", told)
    assert (verdict.level, verdict.count, verdict.of) == (level, count, 100)
    assert (f"{count} have a history below 1" in verdict.text) == bool(count)


@pytest.mark.parametrize(("count", "level"), [(0, "ok"), (4, "ok"), (5, "note")])
def test_cut_histories_are_told(count: int, level: str) -> None:
    told = manifest()
    told["splits"]["test"] |= {CUT_ROWS: count, CUT_ITEMS: 7 * count}
    verdict = judged("histories cut to data.history", told)
    assert (verdict.level, verdict.count, verdict.of) == (level, count, 100)
    assert (f"{7 * count} older ones" in verdict.text) == bool(count)


def test_what_needs_attention_comes_warnings_first() -> None:
    told = manifest(
        {
            "items that share a title or tokens": found(2) | {"groups": 1},
            "test targets never seen in training": found(5),
        }
    )
    assert [v.level for v in select_raised(judge_all(told))] == ["warning", "note"]


@pytest.mark.parametrize(("count", "level"), [(0, "ok"), (1, "note"), (4, "note"), (5, "warning")])
def test_from_a_twentieth_of_the_rows_on_it_is_a_warning(count: int, level: str) -> None:
    told = manifest({"test targets never seen in training": found(count)})
    assert judged("test targets never seen in training", told).level == level


def test_shared_tokens_name_the_surplus_and_the_targets() -> None:
    """48 items in 23 groups are 25 more items than token sequences."""
    tokens = ["<a_1>", "<b_2>"]
    told = manifest(
        {
            "items that share a title or tokens": found(48, 9922, tokens) | {"groups": 23},
            "test targets that share a title or tokens": found(122, 24772),
        },
        form="semantic-ids",
    )
    verdict = judged("items that share a token sequence", told)
    assert "48 of 9,922 items share a token sequence" in verdict.text
    assert "25 more items than token sequences" in verdict.text
    assert "122 of 24,772 (0.5 %) test targets" in verdict.text
    assert verdict.examples == ("<a_1><b_2>",)
    assert verdict.level == "note"


def test_items_without_a_name_count_among_all_only_where_nothing_else_was_dropped() -> None:
    named = {"items": 6343, "of these without a name, dropped": 1, "examples": ["5746"]}
    given = judged(
        "items without a name", manifest(split="given", form="msl-windows") | {"catalogue": named}
    )
    assert (given.count, given.of, given.level) == (1, 6344, "note")
    cleaned = judged("items without a name", manifest() | {"catalogue": named})
    assert (cleaned.count, cleaned.of) == (1, None)


def test_repeats_of_any_split_are_told_and_tests_decide_the_level() -> None:
    splits = {"train": found(9, 10, "u"), "valid": NOTHING, "test": found(0, 10)}
    told = manifest({"targets in their own history": splits})
    verdict = judged("targets in their own history", told)
    assert verdict.level == "note"
    assert "9 of 10 (90 %) in train" in verdict.text
    assert verdict.examples == ("u",)


SIDES = {"train and valid": 0, "train and test": 3, "valid and test": 0}


@pytest.mark.parametrize(
    ("split", "form", "level"),
    [
        ("few-shot", "amazon2018", "warning"),
        ("given", "rank-pairs", "warning"),
        ("given", "msl-windows", "ok"),
        ("leave-one-out", "amazon2018", "ok"),
        ("global-time", "amazon2018", "ok"),
    ],
)
def test_only_a_split_by_user_forbids_users_on_both_sides(
    split: str, form: str, level: str
) -> None:
    told = manifest({"users in several splits": SIDES}, split=split, form=form)
    verdict = judged("users in several splits", told)
    assert (verdict.level, verdict.count) == (level, 3)
    assert "3 in train and test" in verdict.text


def test_pairs_to_align_on_may_be_of_users_to_train_on() -> None:
    sides = {"train and valid": 0, "train and preference": 100, "preference and test": 0}
    told = manifest({"users in several splits": sides}, split="given", form="rank-pairs")
    assert judged("users in several splits", told).level == "ok"


LATER = {"training rows later than the earliest test row": {"count": 50, "of": 100}}


@pytest.mark.parametrize(
    ("split", "level"),
    [("leave-one-out", "note"), ("few-shot", "note"), ("global-time", "warning")],
)
def test_only_a_split_by_time_forbids_later_training(split: str, level: str) -> None:
    assert judged("training later than test", manifest(LATER, split=split)).level == level


def test_how_far_training_looks_ahead_is_told_in_rows_and_days() -> None:
    measured = Measured({"test": Ahead(0.47, 0.5, 1139)}, found(28), NOTHING, NOTHING, NOTHING)
    verdict = judged("training later than test", manifest(LATER), measured=measured)
    assert "47 % of the training rows are still to come (median 50 %), over 1,139 days" in (
        verdict.text
    )
    assert verdict.figures["test: days to the end of training, median"] == 1139
    tied = manifest({"interactions that tie in time": found(3, 100, "u") | {"interactions": 7}})
    assert "28 of 100 (28 %) test targets tie" in (
        judged("interactions that tie in time", tied, measured=measured).text
    )


def test_what_cannot_be_told_says_so_and_is_no_alarm() -> None:
    unknown = dict.fromkeys(
        ("interactions that tie in time", "training rows later than the earliest test row")
    )
    for verdict in judge_all(manifest(unknown, split="given", form="msl-windows")):
        if verdict.check in ("interactions that tie in time", "training later than test"):
            assert (verdict.level, verdict.count) == ("ok", None)
            assert "cannot be told" in verdict.text
    no_times = manifest(LATER, form="interactions")
    no_times["data"]["columns"]["timestamp"] = None
    assert judged("training later than test", no_times).count is None


@pytest.mark.parametrize(("hr", "level"), [(0.11, "ok"), (0.09, "note")])
def test_pop_is_measured_against_ten_entries_at_random(hr: float, level: str) -> None:
    """102 items of 100 titles: ten of 100 entries hit once in ten."""
    told = manifest({"items that share a title or tokens": found(4, 102) | {"groups": 2}})
    score = {"hr@10": hr, "ndcg@10": 0.05}
    verdict = judged("score of Pop", told, pop={"test": {"keep": score, "remove": score}})
    assert verdict.level == level
    assert verdict.figures["hr@10 at random"] == pytest.approx(0.1)
    assert verdict.figures["test, keep: hr@10"] == hr


def test_trained_pairs_are_a_leak() -> None:
    told = manifest(
        {"test pairs that are trained on": found(15, 1000)}, split="given", form="rank-pairs"
    )
    assert judged("test pairs that are trained on", told).level == "warning"


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.0004, "under 0.1 %"),
        (0.9996, "over 99.9 %"),
        (0.0082, "0.8 %"),
        (0.997, "99.7 %"),
        (0.0996, "10 %"),
        (0.648, "65 %"),
    ],
)
def test_percent_is_neither_0_nor_100_unless_it_is(fraction: float, shown: str) -> None:
    assert tell_percent(fraction) == shown


def rows(*given: tuple[int, list[int], int, int]) -> pl.LazyFrame:
    """Rows (user, history, target, time)."""
    columns: dict[str, Any] = {
        USER: pl.Int32,
        HISTORY: pl.List(pl.Int32),
        TARGET: pl.Int32,
        TIMESTAMP: pl.Int64,
    }
    frame = pl.DataFrame(given, schema=columns, orient="row")
    return frame.lazy().with_columns(pl.format("u{}", USER).alias(USER_ID))


def test_ahead_against_every_pair_of_rows() -> None:
    draw = np.random.default_rng(0)
    times = {name: draw.integers(0, 30, 40) * DAY for name in ("train", "test")}
    train, test = (rows(*((0, [], 0, int(t)) for t in times[name])) for name in times)
    later = times["train"][None] > times["test"][:, None]  # equal is not later
    found_ahead = measure_ahead(train, test)
    assert found_ahead.mean == pytest.approx(later.mean())
    assert found_ahead.median == pytest.approx(np.median(later.mean(1)))
    to_end = np.maximum(0, times["train"].max() - times["test"]) / DAY
    assert found_ahead.days == pytest.approx(np.median(to_end))
    after = rows((0, [], 0, 40 * DAY))
    assert measure_ahead(train, after) == Ahead(0.0, 0.0, 0.0)
    none = find_later_training(
        Rows(pl.DataFrame(), {"train": train, "test": after}, None, clock=True)
    )
    assert none is not None
    assert none["count"] == 0


def test_ties_between_the_targets_of_one_user_only() -> None:
    valid = rows((0, [1], 2, 5), (1, [1], 2, 7), (2, [1], 2, 9))
    test = rows((0, [1, 2], 3, 5), (1, [1, 2], 3, 8), (3, [1], 2, 9))
    assert find_undecided(valid, test) == {"count": 1, "of": 3, "examples": ["u0"]}


def test_an_item_in_a_history_or_in_validation_was_heard_of() -> None:
    items = pl.DataFrame({ITEM: pl.Series(range(5), dtype=pl.Int32), ITEM_ID: list("abcde")})
    shown = [rows((0, [0], 1, 1)), rows((0, [], 2, 2))]
    test = rows((0, [], 0, 3), (1, [4], 2, 3), (2, [], 3, 3), (3, [], 3, 3))
    assert find_unheard(items, shown, test) == {"count": 2, "of": 4, "examples": ["d"]}
