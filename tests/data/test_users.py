"""The ordered log as whole users, whatever the batches it comes in."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from llmrec_cli.data.schema import ITEM, POSITION, RATING, TIMESTAMP, USER, USER_ID
from llmrec_cli.data.splitting import attach_badly_rated, batch_users

SCHEMA = {
    USER_ID: pl.String,
    ITEM: pl.Int32,
    RATING: pl.Float64,
    TIMESTAMP: pl.Int64,
    POSITION: pl.Int64,
}


def log(users: list[str]) -> pl.DataFrame:
    """One interaction for each entry, which is its user; ordered."""
    rows = [(user, at % 9, None, at, at) for at, user in enumerate(sorted(users))]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def cut(frame: pl.DataFrame, sizes: list[int]) -> Iterator[pl.DataFrame]:
    first = 0
    for size in sizes:
        if first < len(frame):
            yield frame[first : first + size]
        first += size
    if first < len(frame):
        yield frame[first:]


USERS = st.lists(
    st.sampled_from(["", "A", "a", "z", "é", "\uffff", "😀", "\U0010ffff"]), max_size=40
)
CUTS = st.lists(st.integers(1, 9), max_size=12)


@given(USERS, USERS, CUTS, CUTS)
def test_batches_leave_no_trace_and_nobody_is_cut(
    users: list[str], raters: list[str], cuts: list[int], other_cuts: list[int]
) -> None:
    ordered, bad = log(users), log(raters)
    batches = list(attach_badly_rated(batch_users(cut(ordered, cuts)), cut(bad, other_cuts)))

    assert [user for b in batches for user in b.log[USER_ID]] == ordered[USER_ID].to_list()
    of_batches = [set(b.log[USER_ID]) for b in batches]
    assert sum(map(len, of_batches)) == len(set(users))  # no user in two of them
    numbers = dict(zip(sorted(set(users), key=str.encode), range(99), strict=False))
    for batch in batches:
        for user, number, place, size in zip(
            batch.log[USER_ID], batch.log[USER], batch.place_N, batch.size_N, strict=True
        ):
            assert (number, size) == (numbers[user], users.count(user))
            assert 0 <= place < size
        assert batch.bad is not None
        theirs = batch.bad.filter(pl.col(USER_ID).is_in(batch.log[USER_ID].implode()))
        expected = bad.filter(pl.col(USER_ID).is_in(batch.log[USER_ID].implode()))
        assert theirs.equals(expected)


def test_the_places_of_a_user_who_spans_batches() -> None:
    (batch,) = batch_users(cut(log(["u"] * 7), [2, 2]))
    assert batch.place_N.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert batch.size_N.tolist() == [7] * 7
    assert batch.bad is None


def test_a_batch_ends_before_the_user_who_may_go_on() -> None:
    batches = list(batch_users(cut(log([*"aabbbc"]), [3])))
    assert [batch.log[USER_ID].to_list() for batch in batches] == [
        ["a", "a"],
        ["b", "b", "b"],
        ["c"],
    ]
