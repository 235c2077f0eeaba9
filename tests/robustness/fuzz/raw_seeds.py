"""Right raw files of every format, small: four items, a few users."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from llmrec_cli.data.prompts import Question, load_template
from tests.robustness.fuzz.mutate import Files
from tests.robustness.fuzz.tables import TABLES, parquet

SECOND: Final = 1_500_000_000

Row = tuple[str, str, float, int]  # user, item, rating, seconds
ROWS: Final[list[Row]] = [
    (f"A{user}UVWXYZUSER{user}", f"B00000000{(user + at) % 4}", 5.0 - at % 2, SECOND + 999 * at)
    for user in range(5)
    for at in range(4)
]
TITLES: Final = {f"B00000000{n}": f"Title {n}, the “{n}th” &amp; best" for n in range(4)}


def lines(rows: Sequence[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: Sequence[Sequence[object]], delimiter: str = ",") -> bytes:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows).encode()


def _reviews18(rows: Sequence[Row]) -> list[dict[str, Any]]:
    names = ("reviewerID", "asin", "overall", "unixReviewTime")
    return [dict(zip(names, row, strict=True)) | {"reviewText": "a b"} for row in rows]


def _reviews23(rows: Sequence[Row]) -> list[dict[str, Any]]:
    names = ("user_id", "parent_asin", "rating", "timestamp")
    return [
        dict(zip(names, (*row[:3], row[3] * 1000), strict=True)) | {"asin": "x"} for row in rows
    ]


_METADATA: Final = {
    "2014": "".join(
        str({"asin": i, "title": t, "imUrl": "http", "brand": "B"}) + "\n"
        for i, t in TITLES.items()
    ).encode(),
    "2018": lines(
        [{"asin": i, "title": t, "brand": "B", "main_cat": ""} for i, t in TITLES.items()]
    ),
    "2023": lines(
        [
            {"parent_asin": i, "title": t, "store": "S", "details": {"Brand": "B"}}
            for i, t in TITLES.items()
        ]
    ),
}
_PLAIN: Final = _reviews18(ROWS)
_COLUMNS: Final = ("user_id", "item_id", "rating", "timestamp")
_NAMED: Final = [dict(zip(_COLUMNS, row, strict=True)) for row in ROWS]
_DATED: Final = [(user, item, "", f"2018-06-{n + 1:02}") for n, (user, item, *_) in enumerate(ROWS)]
_FINER: Final = [(user, item, 2 * r - 0.5, s * 10**6 + 1) for user, item, r, s in ROWS]
_ITEMS: Final = [{"item_id": i, "name": t, "maker": "B"} for i, t in TITLES.items()]
_HEAD23: Final = ("user_id", "parent_asin", "rating", "timestamp")
_MS: Final = [(user, item, rating, second * 1000) for user, item, rating, second in ROWS]
_WINDOWS: Final = [("user_id", "item_ids", "timestamp")] + [
    (f"u{n}", f'"[{n % 4}, {(n + 1) % 4}, {(n + 2) % 4}]"', SECOND + n) for n in range(20)
]
_NAMES: Final = json.dumps({str(n): f"Title {n}" for n in range(4)}).encode()


def _pairs() -> bytes:
    rank = load_template("toys", Path).rank
    assert rank is not None
    return json.dumps(
        [
            {
                "instruction": rank.render(Question((f"Doom {n}", "Halo"), "Myst", f"Riven {n}")),
                "input": "",
                "output": [
                    rank.render_answer("Myst", f"Riven {n}"),
                    rank.render_answer(f"Riven {n}", "Myst"),
                ],
            }
            for n in range(12)
        ]
    ).encode()


def _three(data: bytes, ending: str) -> Files:
    return {f"{name}.{ending}": data for name in ("train", "valid", "test")}


def _splits(ending: str, **more: object) -> dict[str, object]:
    files = {name: f"{name}.{ending}" for name in ("train", "valid", "test")}
    return {"split": "given", "splits": files, **more}


_TWO: Final = {"reviews": "reviews.jsonl", "metadata": "meta.jsonl"}
_RATINGS: Final = {"reviews": "ratings.csv", "metadata": "meta.jsonl"}
_OWN: Final = {"user": "user_id", "item": "item_id", "title": "name", "brand": "maker"}
FORMATS: Final[Mapping[str, tuple[dict[str, Any], Callable[[], Sequence[Files]]]]] = {
    "amazon2014": (
        {"format": "amazon2014", **_TWO},
        lambda: [
            {"reviews.jsonl": lines(_PLAIN), "meta.jsonl": _METADATA["2014"]},
            {
                "reviews.jsonl": "".join(f"{row}\n" for row in _PLAIN).encode(),
                "meta.jsonl": _METADATA["2018"],
            },
        ],
    ),
    "amazon2018": (
        {"format": "amazon2018", **_TWO},
        lambda: [{"reviews.jsonl": lines(_PLAIN), "meta.jsonl": _METADATA["2018"]}],
    ),
    "amazon2023": (
        {"format": "amazon2023", **_TWO},
        lambda: [{"reviews.jsonl": lines(_reviews23(ROWS)), "meta.jsonl": _METADATA["2023"]}],
    ),
    "ratings2014": (
        {"format": "ratings2014", **_RATINGS},
        lambda: [{"ratings.csv": _csv(ROWS), "meta.jsonl": _METADATA["2014"]}],
    ),
    "ratings2018": (
        {"format": "ratings2018", **_RATINGS},
        lambda: [
            {
                "ratings.csv": _csv([(item, user, *rest) for user, item, *rest in ROWS]),
                "meta.jsonl": _METADATA["2018"],
            }
        ],
    ),
    "ratings2023": (
        {"format": "ratings2023", **_RATINGS},
        lambda: [{"ratings.csv": _csv([_HEAD23, *_MS]), "meta.jsonl": _METADATA["2023"]}],
    ),
    "split2023": (
        {"format": "split2023", **_splits("csv", metadata="meta.jsonl")},
        lambda: [
            {
                **_three(
                    _csv(
                        [(*_HEAD23, "history"), *((*row, "B000000001 B000000002") for row in _MS)]
                    ),
                    "csv",
                ),
                "meta.jsonl": _METADATA["2023"],
            }
        ],
    ),
    "interactions-csv": (
        {
            "format": "interactions",
            "reviews": "rows.csv",
            "metadata": "items.csv",
            "columns": {**_OWN, "rating": "rating"},
        },
        lambda: (
            [
                {
                    "rows.csv": _csv([_COLUMNS, *ROWS], delimiter),
                    "items.csv": _csv(
                        [
                            ("item_id", "name", "maker"),
                            *((i, f'"{t}"', "B") for i, t in TITLES.items()),
                        ]
                    ),
                }
                for delimiter in (",", "\t")
            ]
            + [
                {
                    "rows.csv": _csv([("", *_COLUMNS), *((n, *row) for n, row in enumerate(rows))]),
                    "items.csv": _csv(
                        [
                            ("item_id", "name", "maker"),
                            *((i, f'"{t},\nsecond,line\n"', '"B"') for i, t in TITLES.items()),
                        ]
                    ),
                }
                for rows in (_DATED, _FINER)
            ]
        ),
    ),
    "interactions-json": (
        {
            "format": "interactions",
            "reviews": "rows.jsonl",
            "metadata": "items.jsonl",
            "columns": {**_OWN, "rating": "rating"},
        },
        lambda: [{"rows.jsonl": lines(_NAMED), "items.jsonl": lines(_ITEMS)}],
    ),
    "interactions-parquet": (
        {
            "format": "interactions",
            "reviews": "rows.parquet",
            "metadata": "items.parquet",
            "columns": {**_OWN, "rating": "rating"},
        },
        lambda: [
            {
                "rows.parquet": parquet(pa.Table.from_pylist(_NAMED), of_rows, only=n),
                "items.parquet": parquet(pa.Table.from_pylist(_ITEMS), of_items, only=n),
            }
            for change in TABLES
            for of_rows, of_items in ((change, None), (None, change))
            for n in range(4)
        ],
    ),
    "msl-windows": (
        {"format": "msl-windows", **_splits("csv", metadata="names.json")},
        lambda: [{**_three(_csv(_WINDOWS), "csv"), "names.json": _NAMES}],
    ),
    "semantic-ids": (
        {
            "format": "semantic-ids",
            "reviews": "inter.json",
            "index": "index.json",
            "metadata": "items.json",
        },
        lambda: [
            {
                "inter.json": json.dumps({f"u{n}": [n % 3, 3, "1", 2] for n in range(6)}).encode(),
                "index.json": json.dumps(
                    {str(n): [f"<a_{n}>", "<b_1>"] for n in range(4)}
                ).encode(),
                "items.json": json.dumps(
                    {str(n): {"title": f"Title {n}", "brand": "B"} for n in range(4)}
                ).encode(),
            }
        ],
    ),
    "sequences": (
        {"format": "sequences", "reviews": "users.txt", "metadata": "items.txt"},
        lambda: [
            {
                "users.txt": b"".join(b"u%d %d 3 1 2\n" % (n, n % 3) for n in range(6)),
                "items.txt": b"".join(b"%d Title %d\n" % (n, n) for n in range(4)),
            }
        ],
    ),
    "rank-pairs": (
        {"format": "rank-pairs", **_splits("json")},
        lambda: [_three(_pairs(), "json")],
    ),
}
