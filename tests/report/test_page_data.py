"""What the page shows beside the comparison: groups of rows, beam errors, and ten users."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.evaluation.comparison import Entry
from llmrec_cli.evaluation.metrics import score_rows
from llmrec_cli.evaluation.statistics import bootstrap_means
from llmrec_cli.report.page.data import (
    choose_bounds,
    choose_page_rows,
    choose_users,
    find_title,
    measure_beam_errors,
    select_same_rows,
    slice_rows,
    sort_frames,
)
from tests.evaluation.sample_entries import LEAVES, N_ITEMS, compared, entry_of, predictions_of

ITEMS = pd.DataFrame(
    {
        "item_id": [f"i{at}" for at in range(N_ITEMS)],
        "title": [f"Title {at}" for at in range(N_ITEMS - 1)] + ["Title 0"],
        "tokens": [None] * N_ITEMS,
    }
)


def entry(name: str, *seeds: int, hit: float = 0.0, rows: int = 40) -> Entry:
    """With titles, and with the data section that slicing asks for the longest history."""
    made = entry_of(name, *seeds, hit=hit, rows=rows)
    manifest = {**made.evaluated_data.manifest, "data": {"history": 3}}
    return replace(
        made, evaluated_data=replace(made.evaluated_data, manifest=manifest, items=ITEMS)
    )


@pytest.mark.parametrize(
    ("figures", "bounds"),
    [
        (range(1, 11), [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]),
        ([0, 0, 5], [(0, 0), (5, 5)]),
        ([0, 0], [(0, 0)]),
        ([7], [(7, 7)]),
        ([1] * 90 + [2, 50], [(1, 1), (2, 50)]),  # ties stay together
        ([1, 1, 1, 9, 9, 9], [(1, 1), (2, 9)]),
    ],
)
def test_groups_are_of_about_equal_size_and_hold_every_row(
    figures: list[int], bounds: list[tuple[int, int]]
) -> None:
    found = choose_bounds(np.array(list(figures)))
    assert found == bounds
    held = [sum(low <= figure <= high for low, high in found) for figure in figures]
    assert held == [1] * len(held)


def test_a_group_is_scored_as_if_it_were_alone() -> None:
    entries = [entry("a", 1, hit=0.3), entry("b", 2, 3, hit=0.7)]
    comparison = compared(*entries)
    popularity, history = slice_rows(entries, comparison, "keep")
    frame = predictions_of(1)
    counts = LEAVES.count_L[LEAVES.leaf_of_item_I[frame["target"].to_numpy()]]
    assert sum(group.rows for group in popularity.groups) == len(frame)
    for place, group in enumerate(popularity.groups):
        inside = (counts >= group.low) & (counts <= group.high)
        assert group.rows == inside.sum()
        assert group.users == frame["user_id"][inside].nunique()
        for made in entries:
            by_seed = [score_rows(f, LEAVES, (1, 5), "keep", "miss") for f in sort_frames(made)]
            mean = np.mean([rows["ndcg@5"] for rows in by_seed], axis=0)
            alone = by_seed[0].assign(**{"ndcg@5": mean})[inside]
            wanted = bootstrap_means(alone, ["ndcg@5"], comparison.resamples, comparison.seed)
            found = popularity.estimates[made.name][place]
            assert found.mean == pytest.approx(wanted["ndcg@5"].mean)
            assert (found.low, found.high) == pytest.approx(
                (wanted["ndcg@5"].low, wanted["ndcg@5"].high)
            )
    assert [(group.low, group.high) for group in history.groups] == [(3, 3)]
    assert (popularity.longest, history.longest) == (None, 3)


def test_rows_of_one_user_are_drawn_together() -> None:
    """As if every user had one row of the mean: intervals do not shrink with copies of rows."""
    once = entry("a", 1, hit=0.5)
    frame = once.evaluations[0].predictions
    assert frame is not None
    copies = pd.concat([frame] * 9, ignore_index=True).assign(row=range(9 * len(frame)))
    run = replace(once.evaluations[0], predictions=copies)
    many = replace(once, evaluations=(run,))
    comparison = compared(once)
    one, nine = (slice_rows([e], comparison, "keep")[0].estimates["a"] for e in (once, many))
    for before, after in zip(one, nine, strict=True):
        assert after.mean == pytest.approx(before.mean)
        assert (after.low, after.high) == pytest.approx((before.low, before.high), nan_ok=True)


def test_entries_that_rank_other_rows_are_left_out() -> None:
    entries = [entry("a", 1), entry("b", 2, rows=30), entry("c", 3)]
    assert [e.name for e in select_same_rows(entries, None)] == ["a", "c"]
    assert [e.name for e in select_same_rows(entries, "b")] == ["b"]
    run = replace(entries[0].evaluations[0], predictions=None)
    pairs = replace(entries[0], evaluations=(run,))
    assert select_same_rows([pairs], "a") == []


def test_beam_errors_are_shares_of_rows_and_only_of_who_counted_them() -> None:
    counted, not_counted = entry("a", 1, 2), entry("b", 3)
    runs = []
    for run, wrong in zip(counted.evaluations, (range(10), range(20)), strict=True):
        assert run.predictions is not None
        differs = run.predictions["row"].isin(list(wrong))
        runs.append(replace(run, predictions=run.predictions.assign(beam_differs=differs)))
    counted = replace(counted, evaluations=tuple(runs))
    (found,) = measure_beam_errors([counted, not_counted], compared(counted, not_counted))
    assert found.entry == "a"
    assert found.rows == 40
    assert found.share.mean == pytest.approx((10 + 20) / 2 / 40)
    assert found.share.low < found.share.mean < found.share.high


def test_the_users_are_a_function_of_their_ids() -> None:
    frame = predictions_of(1, n_rows=200, n_users=50)
    users = list(choose_page_rows(frame)["user_id"])
    ids = sorted(set(frame["user_id"]), key=lambda user: sha256(user.encode()).hexdigest())
    assert users == ids[:10]
    assert list(choose_page_rows(predictions_of(9, n_rows=200, n_users=50))["user_id"]) == users
    first = frame.drop_duplicates("user_id").set_index("user_id")["row"]
    assert list(choose_page_rows(frame)["row"]) == [first[user] for user in users]
    assert len(choose_page_rows(predictions_of(1, n_users=3))) == 3


def test_lists_mark_the_target_and_what_the_user_had() -> None:
    entries = [entry("always", 1, hit=1.0), entry("never", 2)]
    frame = entries[1].evaluations[0].predictions
    assert frame is not None
    others = [[i for i in ranked if i != t] for ranked, t in zip(frame.ranked, frame.target)]  # noqa: B905
    run = replace(entries[1].evaluations[0], predictions=frame.assign(ranked=pd.Series(others)))
    entries[1] = replace(entries[1], evaluations=(run,))
    cases = choose_users(entries, compared(*entries), "keep")
    assert len(cases) == 10
    for case in cases:
        always, _never = case.lists
        own = frame.set_index("row").loc[case.row].to_dict()
        assert case.user == own["user_id"]
        assert case.history == tuple(find_title(ITEMS, item) for item in own["history"])
        assert always.rank == 1
        assert [item.target for item in always.items].count(True) == 1
        assert always.items[0].target
        assert always.items[0].title == case.target == find_title(ITEMS, int(own["target"]))
        leaf = LEAVES.leaf_of_item_I[own["target"]]
        assert case.target_count == LEAVES.count_L[leaf]
        had = {find_title(ITEMS, item) for item in own["history"]}
        assert all(item.seen == (item.title in had) for item in always.items)


def test_items_of_one_title_are_one_entry_for_users_too() -> None:
    """Item 11 bears item 0's title: either is a hit for the other."""
    made = entry("a", 1)
    frame = made.evaluations[0].predictions
    assert frame is not None
    frame = frame.assign(target=0, ranked=pd.Series([np.array([11, 3, 4, 5, 6])] * len(frame)))
    made = replace(made, evaluations=(replace(made.evaluations[0], predictions=frame),))
    assert {case.lists[0].rank for case in choose_users([made], compared(made), "keep")} == {1}


def test_removing_the_history_takes_it_out_of_the_lists() -> None:
    made = entry("a", 1)
    for case in choose_users([made], compared(made), "remove"):
        assert not [item for item in case.lists[0].items if item.seen and not item.target]


def test_items_without_a_title_go_by_their_tokens() -> None:
    items = pd.DataFrame({"title": [None, None, "A"], "tokens": [["<a_1>", "<b_2>"], None, None]})
    assert [find_title(items, at) for at in range(3)] == ["<a_1><b_2>", "?", "A"]
