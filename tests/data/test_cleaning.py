"""Cleaning against hand-computed cases and a slow, obvious reference."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_cli.config.data import DataSection
from llmrec_cli.data import cleaning
from llmrec_cli.data.backends import POLARS
from llmrec_cli.data.catalog import NamedItems
from llmrec_cli.data.cleaning import CleaningSteps, filter_interactions, filter_to_core
from llmrec_cli.data.schema import ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.errors import DataError

Row = tuple[str, str, float | None, int]


def section(**keys: object) -> DataSection:
    return DataSection.model_validate(
        {"format": "ratings2023", "reviews": ("r.csv",), "k_core": 0, "duplicates": "keep"} | keys
    )


def write(folder: Path, rows: list[Row]) -> Path:
    """Rows (user, item, rating, time) as a reader delivers them; position is their order."""
    columns = {
        USER_ID: pl.Series([r[0] for r in rows], dtype=pl.String),
        ITEM_ID: pl.Series([r[1] for r in rows], dtype=pl.String),
        RATING: pl.Series([r[2] for r in rows], dtype=pl.Float64),
        TIMESTAMP: pl.Series([r[3] for r in rows], dtype=pl.Int64),
        POSITION: pl.Series(range(len(rows)), dtype=pl.Int64),
    }
    file = folder / "interactions.parquet"
    pl.DataFrame(columns).reverse().write_parquet(file)  # position alone tells the order
    return file


def cleaned(
    folder: Path, rows: list[Row], asked: DataSection, named: list[str] | None = None
) -> tuple[list[int], CleaningSteps]:
    """Positions of the interactions that are left, in their final order."""
    trail = CleaningSteps(POLARS, folder)
    log = filter_interactions(POLARS.scan(write(folder, rows)), asked, trail)
    occurring = cleaning.collect_item_ids(log, POLARS, folder / "ids.parquet").to_list()
    kept = occurring if named is None else named
    items = pl.DataFrame({ITEM_ID: kept}, schema={ITEM_ID: pl.String})
    dropped = sorted(set(occurring) - set(kept))
    left = filter_to_core(log, NamedItems(items, dropped, dropped), asked, trail)
    ordered = left.sort(USER_ID, TIMESTAMP, POSITION).collect("polars").to_native()
    return ordered[POSITION].to_list(), trail


ROWS: list[Row] = [
    ("u", "a", 5.0, 30),
    ("u", "b", 2.0, 10),
    ("u", "a", 4.0, 20),
    ("t", "c", None, 20),
    ("u", "a", 1.0, 20),
    ("t", "b", 3.0, 10),
]


def test_order_is_user_then_time_then_input_position(tmp_path: Path) -> None:
    left, _ = cleaned(tmp_path, ROWS, section())
    assert left == [5, 3, 1, 2, 4, 0]  # "t" before "u"; 2 before 4 at the same time


def test_repeated_pairs_keep_the_first_or_last_in_time_and_break_ties_by_position(
    tmp_path: Path,
) -> None:
    assert cleaned(tmp_path, ROWS, section(duplicates="first"))[0] == [5, 3, 1, 2]
    assert cleaned(tmp_path, ROWS, section(duplicates="last"))[0] == [5, 3, 1, 0]
    tied = ROWS[1:]  # both "a" of "u" at time 20 now: input order decides
    assert cleaned(tmp_path, tied, section(duplicates="first"))[0] == [4, 2, 0, 1]
    assert cleaned(tmp_path, tied, section(duplicates="last"))[0] == [4, 2, 0, 3]


def test_rating_threshold_is_inclusive_and_drops_the_unrated(tmp_path: Path) -> None:
    assert cleaned(tmp_path, ROWS, section(min_rating=4.0))[0] == [2, 0]


def test_a_badly_rated_interaction_does_not_stand_in_for_its_pair(tmp_path: Path) -> None:
    rows: list[Row] = [("u", "a", 1.0, 1), ("u", "a", 5.0, 2)]
    assert cleaned(tmp_path, rows, section(min_rating=3.0, duplicates="first"))[0] == [1]


def test_time_window_includes_its_start_and_excludes_its_end(tmp_path: Path) -> None:
    day = 86_400_000
    rows: list[Row] = [("u", "a", None, day * n + extra) for n in (0, 1, 2) for extra in (-1, 0)]
    asked = section(start="1970-01-02", end="1970-01-03")
    assert cleaned(tmp_path, rows, asked)[0] == [3, 4]
    assert cleaned(tmp_path, rows, section(start="1970-01-03"))[0] == [5]
    assert cleaned(tmp_path, rows, section(end="1970-01-02"))[0] == [0, 1, 2]


def test_untitled_items_leave_before_the_k_core(tmp_path: Path) -> None:
    rows: list[Row] = [(user, item, None, 0) for user in "uv" for item in "ab"]
    rows += [("u", "x", None, 0), ("w", "a", None, 0), ("w", "x", None, 0)]
    # With "x", user "w" is in the 2-core; without a name for "x" it is not.
    assert cleaned(tmp_path, rows, section(k_core=2))[0] == [0, 1, 4, 2, 3, 5, 6]
    assert cleaned(tmp_path, rows, section(k_core=2), named=["a", "b"])[0] == [0, 1, 2, 3]


def test_the_k_core_is_iterated_and_counts_each_pair_once(tmp_path: Path) -> None:
    chain: list[Row] = [("u", "a", None, 0), ("u", "b", None, 0), ("v", "b", None, 0)]
    square: list[Row] = [(user, item, None, 0) for user in "xy" for item in "pq"]
    # The chain falls apart round by round; repeats do not make it a 2-core.
    rows = chain + chain + square + square[:1]
    left, trail = cleaned(tmp_path, rows, section(k_core=2))
    assert left == [6, 7, 10, 8, 9]
    assert [(s.step, s.users, s.items, s.interactions) for s in trail.steps] == [
        ("as read", 4, 4, 11),
        ("data.untitled = drop", 4, 4, 11),
        ("data.k_core = 2", 2, 2, 5),
    ]


def test_nothing_left_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no interaction of 6 is left after: data\.k_core = 4; "):
        cleaned(tmp_path, ROWS, section(k_core=4))
    with pytest.raises(DataError, match=r"^no interaction is left after: as read$"):
        cleaned(tmp_path, [], section())


@pytest.mark.parametrize(("k", "asked"), [(2, 9), (3, 4), (3, 17)])
def test_an_empty_k_core_tells_the_largest_that_is_none(tmp_path: Path, k: int, asked: int) -> None:
    square: list[Row] = [(f"u{u}", f"i{i}", None, 0) for u in range(k) for i in range(k)]
    lonely: list[Row] = [("v", "i0", None, 0)]
    told = (
        rf"after: data\.k_core = {asked}; at most k_core = {k} leaves any: "
        rf"{k * k} interactions, {k} users, {k} items$"
    )
    with pytest.raises(DataError, match=told):
        cleaned(tmp_path, square + lonely, section(k_core=asked))
    with pytest.raises(DataError, match=r"no k_core above 1 leaves any$"):
        cleaned(tmp_path, lonely, section(k_core=asked))


pairs_strategy = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(pairs=pairs_strategy, k=st.integers(2, 4), repeated=st.booleans())
def test_the_k_core_is_the_largest_one(
    pairs: list[tuple[int, int]], k: int, repeated: bool
) -> None:
    """Counted with and without regard to repeated pairs, which only the former may be given."""
    pairs = pairs if repeated else list(dict.fromkeys(pairs))
    rows: list[Row] = [(f"u{user}", f"i{item}", None, 0) for user, item in pairs]
    with TemporaryDirectory() as folder:
        log = POLARS.scan(write(Path(folder), rows))
        got = (
            cleaning.find_core(log, k, repeated, POLARS, Path(folder)).collect("polars").to_native()
        )
    kept = slow_core({(user, item) for user, item, _, _ in rows}, k)
    assert sorted(got[POSITION].to_list()) == [
        n for n, (user, item, _, _) in enumerate(rows) if (user, item) in kept
    ]


def slow_core(pairs: set[tuple[str, str]], k: int) -> set[tuple[str, str]]:
    """Remove one offending user or item at a time: what remains is the unique maximal core."""
    while True:
        users = Counter(user for user, _ in pairs)
        items = Counter(item for _, item in pairs)
        weak = [u for u in users if users[u] < k] + [i for i in items if items[i] < k]
        if not weak:
            return pairs
        pairs = {pair for pair in pairs if weak[-1] not in pair}


def test_a_step_that_takes_nothing_is_counted_without_being_carried_out(tmp_path: Path) -> None:
    _, trail = cleaned(tmp_path, ROWS, section())
    assert [step.step for step in trail.steps] == ["as read", "data.untitled = drop"]
    assert not list(tmp_path.glob("step-*"))
    _, trail = cleaned(tmp_path, ROWS, section(duplicates="first"), named=["a"])
    assert [file.name for file in tmp_path.glob("step-*")] == ["step-2.parquet"]  # step 1 went
    assert trail.steps[-1].interactions == 1


def test_a_threshold_over_what_nobody_rated_says_so(tmp_path: Path) -> None:
    """Seen: "no interaction is left after min_rating" where there was no rating at all."""
    unrated: list[Row] = [("u", "a", None, 1), ("u", "b", None, 2), ("v", "a", None, 1)]
    with pytest.raises(DataError) as error:
        cleaned(tmp_path, unrated, section(min_rating=4.0))
    assert str(error.value) == (
        "data.min_rating = 4: none of 3 interactions has a rating; remove data.min_rating"
    )
    assert cleaned(tmp_path, unrated, section())[0] == [0, 1, 2]


@pytest.mark.parametrize(
    ("keys", "step"),
    [
        ({"start": "2020-01-01"}, "data.start = 2020-01-01"),
        ({"end": "1970-01-01"}, "data.end = 1970-01-01"),
        (
            {"start": "2019-01-01", "end": "2020-01-01"},
            "data.start = 2019-01-01, data.end = 2020-01-01",
        ),
        ({"min_rating": 5.0}, "data.min_rating = 5"),
        ({"k_core": 2}, "data.k_core = 2"),
    ],
)
def test_the_step_that_empties_the_log_is_named_by_what_was_set(
    keys: dict[str, object], step: str, tmp_path: Path
) -> None:
    rows: list[Row] = [("u", "a", 4.0, 1), ("v", "b", None, 2)]
    with pytest.raises(DataError) as error:
        cleaned(tmp_path, rows, section(**keys))
    said, _, _ = str(error.value).partition(";")
    assert said == f"no interaction of 2 is left after: {step}"
