"""Category, price and description of items: what each source has, and what nobody can use."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec_cli.data.formats.base import ITEM_SCHEMA, Source
from llmrec_cli.data.formats.texts import (
    clean_category,
    clean_description,
    clean_price,
    clean_title,
    in_dollars,
)
from llmrec_cli.errors import DataError
from tests.data.formats.small_sources import json_lines as lines
from tests.data.formats.small_sources import read_small as read

REVIEW = {
    "2014": {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1529193600},
    "2018": {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1529193600},
    "2023": {"user_id": "A1", "parent_asin": "B1", "rating": 4, "timestamp": 1547589356557},
}
ALL = ("brand", "category", "price", "description")


def read_amazon(folder: Path, year: str, *rows: object, fields: tuple[str, ...] = ALL) -> Source:
    files = {"r": lines(REVIEW[year]), "m": lines(*rows)}
    form = f"amazon{year}"
    return read(folder, files, format=form, reviews="r", metadata="m", fields=fields)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (["Toys & Games", "Kites &amp; Wind"], "Kites & Wind"),
        (["Gift Cards", "Gift Cards"], "Gift Cards"),
        (["Gift Cards", "Cards", "No expiration, no fees.", "Variety"], "Cards"),
        (["Gift Cards", "Cards", "</span></span></span>", "Starbucks"], "Cards"),
        (["Toys", "a name of more than sixty characters is a sentence without a stop"], "Toys"),
        ([["Music", "Pop"], ["CDs", "Rock", "Hard Rock"], ["A", "B", "C"]], "Hard Rock"),
        ("Kitchen, Dining", "Kitchen, Dining"),
        ([], None),
        ([""], None),
        ([["</span>"]], None),
        ("N/A", None),
        (7, None),
        (None, None),
    ],
)
def test_the_most_specific_category(raw: object, clean: str | None) -> None:
    assert clean_category(raw) == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("$12.99", "$12.99"),
        ("$1,250.00", "$1250.00"),
        (" $ 7.5 ", "$7.50"),
        ("USD 20", "USD20.00"),
        ("€3", "€3.00"),
        ("12", "12.00"),
        (12, "12.00"),
        (12.5, "12.50"),
        (0, "0.00"),
        ("$14.99 - $29.99", None),
        ("12,99", None),
        (".a-box-inner{background-color:#fff}", None),
        ("\n\t  <div>", None),
        ("from 5", None),
        (-1, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        (Decimal("9.5"), "9.50"),
        (Decimal("NaN"), None),
        (True, None),
        ("", None),
        (["$1.00"], None),
    ],
)
def test_a_price_has_one_form(raw: object, clean: str | None) -> None:
    assert clean_price(raw) == clean


def test_numbers_of_amazon_are_dollars() -> None:
    assert [in_dollars(raw) for raw in (9.5, "$9.50", None, True)] == ["$9.50", "$9.50", None, True]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (["One.", "Two."], "One. Two."),
        ("  a\n\tb\u2028c ", "a b c"),
        ('<div class="aplus"> <br>Fit &amp; fun</div>', "Fit & fun"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp;amp;", "bold &amp;"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("(new Date()).getTime()", None),
        ("<p></p>", None),
        ([], None),
        (["", None], None),
        (["a", 3], None),
        (None, None),
        (3.5, None),
    ],
)
def test_a_description_is_one_line_without_tags(raw: object, clean: str | None) -> None:
    assert clean_description(raw) == clean


def test_an_entity_that_python_cannot_read_stays() -> None:
    entity = "&#" + "9" * 5000 + ";"
    assert clean_title(entity) == entity
    assert clean_description(entity) == entity


ITEMS: dict[str, tuple[dict[str, Any], ...]] = {
    "2014": (
        {
            "asin": "B1",
            "title": "Kite",
            "brand": "Aero",
            "categories": [["Toys", "Kites"], ["Sport"]],
            "price": 9.5,
            "description": "Flies.",
        },
        {"asin": "B2", "title": "Bare", "categories": [[]]},
    ),
    "2018": (
        {
            "asin": "B1",
            "title": "Kite",
            "brand": "Aero",
            "category": ["Toys", "Kites"],
            "main_cat": "Toys",
            "price": "$9.50",
            "description": ["<p>Flies.</p>"],
        },
        {"asin": "B2", "title": "Bare", "category": [], "price": "", "description": []},
    ),
    "2023": (
        {
            "parent_asin": "B1",
            "title": "Kite",
            "store": "Aero",
            "categories": ["Toys", "Kites"],
            "main_category": "Toys",
            "price": 9.5,
            "description": ["Flies."],
        },
        {"parent_asin": "B2", "title": "Bare", "categories": [], "price": None},
    ),
}


@pytest.mark.parametrize("year", ITEMS)
def test_every_generation_has_them(tmp_path: Path, year: str) -> None:
    found = read_amazon(tmp_path, year, *ITEMS[year])
    assert found.items.select("item_id", *ALL).rows() == [
        ("B1", "Aero", "Kites", "$9.50", "Flies."),
        ("B2", None, None, None, None),
    ]
    counted = found.notes["metadata"]["fields"]
    assert counted == {name: {"rows_without": 1, "rows_with_unusable": 0} for name in ALL}


@pytest.mark.parametrize(
    ("year", "more", "category"),
    [
        ("2018", {"category": [], "main_cat": "Toys"}, "Toys"),
        ("2023", {"categories": [], "main_category": "Toys"}, "Toys"),
        ("2023", {"categories": None, "main_category": "All Beauty"}, "All Beauty"),
    ],
)
def test_the_main_category_stands_in(
    tmp_path: Path, year: str, more: dict[str, Any], category: str
) -> None:
    item = {"2018": "asin", "2023": "parent_asin"}[year]
    found = read_amazon(tmp_path, year, {item: "B1", "title": "T", **more})
    assert found.items["category"].to_list() == [category]


def test_only_what_is_asked_for_is_kept(tmp_path: Path) -> None:
    found = read_amazon(tmp_path, "2018", *ITEMS["2018"], fields=("price",))
    assert found.items.columns == [*ITEM_SCHEMA, "price"]
    plain = read_amazon(tmp_path, "2018", *ITEMS["2018"], fields=())
    assert plain.items.columns == list(ITEM_SCHEMA)
    assert "fields" not in plain.notes["metadata"]


def test_what_cannot_be_used_is_counted_with_an_example(tmp_path: Path) -> None:
    rows = (
        {"asin": "B1", "title": "T", "price": ".a-box{color:red}", "category": {"a": 1}},
        {"asin": "B1", "title": "T", "price": "$2.00"},
        {"asin": "B2", "title": "T", "price": "$1 - $2", "brand": "<span"},
    )
    found = read_amazon(tmp_path, "2018", *rows)
    assert found.items["price"].to_list() == ["$2.00", None]
    counted = found.notes["metadata"]["fields"]
    assert counted["price"] == {
        "rows_without": 0,
        "rows_with_unusable": 2,
        "unusable_example": "'.a-box{color:red}'",
    }
    assert counted["brand"]["unusable_example"] == "'<span'"
    assert counted["category"]["rows_with_unusable"] == 1


def test_fields_that_nobody_asks_for_are_not_looked_at(tmp_path: Path) -> None:
    odd = b'{"asin": "B1", "title": "T", "price": ' + b"9" * 5000 + b"}\n"
    files = {"r": lines(REVIEW["2018"]), "m": odd}
    named = {"format": "amazon2018", "reviews": "r", "metadata": "m"}
    assert read(tmp_path, files, **named).items["title"].to_list() == ["T"]


TABLE = [
    {"id": "B1", "name": "Kite", "maker": "Aero", "kind": "Kites", "cost": "$9.50", "text": "a\nb"},
    {"id": "B2", "name": "Sledge", "maker": "", "kind": "", "cost": "", "text": ""},
]
COLUMNS = {
    "item": "id",
    "title": "name",
    "brand": "maker",
    "category": "kind",
    "price": "cost",
    "description": "text",
}
LOG = b"user_id,id,timestamp\nA1,B1,1529193600\n"


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    return pl.DataFrame(rows).write_csv().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


@pytest.mark.parametrize("kind", [as_csv, as_parquet, lambda rows: lines(*rows)])
def test_tables_name_their_columns(tmp_path: Path, kind: Any) -> None:
    files = {"r": LOG, "m": kind(TABLE)}
    named = {"format": "interactions", "reviews": "r", "metadata": "m", "columns": COLUMNS}
    found = read(tmp_path, files, **named, fields=ALL)
    assert found.items.select("item_id", *ALL).rows() == [
        ("B1", "Aero", "Kites", "$9.50", "a b"),
        ("B2", None, None, None, None),
    ]


@pytest.mark.parametrize("kind", [as_parquet, lambda rows: lines(*rows)])
def test_tables_may_have_numbers_and_lists(tmp_path: Path, kind: Any) -> None:
    rows = [
        {**TABLE[0], "cost": 9.5, "kind": ["Toys", "Kites"], "text": ["a", "b"]},
        {**TABLE[1], "cost": None, "kind": None, "text": None},
    ]
    named = {"format": "interactions", "reviews": "r", "metadata": "m", "columns": COLUMNS}
    found = read(tmp_path, {"r": LOG, "m": kind(rows)}, **named, fields=ALL)
    assert found.items.select(ALL).rows() == [
        ("Aero", "Kites", "9.50", "a b"),
        (None, None, None, None),
    ]


def test_prices_of_parquet_may_be_decimals_or_not_a_number(tmp_path: Path) -> None:
    """NaN in a column of numbers is no price: it is absent, and not unusable."""
    named = {"format": "interactions", "reviews": "r", "metadata": "m", "columns": COLUMNS}
    for cost, none in ((9.5, float("nan")), (Decimal("9.50"), None)):
        rows: list[dict[str, Any]] = [{**TABLE[0], "cost": cost}, {**TABLE[1], "cost": none}]
        found = read(tmp_path, {"r": LOG, "m": as_parquet(rows)}, **named, fields=("price",))
        assert found.items["price"].to_list() == ["9.50", None]
        counted = found.notes["metadata"]["fields"]["price"]
        assert counted == {"rows_without": 1, "rows_with_unusable": 0}


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    columns = {**COLUMNS, "price": "prise"}
    named = {"format": "interactions", "reviews": "r", "metadata": "m", "columns": columns}
    with pytest.raises(DataError, match="prise"):
        read(tmp_path, {"r": LOG, "m": as_csv(TABLE)}, **named, fields=("price",))


def test_names_in_one_object_have_them_too(tmp_path: Path) -> None:
    names = {
        "i1": {
            "title": "Kite",
            "brand": "Aero",
            "categories": "Toys,Kites",
            "price": 3,
            "description": "Flies.",
        },
        "i2": {"title": "Sledge"},
        "i3": "Bare",
    }
    files = {
        "r": b'{"A1": ["i1", "i2", "i3"]}',
        "x": json.dumps({item: [f"<{item}>"] for item in names}).encode(),
        "m": json.dumps(names).encode(),
    }
    named = {"format": "semantic-ids", "reviews": "r", "index": "x", "metadata": "m"}
    found = read(tmp_path, files, **named, fields=ALL)
    assert found.items.select("item_id", *ALL).rows() == [
        ("i1", "Aero", "Toys,Kites", "3.00", "Flies."),
        ("i2", None, None, None, None),
        ("i3", None, None, None, None),
    ]
    assert read(tmp_path, files, **named).items.columns == list(ITEM_SCHEMA)
