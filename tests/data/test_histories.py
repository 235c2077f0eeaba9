"""What is known of the interactions of a history: their words, and how they come from raw data."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from llmrec_cli.config.data import DataSection, InteractionField
from llmrec_cli.data.backends import POLARS
from llmrec_cli.data.histories import (
    EXAMPLES,
    NOTHING,
    InteractionHistory,
    read_histories,
    word_gap,
    word_rating,
)
from llmrec_cli.data.matching import items_of_user
from llmrec_cli.data.prepared import Prepared, load_prepared, write_items, write_manifest
from llmrec_cli.data.rows import write_rows
from llmrec_cli.data.schema import ITEM_ID, POSITION, RATING, TIMESTAMP, USER_ID
from llmrec_cli.data.splitting import plan_split, sort_by_user
from llmrec_cli.errors import ArtefactError

HOUR = 3_600_000


def at(text: str) -> int:
    """Milliseconds of a moment, UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (0, "the same day"),
        (1, "1 day later"),
        (2, "2 days later"),
        (60, "60 days later"),
        (61, "2 months later"),
        (91, "2 months later"),
        (92, "3 months later"),
        (730, "23 months later"),
        (731, "2 years later"),
        (1095, "2 years later"),
        (1096, "3 years later"),
        (36525, "100 years later"),
    ],
)
def test_gaps_in_words(days: int, words: str) -> None:
    assert word_gap(days) == words


def test_there_is_no_single_month_or_year() -> None:
    said = {word_gap(days) for days in range(5000)}
    assert not {"1 month later", "1 year later", "0 days later", "1 months later"} & said
    assert len(said) == 61 + 22 + 12


@pytest.mark.parametrize(
    ("rating", "words"),
    [
        (5.0, "5"),
        (4.5, "4.5"),
        (-1.0, "-1"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1_234_567.0, "1234567"),
        (math.nan, None),
    ],
)
def test_ratings_in_words(rating: float, words: str | None) -> None:
    assert word_rating(rating) == words


def history(times: list[int] | None, ratings: list[float] | None) -> InteractionHistory:
    size = len(times or ratings or [])
    return InteractionHistory(
        np.arange(size, dtype=np.int32),
        None if ratings is None else np.array(ratings, np.float64),
        None if times is None else np.array(times, np.int64),
    )


def test_days_are_those_of_the_calendar() -> None:
    late, early = at("2018-03-01T23:59:59.999"), at("2018-03-02T00:00:00")
    words = history([late - 23 * HOUR, late, early, early + 23 * HOUR], None).list_words()
    assert [said.gap for said in words] == [None, "the same day", "1 day later", "the same day"]
    before = history([at("1969-12-31T23:00:00"), at("1970-01-01T01:00:00")], None)
    assert before.list_words()[1].gap == "1 day later"


def test_what_is_first_has_no_gap_and_a_part_is_a_history_of_its_own() -> None:
    whole = history([at("2018-03-01"), at("2018-03-03"), at("2018-03-10")], [5.0, math.nan, 3.5])
    assert [tuple(said) for said in whole.list_words()] == [
        ("5", None),
        (None, "2 days later"),
        ("3.5", "7 days later"),
    ]
    assert [tuple(said) for said in whole[1:].list_words()] == [
        (None, None),
        ("3.5", "7 days later"),
    ]
    assert whole[-2:].list_words() == whole[1:].list_words()
    assert whole[3:].list_words() == []
    assert whole.list_words()[1].values() == {"gap": "2 days later"}
    assert whole.list_words()[2].without_gap().values() == {"rating": "3.5"}


def test_it_is_the_sequence_of_its_items() -> None:
    found = history([1, 2, 3], None)
    assert (list(found), len(found), found[1], found[-1]) == ([0, 1, 2], 3, 1, 2)
    assert list(reversed(found)) == [2, 1, 0]
    assert np.asarray(found, np.int64).tolist() == [0, 1, 2]
    assert np.asarray(found, np.int64).dtype == np.int64
    assert type(found[0]) is int
    assert not history([], [])
    assert history(None, [1.0]).list_words() == [("1", None)]
    assert InteractionHistory(np.arange(2, dtype=np.int32)).list_words() == [NOTHING] * 2


def test_examples_have_every_kind_of_words() -> None:
    said = {example.gap for example in EXAMPLES}
    assert {word_gap(days) for days in range(61)} <= said
    assert {"2 months later", "23 months later", "2 years later", "9 years later"} <= said
    assert {example.rating for example in EXAMPLES} == {"1", "2", "3", "4", "5"}


# From the log to the rows.


DAY = datetime(2018, 1, 1, tzinfo=UTC)
ITEMS = pl.DataFrame(
    {ITEM_ID: [f"{n:04d}" for n in range(20)], "item": pl.Series(range(20), dtype=pl.Int32)}
)
LOG = [  # user, item, days, rating
    *[
        ("u", item, day, rating)
        for item, day, rating in zip(
            (1, 2, 3, 4, 5, 6), (0, 0, 3, 3, 90, 91), (5.0, None, 3.5, 1.0, 2.0, 4.0), strict=True
        )
    ],
    *[("v", item, day, 4.5) for item, day in zip((7, 8, 9, 10), (1, 2, 50, 60), strict=True)],
]


