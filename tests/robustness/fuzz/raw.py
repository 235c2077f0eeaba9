"""Targets: raw files of every format, read alone and on into a prepared folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final
from unicodedata import category

import polars as pl
import pyarrow.parquet as pq

from llmrec_cli.config.data import DataSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.formats import read_source
from llmrec_cli.data.formats.base import Source
from llmrec_cli.data.schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from llmrec_cli.pipeline.prepare import prepare_data
from tests.robustness.fuzz.raw_seeds import FORMATS
from tests.robustness.fuzz.target import Target, Wrong

_FIRST, _LAST = 631_152_000_000, 4_102_444_800_000  # ms: the years 1990 to 2100
_BREAKS: Final = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, ends of lines
_NOT_TITLES: Final = ("nan", "NaN", "None", "null", "NULL", "<NA>")


def _run(settings: Mapping[str, Any], folder: Path, rng: Random) -> None:
    section = _drawn(settings, rng)
    if rng.random() < 0.7:
        (folder / "scratch").mkdir()
        scale = section.format != "interactions"
        _check(read_source(section, folder.joinpath, folder / "scratch"), folder, scale=scale)
    else:
        recipe = Recipe(name="fuzz", out=str(folder), data=section, seed=rng.randrange(5))
        prepared = prepare_data(recipe, folder.joinpath)
        _check_titles(list(prepared.items[TITLE].dropna()), folder)
        for split in prepared.splits:
            prepared.split(split)


def _drawn(settings: Mapping[str, Any], rng: Random) -> DataSection:
    """The section with other choices that a recipe may make."""
    further: dict[str, Any] = {
        "untitled": rng.choice(("drop", "brand", "id")),
        "identity": rng.choice(("merge", "disambiguate")),
        "min_history": rng.choice((0, 1)),
        "history": rng.choice((1, 20)),
    }
    if "split" not in settings:
        further |= {
            "k_core": rng.choice((0, 2)),
            "duplicates": rng.choice(("first", "last", "keep")),
            "split": rng.choice(("leave-one-out", "leave-one-out", "global-time", "few-shot")),
            "min_rating": rng.choice((None, 4.0)),
        }
        if settings["format"] != "semantic-ids":
            further["on_bad_line"] = rng.choice(("stop", "skip"))
    if "columns" in settings:
        unknown = rng.choice(({}, {}, {"rating": None}, {"timestamp": None}))
        further["columns"] = {**settings["columns"], **unknown}
    return DataSection.model_validate({**settings, **further})


def _check(source: Source, folder: Path, *, scale: bool) -> None:
    """What a reader hands on must be what it promises."""
    _check_titles(source.items[TITLE].drop_nulls().to_list(), folder)
    if not all(source.items[ITEM_ID].to_list()):
        raise Wrong("an item without an id")
    if source.interactions is not None:
        rows = pl.read_parquet(source.interactions)
        if not all(rows[USER_ID].to_list()) or not all(rows[ITEM_ID].to_list()):
            raise Wrong("an interaction without ids")
        _check_numbers(rows, clock=source.notes.get("index") is None, scale=scale)
    for rows in (source.rows or {}).values():
        _check_numbers(rows, clock=True, scale=scale)


def _check_numbers(rows: pl.DataFrame, *, clock: bool, scale: bool) -> None:
    if not rows[RATING].drop_nulls().is_finite().all():
        raise Wrong("a rating that is no finite number")
    if scale and not rows[RATING].drop_nulls().is_between(1, 5).all():
        raise Wrong("a rating outside 1..5")
    times = rows[TIMESTAMP].drop_nulls()
    in_order = (times >= 0) & (times < 10_000_000)  # lines or places, where there is no clock
    if not (times.is_between(_FIRST, _LAST) | in_order).all() and clock:
        raise Wrong("a time outside 1990..2100")


def _check_titles(titles: Sequence[str], folder: Path) -> None:
    for title in titles:
        if not title.strip() or any(category(sign) in _BREAKS for sign in title):
            raise Wrong(f"a title of blanks or breaks: {title!r}")
        if title in _NOT_TITLES and not _written(title, folder):
            raise Wrong(f"the title {title!r}, which no file has")


def _written(title: str, folder: Path) -> bool:
    """Whether a file has the word as text: quoted, in a CSV cell, or inside of parquet."""
    quoted = re.compile(rb"[\"'][\s\x00-\x20]*" + title.encode())
    for path in folder.glob("*.*"):
        data = path.read_bytes()
        if quoted.search(data) or (path.suffix == ".csv" and title.encode() in data):
            return True
        if data.startswith(b"PAR1") and pq.read_table(path).to_pandas().isin([title]).any(
            axis=None
        ):
            return True
        if data.startswith(b"\x1f\x8b"):
            return True  # inside; not looked at
    return False


TARGETS: Final = [
    Target(f"raw-{name}", seeds, partial(_run, settings))
    for name, (settings, seeds) in FORMATS.items()
]
