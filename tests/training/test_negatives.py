"""Negatives: never the target, never the user's own, the same for the same (row, epoch)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmrec_cli.data.catalog import CatalogueEntries, gather_entries
from llmrec_cli.errors import DataError, RecipeError
from llmrec_cli.methods.contract import Negatives
from llmrec_cli.training.negatives import NegativeSampler, Users, gather_users, require_scale
from llmrec_cli.training.rows import Row

N_ITEMS = 30
NO_PROMPT = np.empty(0, np.int32)


def leaves() -> CatalogueEntries:
    """30 items on 29 leaves: items 0 and 1 share one; item i was bought i times."""
    leaf_of_item = np.maximum(np.arange(N_ITEMS) - 1, 0)
    return gather_entries(pd.DataFrame({"count": np.arange(N_ITEMS)}), leaf_of_item)


FRAME = pd.DataFrame(
    {
        "user": [0, 0, 1],
        "user_id": ["ann", "ann", "bob"],
        "history": [[2], [2, 3], [10]],
        "target": [3, 4, 11],
        "rating": [5.0, 1.0, None],
    }
)


def sampler(**wanted: Any) -> NegativeSampler:
    choices: dict[str, Any] = {"k": 3, "draw": "uniform"} | wanted
    known = leaves()
    below = choices.get("below", 4.0)
    return NegativeSampler(Negatives(**choices), known, gather_users(FRAME, known, below), seed=5)


def row(number: int = 0, **changes: Any) -> Row:
    return replace(Row(NO_PROMPT, (3,), (2,), user=0, number=number), **changes)


def test_users_know_their_entries_and_what_they_disliked() -> None:
    users = gather_users(FRAME, leaves(), below=4.0)
    assert users.names == {0: "ann", 1: "bob"}
    assert users.owned == {0: frozenset({1, 2, 3}), 1: frozenset({9, 10})}
    assert users.disliked == {0: (3,)}  # item 4, rated 1; no rating is no dislike


@pytest.mark.parametrize("draw", ["uniform", "popularity"])
def test_negatives_are_distinct_and_nobody_owns_them(draw: str) -> None:
    draws = sampler(draw=draw, k=5)
    for number in range(200):
        (found,) = draws(row(number), epoch=0)
        entries = {max(item - 1, 0) for item in found}
        assert len(entries) == 5
        assert not entries & {1, 2, 3}


def test_an_entry_of_the_row_is_out_even_where_training_does_not_know_it() -> None:
    draws = sampler(k=20)
    for number in range(50):
        (found,) = draws(row(number, history=(20, 21), targets=(22,), user=99), epoch=0)
        assert not {20, 21, 22} & set(found)


def test_draws_are_a_pure_function_of_row_and_epoch() -> None:
    draws, again = sampler(), sampler()
    assert draws(row(7), epoch=2) == again(row(7), epoch=2)
    every = {draws(row(number), epoch=e) for number in range(20) for e in range(5)}
    assert len(every) > 90


def test_uniform_and_popularity_follow_their_distributions() -> None:
    def share_of_item_29(draw: str) -> float:
        draws = sampler(draw=draw, k=1)
        found = [draws(row(n, user=99), epoch=0)[0][0] for n in range(3000)]
        return found.count(29) / len(found)

    # 27 of 29 leaves are free for row(): 1 in 27, against 29 in 435 - 3 - 2 of the counts
    assert share_of_item_29("uniform") == pytest.approx(1 / 27, abs=0.012)
    assert share_of_item_29("popularity") == pytest.approx(29 / 430, abs=0.015)


def test_in_batch_takes_targets_of_other_rows_only() -> None:
    draws = sampler(draw="in-batch", k=2)
    (found,) = draws(row(), epoch=0, others=[3, 8, 9, 2, 9])
    assert sorted(found) == [9, 10]  # leaves 8 and 9; 2 and 3 are the user's own
    with pytest.raises(RecipeError, match=r"k = 2: only 1 possible"):
        draws(row(), epoch=0, others=[8, 8, 3])


def test_disliked_come_from_the_user_and_not_from_the_shown_history() -> None:
    draws = sampler(draw="disliked", k=1)
    assert draws(row(), epoch=0) == ((4,),)
    assert draws.usable(row())
    assert not draws.usable(row(history=(2, 4)))


RECORDED = FRAME.assign(disliked=pd.Series([[1, 4, 7, 8], [1, 4, 7, 8], []]))
VALID = pd.DataFrame(
    {
        "user": [1, 5, 5],
        "user_id": ["bob", "eve", "eve"],
        "history": [[10, 11], [20], [20, 21]],
        "target": [12, 21, 22],
        "rating": [5.0, 5.0, 5.0],
        "disliked": [[9], [23, 24], [23, 24, 25]],
    }
)


def test_recorded_dislikes_go_before_ratings() -> None:
    """Of items 1, 4, 7 and 8 ann has 4 (leaf 3) as a target; its low rating counts no more."""
    users = gather_users(RECORDED, leaves(), below=4.0)
    assert users.disliked == {0: (0, 6, 7), 1: ()}


def test_an_edition_of_what_the_user_has_is_not_disliked() -> None:
    owns_item_0 = RECORDED.assign(history=pd.Series([[0], [0, 3], [10]]))
    assert gather_users(owns_item_0, leaves(), below=4.0).disliked[0] == (6, 7)  # 1 shares its leaf


def test_validation_tells_of_users_who_do_not_train_and_of_no_other() -> None:
    users = gather_users(RECORDED, leaves(), 4.0, VALID)
    assert users.disliked == {0: (0, 6, 7), 1: (), 5: (22, 23)}  # eve's as of her first row
    assert set(users.owned) == {0, 1}
    draws = NegativeSampler(Negatives(k=2, draw="disliked"), leaves(), users, seed=0)
    eve = Row(NO_PROMPT, (21,), (20,), user=5)
    (found,) = draws(eve, epoch=0)
    assert sorted(found) == [23, 24]
    assert draws.usable_rows([row(), eve, replace(eve, user=1)]) == [row(), eve]
    with pytest.raises(DataError, match="none of 1 validation rows has k = 2"):
        draws.usable_rows([replace(eve, user=1)])


def test_model_draws_from_the_first_wrong_of_its_pool() -> None:
    draws = sampler(draw="model", k=2, pool=3)
    ranked = [2, 20, 1, 21, 22, 23]  # leaves 1 and 2 are the user's own
    seen = {item for n in range(60) for item in draws(row(n), epoch=0, mined=[ranked])[0]}
    assert seen == {21, 22, 23}  # the items of leaves 20, 21, 22


def test_too_few_negatives_name_the_user() -> None:
    rows = [row(), Row(NO_PROMPT, (11,), (10,), user=1, number=1)]
    draws = sampler(draw="disliked", k=1)
    with pytest.raises(DataError, match=r"user 'bob': fewer than k = 1"):
        draws.require(rows)
    kept = sampler(draw="disliked", k=1, short="drop").require(list(reversed(rows)))
    assert [(r.user, r.number) for r in kept] == [(0, 0)]
    with pytest.raises(DataError, match="fewer than k = 27"):
        sampler(k=27).require(rows)


def test_a_duplicate_of_the_target_is_no_negative() -> None:
    known = leaves()
    draws = NegativeSampler(Negatives(k=28, draw="uniform"), known, Users({}, {}, {}), seed=0)
    (found,) = draws(row(targets=(1,), history=(), user=9), epoch=0)
    assert 0 not in found
    assert 1 not in found


def test_ratings_on_another_scale_are_not_all_dislikes() -> None:
    likes = FRAME.assign(rating=[1.0, 0.0, np.nan])
    with pytest.raises(
        RecipeError, match="below = 4, and no training target is rated higher than 1"
    ):
        require_scale(likes, below=4.0)
    require_scale(likes, below=0.5)
    require_scale(FRAME, below=4.0)
    require_scale(FRAME.assign(rating=None), below=4.0)
    require_scale(RECORDED, below=4.0)