def written(folder: Path, fields: tuple[InteractionField, ...], **keys: Any) -> pl.DataFrame:
    """All rows of the splits of ``LOG``."""
    asked = DataSection.model_validate({"format": "ratings2023", "reviews": ("r.csv",)} | keys)
    log = pl.DataFrame(
        {
            USER_ID: [user for user, *_ in LOG],
            ITEM_ID: [f"{item:04d}" for _, item, *_ in LOG],
            RATING: pl.Series([rating for *_, rating in LOG], dtype=pl.Float64),
            TIMESTAMP: [int((DAY + timedelta(day)).timestamp() * 1000) for _, _, day, _ in LOG],
            POSITION: pl.Series(range(len(LOG)), dtype=pl.Int64),
        }
    )
    with TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        log.write_parquet(scratch / "log.parquet")
        scanned = POLARS.scan(scratch / "log.parquet")
        plan = plan_split(scanned, len(log), asked, 0, POLARS, scratch / "moments")
        by_user = sort_by_user(scanned, ITEMS, POLARS, scratch / "by-user")
        write_rows(by_user, None, plan, asked.history, len(ITEMS), POLARS, folder, fields)
    names = ("train", "valid", "test")
    return pl.concat([pl.read_parquet(folder / f"{name}.parquet") for name in names])


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_every_history_item_has_its_own_rating_and_time(tmp_path: Path, split: str) -> None:
    rows = written(tmp_path, ("gap", "rating"), split=split, history=3)
    known = {(user, item): (rating, day) for user, item, day, rating in LOG}
    assert rows.columns[-2:] == ["history_rating", "history_timestamp"]
    assert rows["history"].list.len().max() == 3
    for row in rows.iter_rows(named=True):
        expected = [known[row["user_id"], item] for item in row["history"]]
        assert row["history_rating"] == [rating for rating, _ in expected]
        days = [(DAY + timedelta(day)).timestamp() * 1000 for _, day in expected]
        assert row["history_timestamp"] == days
        assert all(time <= row["timestamp"] for time in row["history_timestamp"])


@pytest.mark.parametrize("fields", [(), ("rating",), ("gap",)])
def test_only_what_is_asked_for_is_written(
    tmp_path: Path, fields: tuple[InteractionField, ...]
) -> None:
    rows = written(tmp_path, fields)
    own = {"rating": "history_rating", "gap": "history_timestamp"}
    assert rows.columns[7:] == [own[name] for name in fields]
    (tmp_path / "plain").mkdir()
    assert rows[:, :7].equals(written(tmp_path / "plain", ()))


def make_folder(folder: Path, change: pl.Expr | None = None) -> Prepared:
    """The folder of ``LOG``, as prepared; its training rows changed where asked."""
    written(folder, ("rating", "gap"), history=3)
    if change is not None:
        file = folder / "train.parquet"
        schema = pq.read_schema(file)
        changed = pl.read_parquet(file).with_columns(change)
        pq.write_table(changed.to_arrow().cast(schema), file)
    ids = ITEMS[ITEM_ID].to_list()
    items = {"item": range(20), ITEM_ID: ids, "title": ids, "brand": None, "tokens": None}
    write_items(folder, pl.DataFrame(items | {"count": 1}))
    write_manifest(folder, ("train", "valid", "test"), {"layout": 1})
    return load_prepared(folder)


def test_a_split_is_read_as_histories(tmp_path: Path) -> None:
    frame = make_folder(tmp_path).split("test")
    first, second = read_histories(frame)
    assert isinstance(first, InteractionHistory)
    assert isinstance(second, InteractionHistory)
    assert list(first) == [3, 4, 5]
    assert [tuple(said) for said in first.list_words()] == [
        ("3.5", None),
        ("1", "the same day"),
        ("2", "2 months later"),
    ]
    assert list(second) == [7, 8, 9]
    (unrated, *_) = [h for h in read_histories(make_folder(tmp_path).split("train")) if len(h) == 2]
    assert isinstance(unrated, InteractionHistory)
    assert [said.rating for said in unrated.list_words()] == ["5", None]


def test_a_split_without_them_is_read_as_items(tmp_path: Path) -> None:
    frame = make_folder(tmp_path).split("test")
    plain = read_histories(frame.drop(columns=["history_rating", "history_timestamp"]))
    assert all(isinstance(found, np.ndarray) for found in plain)
    rated = read_histories(frame.drop(columns="history_timestamp"))[0]
    assert isinstance(rated, InteractionHistory)
    assert [said.gap for said in rated.list_words()] == [None] * 3
    timed = read_histories(frame.drop(columns="history_rating"))[0]
    assert isinstance(timed, InteractionHistory)
    assert [said.rating for said in timed.list_words()] == [None] * 3
    assert read_histories(pd.DataFrame({"history": []})) == []


WRONG = {
    "shorter": (pl.col("history_rating").list.tail(1), "history_rating has not one value for each"),
    "none": (
        pl.when(pl.col("row") > 0).then("history_timestamp").alias("history_timestamp"),
        "history_timestamp has not one value for each",
    ),
    "no time": (
        pl.col("history_timestamp").list.eval(pl.when(pl.element() < 0).then(pl.element())),
        "history_timestamp has items without a time",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_with_other_ratings_or_times_is_refused(tmp_path: Path, case: str) -> None:
    change, problem = WRONG[case]
    with pytest.raises(ArtefactError, match=problem):
        make_folder(tmp_path, change)


def test_all_of_a_user_comes_with_ratings_and_times(tmp_path: Path) -> None:
    """Also of what the latest row has forgotten, and of its target, which has happened."""
    found = items_of_user(make_folder(tmp_path), "u")
    assert isinstance(found, InteractionHistory)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert [tuple(said) for said in found.list_words()] == [
        ("5", None),
        (None, "the same day"),
        ("3.5", "3 days later"),
        ("1", "the same day"),
        ("2", "2 months later"),
        ("4", "1 day later"),
    ]
