"""Splits against hand-computed rows and a slow, obvious reference."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.backends import POLARS
from llmrec_cli.data.rows import SplitStatistics, write_rows
from llmrec_cli.data.schema import (
    HISTORY,
    ITEM,
    ITEM_ID,
    POSITION,
    RATING,
    ROW,
    TARGET,
    TIMESTAMP,
    USER,
    USER_ID,
)
from llmrec_cli.data.splitting import (
    draw_first,
    draw_sample,
    draw_user_order,
    plan_split,
    require_clock,
    sort_by_user,
)
from llmrec_cli.errors import DataError

Interaction = tuple[str, int, int]  # user, item, time; position is the order in the list
HandRow = tuple[str, list[int], int]

ITEMS = pl.DataFrame(
    {ITEM_ID: [f"{n:04d}" for n in range(100)], ITEM: pl.Series(range(100), dtype=pl.Int32)}
)


def section(**keys: object) -> DataSection:
    return DataSection.model_validate({"format": "ratings2023", "reviews": ("r.csv",)} | keys)


def written(
    interactions: list[Interaction], asked: DataSection, seed: int = 0
) -> tuple[dict[str, pl.DataFrame], SplitStatistics]:
    """The split files of interactions in any order, and what was counted; item n is index n."""
    columns = {
        USER_ID: [user for user, _, _ in interactions],
        ITEM_ID: [f"{item:04d}" for _, item, _ in interactions],
        RATING: [None] * len(interactions),
        TIMESTAMP: [time for _, _, time in interactions],
        POSITION: range(len(interactions)),
    }
    frame = pl.DataFrame(columns, schema_overrides={RATING: pl.Float64, POSITION: pl.Int64})
    with TemporaryDirectory() as made, TemporaryDirectory() as temporary:
        folder, scratch = Path(made), Path(temporary)
        frame.write_parquet(scratch / "log.parquet")
        log = POLARS.scan(scratch / "log.parquet")
        cut = plan_split(log, len(frame), asked, seed, POLARS, scratch / "moments")
        by_user = sort_by_user(log, ITEMS, POLARS, scratch / "by-user")
        tally = write_rows(by_user, None, cut, asked.history, len(ITEMS), POLARS, folder)
        names = ("train", "valid", "test")
        return {name: pl.read_parquet(folder / f"{name}.parquet") for name in names}, tally


def split(
    interactions: list[Interaction], asked: DataSection, seed: int = 0
) -> dict[str, list[HandRow]]:
    rows, _ = written(interactions, asked, seed)
    assert all(part[ROW].to_list() == list(range(len(part))) for part in rows.values())
    columns = (USER_ID, HISTORY, TARGET)
    return {
        name: [(u, list(h), t) for u, h, t in part[columns].rows()] for name, part in rows.items()
    }


def chain(user: str, items: list[int]) -> list[Interaction]:
    return [(user, item, time) for time, item in enumerate(items)]


def test_leave_one_out_by_hand() -> None:
    log = chain("v", [5, 6]) + chain("u", [1, 2, 3, 4, 9]) + chain("w", [7, 8, 1])
    assert split(log, section(history=2)) == {
        "train": [("u", [1], 2), ("u", [1, 2], 3), ("v", [5], 6)],  # "v": training only
        "valid": [("u", [2, 3], 4), ("w", [7], 8)],
        "test": [("u", [3, 4], 9), ("w", [7, 8], 1)],
    }
    with_first = split(log, section(history=2, min_history=0))["train"]
    assert with_first == [
        *[("u", [], 1), ("u", [1], 2), ("u", [1, 2], 3)],
        *[("v", [], 5), ("v", [5], 6), ("w", [], 7)],
    ]
    assert split(log, section(min_history=2)) == {
        "train": [("u", [1, 2], 3)],
        "valid": [("u", [1, 2, 3], 4)],
        "test": [("u", [1, 2, 3, 4], 9), ("w", [7, 8], 1)],
    }


def test_ties_in_time_break_by_input_order() -> None:
    log = [("u", 3, 7), ("u", 1, 7), ("u", 2, 7), ("u", 0, 1)]
    assert split(log, section(min_history=0))["test"] == [("u", [0, 3, 1], 2)]


def test_an_empty_split_names_the_key() -> None:
    log = chain("u", [1, 2, 3])
    with pytest.raises(DataError, match=r'"leave-one-out": no train row .* data\.min_history = 1'):
        split(log, section())


def test_global_time_cuts_windows_by_the_targets_time() -> None:
    # 2 users x 6 items; windows with 1 or more before them: 10, ordered by time, then position.
    early = [("a", n, 10 * n) for n in range(6)]
    late = [("b", 20 + n, 10 * n + (5 if n < 5 else 0)) for n in range(6)]  # the last two tie at 50
    asked = section(split="global-time", history=2)
    rows = split(late + early, asked)  # "b" comes first in the file
    assert [target for _, _, target in rows["train"]] == [1, 21, 2, 22, 3, 23, 4, 24]
    assert rows["valid"] == [("b", [23, 24], 25)]
    assert rows["test"] == [("a", [3, 4], 5)]
    rows = split(early + late, asked)
    assert (rows["valid"], rows["test"]) == ([("a", [3, 4], 5)], [("b", [23, 24], 25)])


def test_global_time_makes_msl_windows_of_5_to_11_items() -> None:
    users = [chain(f"u{n}", list(range(14))) for n in range(5)]
    asked = section(split="global-time", min_history=4, history=10)
    rows = split([row for user in users for row in user], asked)
    assert [len(rows[name]) for name in ("train", "valid", "test")] == [40, 5, 5]
    lengths = {len(history) + 1 for part in rows.values() for _, history, _ in part}
    assert lengths == set(range(5, 12))


def test_global_time_needs_a_clock() -> None:
    asked = section(format="semantic-ids", index="i", split="global-time")
    with pytest.raises(DataError, match='"semantic-ids" has no times that compare across users'):
        require_clock(asked)
    require_clock(section(format="semantic-ids", index="i"))


def test_global_time_keeps_drawn_rows_of_each_part_in_their_order() -> None:
    log = [(f"u{n % 7}", n % 90, n // 3) for n in range(90)]
    asked = section(split="global-time", min_history=2, history=4)
    whole, some = split(log, asked), section(**asked.model_dump() | {"sample": {"train": 9}})
    expected = [whole["train"][at] for at in draw_sample(len(whole["train"]), some, 0, "train")]
    assert split(log, some) == whole | {"train": expected}


def test_few_shot_splits_by_user_one_row_each() -> None:
    log = [row for n in range(10) for row in chain(f"u{n}", [1, 2, 3 + n])]
    rows = split(log, section(split="few-shot", few_shot_users=3), seed=1)
    users = {name: [user for user, _, _ in part] for name, part in rows.items()}
    assert {name: len(part) for name, part in users.items()} == {"train": 3, "valid": 3, "test": 4}
    assert sorted(user for part in users.values() for user in part) == [f"u{n}" for n in range(10)]
    assert all(part == sorted(part) for part in users.values())
    assert all(
        history == [1, 2] and target == 3 + int(user[1:])
        for part in rows.values()
        for user, history, target in part
    )
    other = split(log, section(split="few-shot", few_shot_users=3), seed=2)
    assert other["train"] != rows["train"]
    with pytest.raises(DataError, match=r"few_shot_users = 5: .* only 10 have 2 or more"):
        split(log, section(split="few-shot", few_shot_users=5))


@pytest.mark.parametrize("protocol", ["leave-one-out", "global-time", "few-shot"])
@pytest.mark.parametrize("sample", [{}, {"train": 3, "valid": 2, "test": 4}])
def test_rows_do_not_depend_on_the_batches_that_they_are_cut_in(
    monkeypatch: pytest.MonkeyPatch, protocol: str, sample: dict[str, int]
) -> None:
    log = [(f"u{n * n % 23:02}", n % 90, n // 3) for n in range(200)]
    asked = section(split=protocol, few_shot_users=3, sample=sample, history=4)
    whole, counted = written(log, asked)
    monkeypatch.setattr("llmrec_cli.data.splitting.BATCH", 7)
    some, counted_again = written(log, asked)
    assert all(some[name].equals(part) for name, part in whole.items())
    assert counted.summarize_ties() == counted_again.summarize_ties()
    assert (counted.count_I == counted_again.count_I).all()


def test_sample_keeps_order_and_is_a_fixed_function_of_the_seed() -> None:
    asked = section(sample={"train": 5})
    assert (
        draw_sample(20, asked, 0, "train").tolist() == draw_sample(20, asked, 0, "train").tolist()
    )
    drawn = [draw_sample(20, asked, seed, "train") for seed in range(50)]
    assert all(len(d) == 5 and (np.diff(d) > 0).all() for d in drawn)
    assert len({tuple(d) for d in drawn}) > 40
    assert draw_sample(20, asked, 0, "test").tolist() == list(range(20))
    assert draw_sample(3, asked, 0, "train").tolist() == [0, 1, 2]
    # Golden: a change here changes every few-row experiment.
    assert draw_sample(1000, asked, 0, "train").tolist() == [52, 448, 573, 809, 843]


def test_the_first_of_a_shuffle_need_not_all_be_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = draw_user_order(5000, 3, "train")
    key = np.array([3, crc32(b"train")], np.uint64)
    assert (whole == np.argsort(np.random.Philox(key=key).random_raw(5000), kind="stable")).all()
    monkeypatch.setattr("llmrec_cli.data.splitting._DRAWN", 64)
    for size in (0, 1, 63, 64, 65, 4999, 5000):
        assert draw_first(5000, size, 3, "train").tolist() == whole[:size].tolist()


def test_counts_take_each_training_interaction_once() -> None:
    log = chain("u", [1, 2, 3, 1, 4, 5]) + chain("w", [1, 7, 8])
    _, tally = written(log, section(history=2))
    # Training rows show u: 1 2 3 1; w's first item is in no training row.
    assert np.flatnonzero(tally.count_I).tolist() == [1, 2, 3]
    assert tally.count_I[:4].tolist() == [0, 2, 1, 1]


def test_users_with_interactions_at_one_time_are_tallied() -> None:
    log = [(user, item, time) for user in "abcde" for item, time in ((1, 0), (2, 1), (3, 2))]
    tied = [(user, item, 5) for user in "zyxw" for item in (1, 2, 3)]
    _, tally = written(log + tied, section(min_history=0))
    found = {"count": 4, "of": 9, "examples": ["w", "x", "y"], "interactions": 12}
    assert tally.summarize_ties() == found


def test_columns_have_their_types() -> None:
    rows, _ = written(chain("u", [1, 2, 3, 4]), section())
    assert rows["test"].schema == {
        ROW: pl.Int32,
        USER: pl.Int32,
        USER_ID: pl.String,
        HISTORY: pl.List(pl.Int32),
        TARGET: pl.Int32,
        TIMESTAMP: pl.Int64,
        RATING: pl.Float64,
    }


interactions_strategy = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.integers(0, 99), st.integers(0, 3)),
    min_size=1,
    max_size=40,
    unique_by=lambda row: (row[0], row[1]),
)


@settings(deadline=None)
@given(interactions_strategy, st.integers(1, 5), st.integers(0, 3))
def test_leave_one_out_equals_the_obvious_loop_and_never_leaks(
    interactions: list[Interaction], history: int, min_history: int
) -> None:
    asked = section(history=max(history, min_history), min_history=min_history)
    expected = slow_leave_one_out(interactions, asked.history, min_history)
    if not all(expected.values()):
        with pytest.raises(DataError, match="row is left"):
            split(interactions, asked)
        return
    rows = split(interactions, asked)
    assert rows == expected
    held = {(user, target) for name in ("valid", "test") for user, _, target in rows[name]}
    tested = {(user, target) for user, _, target in rows["test"]}
    for user, past, target in rows["train"]:
        assert not {(user, item) for item in [*past, target]} & held
    for user, past, target in rows["valid"]:
        assert not {(user, item) for item in [*past, target]} & tested
    assert not any(target in past for part in rows.values() for _, past, target in part)


def slow_leave_one_out(
    interactions: list[Interaction], history: int, min_history: int
) -> dict[str, list[HandRow]]:
    rows: dict[str, list[HandRow]] = {"train": [], "valid": [], "test": []}
    for user in sorted({user for user, _, _ in interactions}):
        mine = sorted(
            (time, position, item)
            for position, (owner, item, time) in enumerate(interactions)
            if owner == user
        )
        items = [item for _, _, item in mine]
        for at in range(min_history, len(items)):
            from_end = len(items) - at
            name = {1: "test", 2: "valid"}.get(from_end, "train") if len(items) > 2 else "train"
            rows[name].append((user, items[:at][-history:], items[at]))
    return rows
