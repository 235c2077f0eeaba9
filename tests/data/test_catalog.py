"""Naming items: titles, brands, ids, semantic IDs; equal titles told apart."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_cli.config.data import DataSection
from llmrec_cli.data.catalog import build_catalogue, disambiguate, mark_shared_identity, name_items
from llmrec_cli.data.formats.base import ITEM_SCHEMA
from llmrec_cli.data.schema import BRAND, ITEM, ITEM_ID, TITLE, TOKENS
from llmrec_cli.errors import DataError


def section(**keys: object) -> DataSection:
    base = {"format": "amazon2018", "reviews": ("r",), "metadata": ("m",)}
    return DataSection.model_validate(base | keys)


def known(*rows: tuple[str, str | None, str | None]) -> pl.DataFrame:
    return pl.DataFrame([(*row, None) for row in rows], schema=ITEM_SCHEMA, orient="row")


def ids(*names: str) -> pl.Series:
    return pl.Series(ITEM_ID, names, dtype=pl.String)


KNOWN = known(("c", "Tea", "Acme"), ("a", None, "Bolt"), ("b", "Cup", None), ("z", "Not met", None))


def test_untitled_items_are_dropped_or_named_by_brand_or_id() -> None:
    occurring = ids("c", "b", "a", "d")  # "d" has no metadata at all
    dropped = name_items(occurring, KNOWN, section())
    assert dropped.items[ITEM_ID].to_list() == ["b", "c"]
    assert (dropped.untitled, dropped.dropped) == (["a", "d"], ["a", "d"])
    brand = name_items(occurring, KNOWN, section(untitled="brand"))
    assert brand.items[TITLE].to_list() == ["Bolt", "Cup", "Tea"]
    assert (brand.untitled, brand.dropped) == (["a", "d"], ["d"])
    by_id = name_items(occurring, KNOWN, section(untitled="id"))
    assert by_id.items[TITLE].to_list() == ["a", "Cup", "Tea", "d"]
    assert by_id.dropped == []


def test_an_id_that_serves_as_a_title_stands_on_one_line() -> None:
    named = name_items(ids("a\tb\u2028c", " \x85 ", "d"), KNOWN, section(untitled="id")).items
    assert named[TITLE].to_list() == ["a b c", "d"]
    assert named[ITEM_ID].to_list() == ["a\tb\u2028c", "d"]


def test_more_than_half_without_a_title_stops_with_examples_and_a_way_out() -> None:
    occurring = ids("b", "p", "q", "r", "s")
    with pytest.raises(DataError) as error:
        name_items(occurring, KNOWN, section())
    assert str(error.value) == (
        "data.untitled = \"drop\": 4 of 5 items (e.g. 'p', 'q', 'r') have no usable title: set"
        ' data.untitled = "id", or name the right metadata file in data.metadata'
    )
    branded = pl.concat([KNOWN, known(*((name, None, "Acme") for name in "pqr"))])
    with pytest.raises(DataError, match=r'set data\.untitled = "brand" or "id", or name'):
        name_items(occurring, branded, section())
    assert name_items(occurring, branded, section(untitled="brand")).dropped == ["s"]
    with pytest.raises(DataError, match=r'neither a usable title nor a brand: set .* = "id"'):
        name_items(occurring, KNOWN, section(untitled="brand"))
    exactly_half = name_items(ids("b", "p"), KNOWN, section())
    assert exactly_half.dropped == ["p"]


def test_a_source_without_metadata_needs_ids_as_titles() -> None:
    ratings = section(format="ratings2023", metadata=())
    with pytest.raises(DataError, match=r'no metadata file is named: set data\.untitled = "id"'):
        name_items(ids("a"), known(), ratings)


SEMANTIC = pl.DataFrame(
    {ITEM_ID: ["a", "b", "c"], TITLE: None, BRAND: None, TOKENS: [["1", "2"], ["1", "2"], ["12"]]},
    schema=ITEM_SCHEMA,
)
BY_TOKENS = {"format": "semantic-ids", "metadata": (), "index": "i"}


def test_semantic_ids_need_no_titles() -> None:
    named = name_items(ids("a", "b", "d"), SEMANTIC, section(**BY_TOKENS))
    assert named.items[TOKENS].to_list() == [["1", "2"], ["1", "2"]]
    assert named.dropped == ["d"]
    with pytest.raises(DataError, match=r"2 of 3 items \(e\.g\. 'd', 'e'\) are not in the"):
        name_items(ids("a", "d", "e"), SEMANTIC, section(**BY_TOKENS))
    with pytest.raises(DataError, match='"disambiguate": semantic IDs have no title'):
        name_items(ids("a"), SEMANTIC, section(**BY_TOKENS, identity="disambiguate"))


def test_shared_identity_is_equal_titles_or_equal_token_lists() -> None:
    assert mark_shared_identity(SEMANTIC).to_list() == [
        True,
        True,
        False,
    ]  # ["1","2"] is not ["12"]
    titles = known(("a", "X", None), ("b", "Y", None), ("c", "X", None))
    assert mark_shared_identity(titles).to_list() == [True, False, True]


def test_equal_titles_get_a_brand_then_a_counter() -> None:
    titles = ["Card", "Card", "Card", "Card", "Solo", "Card (3)"]
    brands = ["Acme", "Bolt", None, None, "Acme", "Acme"]
    assert disambiguate(titles, brands) == [
        "Card (Acme)",
        "Card (Bolt)",
        "Card",
        "Card (2)",
        "Solo",
        "Card (3)",
    ]
    assert disambiguate(["A", "A", "A (2)"], [None] * 3) == ["A", "A (3)", "A (2)"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", "A (2)", "A (B)", "A (B) (2)", "C"]),
            st.sampled_from([None, "B", "2"]),
        )
    )
)
def test_disambiguated_titles_are_unique(rows: list[tuple[str, str | None]]) -> None:
    names = disambiguate([title for title, _ in rows], [brand for _, brand in rows])
    assert len(set(names)) == len(rows)
    assert all(name.startswith(title) for name, (title, _) in zip(names, rows, strict=True))


def test_the_catalogue_is_in_order_of_item_id() -> None:
    rows = known(("b", "X", None), ("10", "X", None), ("a", "Y", None), ("9", "X", "Acme"))
    merged = build_catalogue(rows, section())
    assert merged[ITEM_ID].to_list() == ["10", "9", "a", "b"]  # as strings
    assert merged[ITEM].to_list() == [0, 1, 2, 3]
    assert merged.schema[ITEM] == pl.Int32
    assert merged[TITLE].to_list() == ["X", "X", "Y", "X"]
    apart = build_catalogue(rows, section(identity="disambiguate"))
    assert apart[TITLE].to_list() == ["X", "X (Acme)", "Y", "X (2)"]


def test_a_title_that_is_its_brand_is_not_extended_by_it() -> None:
    """Seen: "Meredith (Meredith) (2)" with ``untitled = "brand"``."""
    rows = known(("a", None, "Meredith"), ("b", None, "Meredith"), ("c", "MEREDITH", "Meredith"))
    rows = pl.concat([rows, known(("d", "MEREDITH", "Acme"), ("e", "Tea", "Tea"))])
    asked = section(untitled="brand", identity="disambiguate")
    named = name_items(ids("a", "b", "c", "d", "e"), rows, asked)
    titles = build_catalogue(named.items, asked)[TITLE].to_list()
    assert titles == ["Meredith", "Meredith (2)", "MEREDITH", "MEREDITH (Acme)", "Tea"]


WORDS = st.sampled_from(["A", "a", "A (2)", "A (B)", "B", "b", "STRASSE", "straße"])


@given(st.lists(st.tuples(WORDS, st.none() | WORDS)))
def test_no_brand_is_appended_to_itself(rows: list[tuple[str, str | None]]) -> None:
    titles = [title for title, _ in rows]
    names = disambiguate(titles, [brand for _, brand in rows])
    assert len(set(names)) == len(rows)
    for name, (title, brand) in zip(names, rows, strict=True):
        if titles.count(title) == 1:
            assert name == title
        if brand and brand.casefold() == title.casefold():
            assert not name.startswith(f"{title} ({brand})")
