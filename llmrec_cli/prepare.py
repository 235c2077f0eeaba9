"""The story of `llmrec prepare`: raw files in, a prepared folder out.

    sources -> read -> clean -> name the items -> split -> audit -> parquet and manifest.json

``[data]``, the seed and the content of the sources decide every byte of the result, so a folder
that was made from the same three is simply reused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from llmrec_cli.data.catalog import catalogue, name_items
from llmrec_cli.data.columns import COUNT, ITEM_ID
from llmrec_cli.data.dislikes import dislikes, training_ends, with_disliked
from llmrec_cli.data.facts import Made, facts
from llmrec_cli.data.filters import Trail, badly_rated, eligible, item_ids, settled
from llmrec_cli.data.given import given_rows, hold_out, occurring, pair_counts
from llmrec_cli.data.readers import read
from llmrec_cli.data.readers.source import Locate
from llmrec_cli.data.split import encode, has_clock, rows_of, sampled, split_log, training_counts
from llmrec_cli.data.store import (
    Prepared,
    check_fits,
    fingerprint,
    load_prepared,
    staging,
    write_prepared,
)
from llmrec_cli.recipe import Recipe
from llmrec_cli.recipe_data import DataSection


def prepare(
    recipe: Recipe, locate: Locate, progress: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Prepare the data of a recipe, or reuse the folders where that was done before.

    Another domain's data to evaluate on (``[eval.data]``) get a folder of their own.

    Args:
        recipe: its ``data`` sections, ``seed`` and prepared folders are used.
        locate: finds the file behind a path of the recipe.
        progress: receives one line per step.

    Raises:
        RecipeError: a file or column that the format needs is not named.
        DataError: the sources, or a folder that was prepared from something else.
        ArtefactError: a folder that was prepared before and has changed since.
        MachineError: the disk refuses.
    """
    prepared = _prepare(recipe.data, recipe.seed, recipe.prepared, locate, progress)
    if recipe.eval.data is not None:
        progress("preparing eval.data")
        _prepare(recipe.eval.data, recipe.seed, recipe.prepared_for_eval, locate, progress)
    return prepared


def _prepare(
    section: DataSection,
    seed: int,
    folder: Path,
    locate: Locate,
    progress: Callable[[str], None],
) -> Prepared:
    progress("checking the sources")
    asked = fingerprint(section, seed, locate)
    if folder.exists():
        check_fits(folder, asked)
        return load_prepared(folder, reused=True)

    with staging(folder) as stage, TemporaryDirectory(dir=stage) as temporary:
        scratch = Path(temporary)
        progress("reading")
        source = read(section, locate, scratch)
        if source.interactions is None:
            made = take_rows(source.rows or {}, source.items, section, seed)
        else:
            trail = Trail(scratch, progress)
            made = make_rows(source.interactions, source.items, section, seed, trail)
        progress("writing")
        write_prepared(
            stage, made.items, made.splits, asked | facts(made, source.notes, section.files())
        )
    return load_prepared(folder)


def make_rows(
    interactions: Path, known: pl.DataFrame, section: DataSection, seed: int, trail: Trail
) -> Made:
    """Clean a log of interactions, name its items, and cut it into rows."""
    log = eligible(interactions, section, trail)
    named = name_items(item_ids(log), known, section)
    ordered = settled(log, named.items[ITEM_ID], section, trail)

    items = catalogue(named.items.join(ordered, on=ITEM_ID, how="semi"), section)
    encoded = encode(ordered, items)
    parts = split_log(encoded, section, seed)
    windows = sampled(parts, section, seed)
    splits = {name: rows_of(encoded, part) for name, part in windows.items()}
    if section.min_rating is not None:
        bad = badly_rated(interactions, section.min_rating, section)
        disliked = dislikes(bad, encoded, items)
        ends = training_ends(encoded, parts, section.split)
        splits = with_disliked(splits, windows, disliked, encoded, ends)
    counts = training_counts(encoded, windows["train"], len(items))
    return Made(
        named=named,
        items=items.with_columns(pl.Series(COUNT, counts)),
        splits=splits,
        log=encoded,
        clock=has_clock(section),
        cleaning=[asdict(step) for step in trail.steps],
    )


def take_rows(
    rows: Mapping[str, pl.DataFrame], known: pl.DataFrame, section: DataSection, seed: int
) -> Made:
    """Name the items of rows that come split, and encode the rows as they are."""
    if section.format == "rank-pairs" and "valid" not in rows:
        rows = hold_out(rows, seed)
    # MSL's title list is the catalogue; other metadata lists a whole shop.
    listed = known[ITEM_ID] if section.format == "msl-windows" else None
    named = name_items(occurring(rows, listed), known, section)
    items = catalogue(named.items, section)
    splits, cleaning = given_rows(rows, items, section, seed)
    counts = pair_counts(splits["train"], len(items))
    return Made(
        named=named,
        items=items.with_columns(pl.Series(COUNT, counts)),
        splits=splits,
        log=None,
        clock=has_clock(section),
        cleaning=cleaning,
    )
