"""The fixed other candidates of validation and test pairs, and who validates on given pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from llmrec_cli.data.audit import Rows, find_trained_pairs
from llmrec_cli.data.negatives import count_disliked, fixed_negatives, owned_entries
from llmrec_cli.data.rows import hold_out_users
from llmrec_cli.data.schema import HISTORY, NEGATIVES, PREFERENCE, ROW, TARGET, USER, USER_ID
from llmrec_cli.errors import DataError

ENTRY = np.array([0, 1, 2, 3, 3, 4, 5, 6])  # items 3 and 4 share a title


def frame(*rows: tuple[int, list[int], int]) -> pd.DataFrame:
    users, histories, targets = zip(*rows, strict=True)
    columns = {USER: users, HISTORY: histories, TARGET: targets, ROW: range(len(rows))}
    return pd.DataFrame(columns).assign(**{USER_ID: [f"u{user}" for user in users]})


TEST = frame(*((user, [0, user % 3], 4) for user in range(300)))
TRAIN = frame((0, [], 6), (1, [5], 7))


def drawn(seed: int = 0, rows: pd.DataFrame = TEST, stream: str = "test-pairs") -> list[int]:
    owned = owned_entries([TRAIN, TEST], ENTRY)
    return fixed_negatives(rows, owned, ENTRY, seed=seed, stream=stream)


def test_a_negative_is_nothing_that_the_user_has_anywhere() -> None:
    """Not the target's own title either: item 3 would be the same words as target 4."""
    for user, item in enumerate(drawn()):
        assert ENTRY[item] not in {0, user % 3, 3}
    assert drawn()[0] != 6
    assert drawn()[1] not in (5, 7)


def test_negatives_are_uniform_over_what_is_left() -> None:
    counts = np.bincount(drawn(), minlength=8)
    assert counts[[0, 3, 4]].tolist() == [0, 0, 0]
    assert (np.abs(counts[[5, 6, 7]] - 300 * (1 / 5 + 2 / 4) / 3) < 25).all()


def test_a_negative_depends_on_its_row_and_the_seed_alone() -> None:
    part = drawn(rows=TEST.iloc[100:110])
    assert part == drawn()[100:110]
    assert drawn() == drawn()
    assert drawn(seed=1) != drawn()
    assert drawn(stream="valid-pairs") != drawn()


def test_a_disliked_item_goes_before_a_uniform_one() -> None:
    """Users 0, 3, 6, ... disliked 6, 7 and two of what they own; user 0 owns 6 in training."""
    lists = [np.array([0, 3, 6, 7] if user % 3 == 0 else [], np.int32) for user in range(300)]
    rows = TEST.assign(disliked=pd.Series(lists))
    found = drawn(rows=rows)
    assert found[0] == 7
    assert {found[user] for user in range(0, 300, 3)} == {6, 7}
    assert abs(found[::3].count(6) - 50) < 20
    others = [user for user in range(300) if user % 3]
    assert [found[user] for user in others] == [drawn()[user] for user in others]
    assert count_disliked(rows, found) == 100
    assert count_disliked(TEST, drawn()) == 0
    assert drawn(rows=rows.iloc[90:99]) == found[90:99]


def test_without_a_free_disliked_item_the_negative_is_uniform() -> None:
    rows = TEST.assign(
        disliked=pd.Series([np.array([0, 3], np.int32)] * 300)
    )  # 3 has the target's title
    assert drawn(rows=rows) == drawn()
    assert count_disliked(rows, drawn()) == 0


def test_a_user_who_owns_everything_is_named() -> None:
    whole = frame((9, [0, 1, 2, 3, 5, 6], 7))
    with pytest.raises(DataError, match="user 'u9': owns every item"):
        fixed_negatives(whole, owned_entries([whole], ENTRY), ENTRY, seed=0, stream="x")


def pairs(*users: str, target: str = "t", k: int = 1) -> pl.DataFrame:
    columns = {USER_ID: users, TARGET: [target] * len(users)}
    return pl.DataFrame(columns, schema={USER_ID: pl.String, TARGET: pl.String}).with_columns(
        pl.Series(NEGATIVES, [[f"n{i}" for i in range(k)]] * len(users), pl.List(pl.String))
    )


def test_a_tenth_of_the_users_leaves_training_and_preference() -> None:
    users = [f"u{n}" for n in range(25)]
    rows = {"train": pairs(*users[:20]), PREFERENCE: pairs(*users[10:], k=3), "test": pairs("x")}
    kept = hold_out_users(rows, seed=0)
    held = set(kept["valid"][USER_ID])
    assert len(held) == len(kept["valid"]) == 3
    for name in ("train", PREFERENCE):
        assert kept[name][USER_ID].to_list() == [u for u in rows[name][USER_ID] if u not in held]
    assert kept["test"].equals(rows["test"])
    for user, negatives in kept["valid"].select(USER_ID, NEGATIVES).iter_rows():
        assert len(negatives) == (3 if int(user[1:]) >= 10 else 1)
    assert hold_out_users(rows, seed=0)["valid"].equals(kept["valid"])
    assert any(set(hold_out_users(rows, seed=s)["valid"][USER_ID]) != held for s in (1, 2, 3))


def test_without_preference_training_users_are_held_out() -> None:
    kept = hold_out_users({"train": pairs(*"abcdefghij"), "test": pairs("x")}, seed=0)
    assert [len(kept[name]) for name in ("train", "valid", "test")] == [9, 1, 1]
    assert PREFERENCE not in kept


def test_pairs_that_are_trained_on_are_counted() -> None:
    splits = {"train": pairs("a", "b"), PREFERENCE: pairs("c", k=2), "test": pairs(*"abcd", k=2)}
    lazy = {name: rows.lazy() for name, rows in splits.items()}
    found = find_trained_pairs(Rows(pl.DataFrame(), lazy, None, clock=False))
    assert (found["count"], found["of"]) == (4, 8)  # a and b once, both of c's
    assert found["examples"] == ["a", "b", "c"]
