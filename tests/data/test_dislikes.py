"""What users disliked: by hand, against the obvious loop, and on genuine ratings."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import polars as pl
import pytest

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.backends import POLARS
from llmrec_cli.data.cleaning import CleaningSteps
from llmrec_cli.data.schema import (
    BRAND,
    DISLIKED,
    ITEM,
    ITEM_ID,
    POSITION,
    RATING,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER,
    USER_ID,
)
from llmrec_cli.pipeline.prepare import prepare_data, write_split_rows

Rating = tuple[str, str, float | None, int]  # user, item, rating, time; its place breaks ties
Moment = tuple[int, int]


@dataclass(frozen=True)
class Made:
    """What was prepared, and the moments that it was made from."""

    items: pl.DataFrame
    splits: dict[str, pl.DataFrame]
    log: pl.DataFrame  # the ratings that count, with ITEM


def made(folder: Path, ratings: list[Rating], seed: int = 0, **keys: object) -> Made:
    """The prepared rows of ratings; item "a" is titled "A"."""
    columns = {
        USER_ID: pl.Series([r[0] for r in ratings], dtype=pl.String),
        ITEM_ID: pl.Series([r[1] for r in ratings], dtype=pl.String),
        RATING: pl.Series([r[2] for r in ratings], dtype=pl.Float64),
        TIMESTAMP: pl.Series([r[3] for r in ratings], dtype=pl.Int64),
        POSITION: pl.Series(range(len(ratings)), dtype=pl.Int64),
    }
    read = pl.DataFrame(columns)
    interactions = folder / "interactions.parquet"
    read.write_parquet(interactions)
    ids = sorted({item for _, item, _, _ in ratings})
    known = pl.DataFrame({ITEM_ID: ids, TITLE: [item.upper() for item in ids]}).with_columns(
        pl.lit(None, pl.String).alias(BRAND), pl.lit(None, pl.List(pl.String)).alias(TOKENS)
    )
    asked = {"format": "ratings2023", "reviews": ("r",), "k_core": 0, "min_rating": 4.0} | keys
    section = DataSection.model_validate(asked)
    with TemporaryDirectory(dir=folder) as scratch:
        trail = CleaningSteps(POLARS, Path(scratch))
        items = write_split_rows(interactions, known, section, seed, trail, folder).items
    names = ("train", "valid", "test")
    splits = {name: pl.read_parquet(folder / f"{name}.parquet") for name in names}
    log = read.filter(pl.col(RATING) >= 4.0).join(items, on=ITEM_ID)
    return Made(items, splits, log)


def lists(found: Made, split: str, user: str) -> list[str]:
    """What each of the user's rows says, as "target: disliked items"."""
    ids = found.items[ITEM_ID]
    rows = found.splits[split].filter(pl.col(USER_ID) == user)
    return [
        f"{ids[target]}: {''.join(ids[item] for item in items)}"
        for target, items in rows.select(TARGET, DISLIKED).iter_rows()
    ]


OTHERS: list[Rating] = [("bob", item, 5.0, 0) for item in "abcdefghijk"]
ANN: list[Rating] = [
    ("ann", "a", 5.0, 10),
    ("ann", "b", 1.0, 11),
    ("ann", "z", 1.0, 11),  # which nobody rates higher: not in the catalogue
    ("ann", "d", 3.0, 12),  # and likes it later
    ("ann", "k", None, 12),  # no rating is no dislike
    ("ann", "c", 4.0, 13),
    ("ann", "a", 2.0, 14),  # liked before
    ("ann", "d", 5.0, 14),
    ("ann", "e", 3.5, 15),
    ("ann", "f", 5.0, 16),  # validation
    ("ann", "g", 1.0, 16),  # at the same time, after it in the file
    ("ann", "i", 1.0, 18),  # at the same time as the test target, before it in the file
    ("ann", "h", 5.0, 18),  # test
    ("ann", "j", 1.0, 19),
]


def test_leave_one_out_by_hand(tmp_path: Path) -> None:
    found = made(tmp_path, OTHERS + ANN)
    assert "z" not in found.items[ITEM_ID]
    assert lists(found, "train", "ann") == ["c: be", "d: be"]
    assert lists(found, "valid", "ann") == ["f: be"]
    assert lists(found, "test", "ann") == ["h: begi"]
    assert set(lists(found, "train", "bob")) == {f"{item}: " for item in "bcdefghi"}
    assert found.splits["train"].schema[DISLIKED] == pl.List(pl.Int32)


def test_what_was_disliked_and_only_then_liked_is_no_longer_disliked(tmp_path: Path) -> None:
    ratings: list[Rating] = [
        ("ann", "b", 1.0, 1),
        *(("ann", item, 5.0, 2 + at) for at, item in enumerate("cdebf")),
    ]
    found = made(tmp_path, OTHERS + ratings)
    assert lists(found, "train", "ann") == ["d: b", "e: b"]  # b is validation: not known yet
    assert lists(found, "valid", "ann") == ["b: b"]  # nor here: nobody may draw a row's own target
    assert lists(found, "test", "ann") == ["f: "]


