"""Which item somebody means: ids as they stand, titles about as they are."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pytest

from llmrec_cli.data.matching import Finder
from llmrec_cli.data.schema import COUNT, ITEM_ID, TITLE
from llmrec_cli.errors import DataError

TITLES = {
    "B01": "The Hobbit",
    "B02": "The Hobbit: 75th Anniversary Edition",
    "B03": "Emma",
    "B04": "A Game of Thrones (A Song of Ice and Fire, Book 1)",
    "B05": "Emma",  # the same title, more popular
    "B06": "B07",  # a title that is another item's id
    "B07": "It",
    "B08": "!!!",
    "B09": "指輪物語",
}
COUNTS = {"B02": 9, "B05": 5, "B07": 4}


def finder(titles: Mapping[str, str | None] | None = None) -> Finder:
    names = TITLES if titles is None else titles
    counts = [COUNTS.get(name, 1) for name in names]
    return Finder(pd.DataFrame({ITEM_ID: list(names), TITLE: list(names.values()), COUNT: counts}))


def test_an_item_that_the_run_does_not_know_is_not_taken_for_another() -> None:
    """Not even for one whose title is nearly the same."""
    items = pd.DataFrame({ITEM_ID: ["i5", "i6"], TITLE: ["Title 5", "Both"], COUNT: [1, 1]})
    known = Finder(items, newer={"i45", "Title 45", "Both"})
    for query in ("i45", "Title 45"):
        with pytest.raises(DataError, match=f"'{query}': this item is newer than the run"):
            known.find(query)
    assert known.find("Both").item == 1  # a title that an old item has too
    assert known.find("Title 4").item == 0


def found(query: str) -> tuple[str, float]:
    match = finder().find(query)
    assert match.query == query
    return list(TITLES)[match.item], round(match.similarity, 4)


@pytest.mark.parametrize(
    ("query", "item", "similarity"),
    [
        ("B04", "B04", 1),  # an id
        ("B07", "B07", 1),  # an id before a title
        ("The Hobbit", "B01", 1),  # a title, although a more popular one begins with it
        ("Emma", "B05", 1),  # of equal titles, the more popular item
        ("!!!", "B08", 1),
        ("the hobbit", "B01", 1),  # but for case
        ("the hobit", "B01", 0.9474),  # 1 - 1 / (9 + 10), letters to insert over all letters
        ("hobbit", "B02", 0.9),  # a part; of equally similar ones, the more popular
        ("a game of thrones", "B04", 0.9),
        ("thrones of game a song of ice and fire book a 1", "B04", 0.95),  # in another order
        ("指輪物語", "B09", 1),
    ],
)
def test_what_is_found(query: str, item: str, similarity: float) -> None:
    assert found(query) == (item, similarity)


@pytest.mark.parametrize(
    ("query", "nearest"),
    [
        ("指輪物语", "'指輪物語' (0.75)"),  # like it, and not enough
        ("B03x", "'B03' (0.86)"),  # an id's neighbour is another item
        ("Emma Watson: a life", "'Emma' (0.35)"),  # a title that is a part of what was typed
        ("It was a dark and stormy night", "'The Hobbit' (0.25)"),
        ("Th", "'The Hobbit'"),  # a part that is too short
    ],
)
def test_what_is_not_found_is_an_error_with_the_nearest_names(query: str, nearest: str) -> None:
    with pytest.raises(DataError, match="expected an item id, a title, or nearly one") as error:
        finder().find(query)
    message = str(error.value)
    assert message.startswith(repr(query))
    assert nearest in message


@pytest.mark.parametrize("query", ["", "??"])
def test_a_query_without_letters_is_like_nothing(query: str) -> None:
    with pytest.raises(DataError, match=r"expected an item id, a title, or nearly one$"):
        finder().find(query)


def test_exactly_means_letter_for_letter() -> None:
    assert finder().find("The Hobbit", fuzzy=False).similarity == 1
    with pytest.raises(DataError, match="expected an item id, a title; nearest: 'The Hobbit'"):
        finder().find("the hobbit", fuzzy=False)


def test_ids_that_stand_in_for_titles_are_still_ids() -> None:
    """``data.untitled = "id"``: the title is the id, and a typo must not find another item."""
    names = {"B000123": "B000123", "B000124": "B000124", "B000999": "A title"}
    assert finder(names).find("B000124").item == 1
    with pytest.raises(DataError, match=r"nearest: 'B00012[34]' \(0.86\)"):
        finder(names).find("B000125")


def test_a_catalogue_without_titles_knows_ids_only() -> None:
    names = {"12": None, "13": None, "120": None}
    assert finder(names).find("13").item == 1
    with pytest.raises(DataError, match="'1200': expected an item id; nearest: '120'"):
        finder(names).find("1200")
