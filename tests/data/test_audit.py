"""Audit counts by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from llmrec_cli.data.audit import Rows, count_findings, measure_concentration
from llmrec_cli.data.schema import (
    BRAND,
    COUNT,
    HISTORY,
    ITEM,
    ITEM_ID,
    TARGET,
    TIMESTAMP,
    TITLE,
    TOKENS,
    USER,
    USER_ID,
)

ITEMS = pl.DataFrame(
    {
        ITEM: pl.Series([0, 1, 2, 3], dtype=pl.Int32),
        ITEM_ID: ["a", "b", "c", "d"],
        TITLE: ["Tea", "Cup", "Tea", "Pot"],
        BRAND: None,
        TOKENS: pl.Series([None] * 4, dtype=pl.List(pl.String)),
        COUNT: [3, 1, 0, 0],
    }
)


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


SPLITS = {
    "train": rows((0, [1], 0, 5), (1, [0], 0, 9), (2, [1], 0, 8)),
    "valid": rows((0, [1, 0], 3, 6)),
    "test": rows((0, [1, 0, 3], 2, 8), (3, [1], 3, 9)),
}
TIED = {"count": 1, "of": 2, "examples": ["x"], "interactions": 2}


def test_every_check_by_hand() -> None:
    found = count_findings(Rows(ITEMS, SPLITS, TIED, clock=True))
    assert found == {
        "items that share a title or tokens": {
            "count": 2,
            "of": 4,
            "examples": ["Tea"],
            "groups": 1,
        },
        "test targets that share a title or tokens": {"count": 1, "of": 2, "examples": ["c"]},
        "targets in their own history": {
            "train": {"count": 1, "of": 3, "examples": ["u1"]},
            "valid": {"count": 0, "of": 1, "examples": []},
            "test": {"count": 0, "of": 2, "examples": []},
        },
        "test targets never seen in training": {"count": 2, "of": 2, "examples": ["c", "d"]},
        "users in several splits": {"train and valid": 1, "train and test": 1, "valid and test": 1},
        "rows that stand in two splits": {
            "train and valid": {"count": 0, "of": 1, "examples": []},
            "train and test": {"count": 0, "of": 2, "examples": []},
            "valid and test": {"count": 0, "of": 2, "examples": []},
        },
        "interactions that tie in time": TIED,
        "training rows later than the earliest test row": {"count": 1, "of": 3},
        "popularity in training": {"gini": 0.625, "share of the top 1 % of items": 0.75},
    }


def test_rows_that_stand_in_two_splits() -> None:
    train = rows((0, [1, 2], 3, 5), (1, [2], 0, 6), (2, [1], 0, 8))
    test = rows(
        (0, [1, 2], 3, 9),  # the same history and target, at another time
        (1, [1, 2], 0, 6),  # the same target at the same time, behind a longer history
        (2, [1], 1, 8),  # another target
        (3, [1], 0, 8),  # another user
    )
    splits = {"train": train, "valid": rows((2, [1], 0, 8)), "test": test}
    found = count_findings(Rows(ITEMS, splits, None, clock=True))["rows that stand in two splits"]
    assert found == {
        "train and valid": {"count": 1, "of": 1, "examples": ["u2"]},
        "train and test": {"count": 2, "of": 4, "examples": ["u0", "u1"]},
        "valid and test": {"count": 0, "of": 4, "examples": []},
    }
    without = count_findings(Rows(ITEMS, splits, None, clock=False))[
        "rows that stand in two splits"
    ]
    assert without["train and test"]["count"] == 1, "times that mean nothing are not compared"


def test_checks_that_cannot_be_made_say_so() -> None:
    found = count_findings(Rows(ITEMS, SPLITS, tied=None, clock=False))
    assert found["interactions that tie in time"] is None
    assert found["training rows later than the earliest test row"] is None


def test_gini_against_the_mean_absolute_difference() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 40).astype(np.int32)
    x = counts.astype(float)
    slow = np.abs(x[:, None] - x[None]).sum() / (2 * len(x) ** 2 * x.mean())
    assert gini(counts) == pytest.approx(slow, abs=5e-5)
    assert gini(np.full(7, 3, np.int32)) == 0


def gini(counts: NDArray[np.int32]) -> float:
    found: float = measure_concentration(
        Rows(pl.DataFrame({COUNT: counts}), SPLITS, None, clock=False)
    )["gini"]
    return found