def test_a_user_who_is_not_evaluated_has_no_future(tmp_path: Path) -> None:
    ratings: list[Rating] = [("eve", "a", 5.0, 1), ("eve", "b", 5.0, 2), ("eve", "c", 1.0, 9)]
    assert lists(made(tmp_path, OTHERS + ratings), "train", "eve") == ["b: c"]


def test_the_time_window_holds_for_dislikes_too(tmp_path: Path) -> None:
    day = 86_400_000
    rated: list[Rating] = [(user, item, r, day + at) for user, item, r, at in OTHERS + ANN]
    early: Rating = ("ann", "h", 1.0, 0)
    found = made(tmp_path, [early, *rated], start="1970-01-02")
    assert lists(found, "valid", "ann") == ["f: be"]


def test_without_a_threshold_there_is_no_column(tmp_path: Path) -> None:
    found = made(tmp_path, OTHERS + ANN, min_rating=None)
    assert not any(DISLIKED in rows.columns for rows in found.splits.values())


def random_ratings(seed: int) -> list[Rating]:
    rng = random.Random(seed)
    return [
        (f"u{rng.randrange(12)}", rng.choice("abcdefghij"), float(rng.randint(1, 5)), at // 3)
        for at in range(260)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["leave-one-out", "few-shot", "global-time"])
@pytest.mark.parametrize("sample", [{}, {"train": 5, "valid": 2, "test": 2}])
def test_every_protocol_equals_the_obvious_loop(
    tmp_path: Path, split: str, sample: dict[str, int]
) -> None:
    for seed in range(3):
        ratings = random_ratings(seed)
        keys = {"split": split, "few_shot_users": 3}
        whole = made(tmp_path, ratings, seed, **keys)
        found = made(tmp_path, ratings, seed, sample=sample, **keys)
        some = 0
        for name, rows in found.splits.items():
            for row in rows.iter_rows(named=True):
                until = moment_of(whole, row) if name != "train" else end(whole, row, split)
                ids = {found.items[ITEM_ID][item] for item in row[DISLIKED]}
                assert ids == slow(ratings, row[USER_ID], until) & set(found.items[ITEM_ID])
                assert row[DISLIKED] == sorted(set(row[DISLIKED]))
                some += bool(ids)
        assert some


def moment_of(found: Made, row: dict[str, object]) -> Moment:
    place = found.log.filter(pl.col(USER_ID) == row[USER_ID], pl.col(ITEM) == row[TARGET])
    moment: Moment = place.sort(TIMESTAMP, POSITION).select(TIMESTAMP, POSITION).row(0)
    return moment


def end(whole: Made, row: dict[str, object], split: str) -> Moment:
    """Of a training row: the first evaluated target, the user's or (global-time) anybody's."""
    held = [r for name in ("valid", "test") for r in whole.splits[name].iter_rows(named=True)]
    mine = [r for r in held if split == "global-time" or r[USER] == row[USER]]
    return min([moment_of(whole, r) for r in mine], default=(10**9, 0))


def slow(ratings: list[Rating], user: str, until: Moment) -> set[str]:
    before = [
        (item, rating)
        for at, (who, item, rating, time) in enumerate(ratings)
        if who == user and (time, at) < until and rating is not None
    ]
    bad = {item for item, rating in before if rating < 4}
    return bad - {item for item, rating in before if rating >= 4}


def test_gift_cards_equal_a_plain_count(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "amazon2018-gift-cards"
    raw = pd.read_json(folder / "Gift_Cards_5.json.gz", lines=True)
    data = {
        "format": "amazon2018",
        "reviews": str(folder / "Gift_Cards_5.json.gz"),
        "metadata": str(folder / "meta_Gift_Cards.json.gz"),
        "min_rating": 4.0,
    }
    recipe = Recipe.model_validate({"name": "cards", "out": str(tmp_path), "data": data})
    prepared = prepare_data(recipe, Path)

    raw = raw[raw["asin"].isin(prepared.items[ITEM_ID])]
    raw = raw.sort_values("unixReviewTime", kind="stable").reset_index()
    raw["at"] = raw.index  # the moment: time, then place in the file
    key = ["reviewerID", "asin"]
    liked = raw[raw["overall"] >= 4].groupby(key)["at"].min()
    disliked = raw[raw["overall"] < 4].groupby(key)["at"].min().rename("bad").reset_index()
    disliked = disliked.join(liked.rename("good"), on=key)
    for split, counted in (("valid", ("train", "valid")), ("test", ("test",))):
        rows = prepared.split(split)
        asin = prepared.items[ITEM_ID].to_numpy()[rows[TARGET]]
        targets = pd.MultiIndex.from_arrays([rows[USER_ID], asin], names=key)
        until = liked.loc[targets].reset_index("asin", drop=True).rename("until")
        both = disliked.join(until, on="reviewerID", how="inner")
        earlier = both[(both["bad"] < both["until"]) & ~(both["good"] < both["until"])]
        for name in counted:
            count = prepared.manifest["splits"][name]["users with disliked items"]
            assert count == earlier["reviewerID"].nunique() > 0
            users = prepared.split(name).drop_duplicates(USER_ID)
            assert users[DISLIKED].map(len).sum() == len(earlier)
