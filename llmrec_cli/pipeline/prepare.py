"""``llmrec prepare``: raw files to the prepared folder, and the manifest that describes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import polars as pl

from llmrec_cli.config.data import DataSection, has_clock
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.audit import Finding, Rows, count_findings, tell_percent
from llmrec_cli.data.backends import open_engine
from llmrec_cli.data.catalog import (
    EXAMPLES,
    NamedItems,
    build_catalogue,
    disambiguate,
    name_items,
    require_names,
)
from llmrec_cli.data.cleaning import (
    CleaningSteps,
    collect_item_ids,
    filter_interactions,
    filter_to_core,
    select_badly_rated,
)
from llmrec_cli.data.formats import read_source
from llmrec_cli.data.formats.base import Locate, Source
from llmrec_cli.data.prepared import (
    Manifest,
    Prepared,
    check_fits,
    describe_sources,
    load_prepared,
    read_file_states,
    require_unchanged,
    stage_folder,
    write_items,
    write_manifest,
    write_split,
)
from llmrec_cli.data.prompts import open_template, require_fields, require_prompts
from llmrec_cli.data.rows import (
    SplitCounts,
    collect_items,
    count_pairs,
    encode_given_rows,
    hold_out_users,
    write_rows,
)
from llmrec_cli.data.schema import (
    AS_READ,
    COUNT,
    DISLIKED,
    HISTORY_ITEMS,
    HISTORY_RATING,
    ITEM_ID,
    NEGATIVES,
    NO_TARGET,
    NO_TITLE,
    RATED_ITEMS,
    SHORT_HISTORY,
    SPLITS,
    TARGET,
    TITLE,
    USER,
    in_order,
    split_file,
)
from llmrec_cli.data.splitting import plan_split, require_clock, sort_by_user
from llmrec_cli.utils.locks import lock_to_make

# The history of a prepared folder in its manifest, without the engine.


Facts: TypeAlias = dict[str, Any]

RULES = {
    "order": "by time within a user; ties in time keep input order",
    "cleaning": "time window, rating, repeated pairs, untitled items, k-core on unique pairs",
    "indices": "items in order of item_id, users in order of user_id",
    "count": "training interactions of an item, each once; of given rows: distinct user-item pairs",
    "leave-one-out": "users with fewer than 3 interactions are training only",
    "given": "rows stay as delivered: only untitled, history, min_history and sample apply",
}
PAIR_RULES = {
    "items": "every distinct title is an item, as it stands in the prompt",
    "users": "named by their history; pairs of one history and one liked title are one row",
    "valid": "absent: a tenth of the training users, drawn with the seed, who leave training",
    "count": "pairs are not counted: a candidate that was not liked is no interaction",
}
DISLIKED_RULE = (
    "catalogue items that the user rated below data.min_rating and had not rated higher by then; "
    "of a valid or test row: before its target; of a train row: before the user's first valid or "
    "test target, and with global-time before everybody's first"
)


@dataclass(frozen=True, slots=True)
class Preparation:
    """The content of a prepared folder beside the rows, which are written already."""

    named: NamedItems
    items: pl.DataFrame  # the catalogue with COUNT
    splits: tuple[str, ...]  # in the order in which they are written
    tied: Finding | None  # see ``audit``; None for a source that comes split
    clock: bool  # times compare across users
    cleaning: Any  # JSON-able: what each step left, or for given rows what went
    counts: Mapping[str, SplitCounts]  # by split: what data.sample and data.history took


def describe_preparation(
    made: Preparation, folder: Path, notes: Mapping[str, Any], section: DataSection
) -> Facts:
    """The facts of the manifest, JSON-able: reader's notes, cleaning, catalogue, splits, audit.

    Args:
        folder: where the split files of ``made`` are.
        notes: of the reader; where they name a source, its base name takes the path's place.
    """
    files = section.files()
    names = disambiguate([Path(file).name for file in files], [None] * len(files))
    splits = {name: pl.scan_parquet(folder / split_file(name), glob=False) for name in made.splits}
    columns = splits["test"].collect_schema()
    further: Facts = {"rank-pairs": PAIR_RULES} if NEGATIVES in columns else {}
    further |= {"disliked": DISLIKED_RULE} if DISLIKED in columns else {}
    return {
        "rules": RULES | further,
        "reader": _rename_files(notes, dict(zip(files, names, strict=True))),
        "cleaning": made.cleaning,
        "catalogue": _describe_catalogue(made, section.item_fields),
        "splits": {
            name: _count_split(rows) | made.counts[name].facts() for name, rows in splits.items()
        },
        "audit": count_findings(Rows(made.items, splits, made.tied, made.clock)),
    }


def describe_lost_rows(
    cleaning: Mapping[str, Mapping[str, int]], section: DataSection
) -> list[str]:
    """What to say of rows and history items that a source that comes split lost; by split."""
    reasons = {
        NO_TARGET: "the target has no usable title",
        SHORT_HISTORY: f"the history is shorter than data.min_history = {section.min_history}",
    }
    lines = []
    for name, counts in cleaning.items():
        read = counts[AS_READ]
        for key, reason in reasons.items():
            if lost := counts[key]:
                rows = f"{lost:,} of {read:,} rows ({tell_percent(lost / read)})"
                lines.append(f"{name}: left out {rows}: {reason}")
        if lost := counts[NO_TITLE]:
            lines.append(f"{name}: left out {lost:,} history items without a usable title")
    return lines


def describe_cuts(made: Preparation, section: DataSection) -> list[str]:
    """What to say of rows that were not sampled, and of histories that were cut; by split."""
    lines = []
    for name, counts in made.counts.items():
        total = counts.unsampled
        size: int | None = getattr(section.sample, name, None)
        kept = total if size is None else min(size, total)
        if kept < total:
            lines.append(f"{name}: kept {kept:,} of {total:,} rows (data.sample)")
        if counts.cut_rows:
            lines.append(
                f"{name}: {counts.cut_rows:,} of {kept:,} rows have a history of more than "
                f"data.history = {section.history} items: the oldest {counts.cut_items:,} items "
                "are left out"
            )
    return lines


def describe_fields(made: Preparation, fields: Sequence[str]) -> str | None:
    """How many items of the catalogue have which field; None: none is asked for."""
    if not fields:
        return None
    counts = _count_fields(made, fields)
    listed = ", ".join(f"{name} {counts[name]:,}" for name in fields)
    return f"fields of {len(made.items):,} items (data.fields): {listed} have one"


def describe_ratings(splits: Mapping[str, Mapping[str, int]]) -> str | None:
    """How many items of the histories have a rating, by split; None: none is asked for.

    Args:
        splits: of the manifest.
    """
    counts = [
        f"{name} {found[RATED_ITEMS]:,} of {found[HISTORY_ITEMS]:,}"
        for name, found in splits.items()
        if RATED_ITEMS in found
    ]
    return f"history items with a rating (data.fields): {', '.join(counts)}" if counts else None


def _count_fields(made: Preparation, fields: Sequence[str]) -> dict[str, int]:
    return {name: int(made.items[name].count()) for name in fields}


def _describe_catalogue(made: Preparation, fields: Sequence[str]) -> Facts:
    named, with_field = made.named, _count_fields(made, fields)
    before = made.items.join(named.items, on=ITEM_ID, how="left", maintain_order="left")
    renamed = before.filter(pl.col(TITLE) != pl.col(f"{TITLE}_right"))
    return {
        "items": len(made.items),
        "items without a usable title": len(named.untitled),
        "of these without a name, dropped": len(named.dropped),
        "examples": named.untitled[:EXAMPLES],
        "titles made distinct": len(renamed),
        **({"items with a field": with_field} if with_field else {}),
    }


def _rename_files(notes: Any, names: Mapping[str, str]) -> Any:
    if isinstance(notes, Mapping):
        return {names.get(key, key): _rename_files(value, names) for key, value in notes.items()}
    if isinstance(notes, list):
        return [_rename_files(value, names) for value in notes]
    return names.get(notes, notes) if isinstance(notes, str) else notes


def _count_split(rows: pl.LazyFrame) -> Facts:
    columns = rows.collect_schema()
    counts = {
        "rows": pl.len(),
        "users": pl.col(USER).n_unique(),
        "targets": pl.col(TARGET).n_unique(),
    }
    if NEGATIVES in columns:
        counts["pairs"] = pl.col(NEGATIVES).list.len().sum()
    if DISLIKED in columns:
        some = pl.col(DISLIKED).list.len() > 0
        counts["rows with disliked items"] = some.sum()
        counts["users with disliked items"] = pl.col(USER).filter(some).n_unique()
    if HISTORY_RATING in columns:
        rated = pl.col(HISTORY_RATING).list
        counts[HISTORY_ITEMS] = rated.len().cast(pl.Int64).sum()
        counts[RATED_ITEMS] = rated.drop_nulls().list.len().cast(pl.Int64).sum()
    found: Facts = rows.select(**counts).collect().row(0, named=True)
    return found


# ``llmrec prepare``: raw files in, a prepared folder out.
#
#     sources -> read -> clean -> name the items -> split -> audit -> parquet and manifest.json
#
# ``[data]``, the seed and the content of the sources determine every byte of the result. So a
# folder that was made from the same three is reused.


Progress = Callable[[str], None]


def prepare_data(recipe: Recipe, locate: Locate, progress: Progress = lambda _: None) -> Prepared:
    """Prepare the data of a recipe, or reuse the folders of an earlier call.

    The data of another domain to evaluate on (``[eval.data]``) get a folder of their own.

    Args:
        recipe: its ``data`` sections, ``seed`` and prepared folders are used.
        locate: finds the file behind a path of the recipe.
        progress: receives one line per step.

    Raises:
        RecipeError: a file or column that the format needs is not named; no such template, or one
            that shows fields which ``data.fields`` does not name.
        DataError: the sources, a folder that was prepared from something else, or a prompt that
            would not show every item of a history.
        ArtefactError: a folder that was prepared before and has changed since.
        MachineError: the disk refuses, or the engine that is asked for fails or is missing.
    """
    require_all_fields(recipe)
    prepared = _prepare(recipe.data, recipe.seed, recipe.prepared_folder, locate, progress)
    pairs = recipe.task.shows_candidates
    require_prompts(recipe.prompt.template, prepared.items, shows_candidates=pairs)
    if recipe.eval.data is not None:
        progress("preparing eval.data")
        other = _prepare(recipe.eval.data, recipe.seed, recipe.prepared_for_eval, locate, progress)
        template = recipe.prompt_for_eval.template
        require_prompts(template, other.items, shows_candidates=pairs)
    return prepared


def require_all_fields(recipe: Recipe) -> None:
    """Refuse templates, to train or to evaluate with, that show fields which the data do not have.

    Raises:
        RecipeError: as ``require_fields``; no such template.
    """
    if recipe.task.shows_candidates:
        return
    asked = [(recipe.prompt, "data", recipe.data)]
    if recipe.eval.data is not None:
        asked.append((recipe.prompt_for_eval, "eval.data", recipe.eval.data))
    elif recipe.eval.prompt is not None:
        asked.append((recipe.eval.prompt, "data", recipe.data))
    for prompt, table, data in asked:
        require_fields(open_template(prompt.template), data.fields, table)


def _prepare(
    section: DataSection, seed: int, folder: Path, locate: Locate, progress: Progress
) -> Prepared:
    progress("checking the sources")
    require_clock(section)
    states = read_file_states(section, locate)
    asked = describe_sources(section, seed, locate)
    if not folder.exists():
        with lock_to_make(folder, progress):
            if not folder.exists():  # nobody made it while this process waited
                with stage_folder(folder) as stage:
                    _make(section, seed, stage, folder, locate, progress, asked)
                    require_unchanged(section, locate, states)
                return load_prepared(folder)
    check_fits(folder, asked)
    return load_prepared(folder, reused=True)


def _make(
    section: DataSection,
    seed: int,
    stage: Path,
    folder: Path,
    locate: Locate,
    progress: Progress,
    asked: Manifest,
) -> None:
    """Write the files of a prepared folder to ``stage``, which will be ``folder``."""
    messages = folder.with_name(f"{folder.name}.spark.log")
    with TemporaryDirectory(dir=stage) as temporary:
        scratch = Path(temporary)
        with open_engine(section, messages) as engine:
            progress("reading")
            source = read_source(section, locate, scratch)
            require_names(section)
            _report_reading(source.notes, section, progress)
            if source.interactions is None:
                progress("writing")
                made = take_rows(source, section, seed, stage)
                _say_lines(describe_lost_rows(made.cleaning, section), progress)
            else:
                cleaning = CleaningSteps(engine, scratch, progress)
                made = write_split_rows(
                    source.interactions, source.items, section, seed, cleaning, stage
                )
        _say_lines(describe_cuts(made, section), progress)
        if found := describe_fields(made, section.item_fields):
            progress(found)
        write_items(stage, made.items)
        facts = describe_preparation(made, stage, source.notes, section)
        if found := describe_ratings(facts["splits"]):
            progress(found)
        write_manifest(stage, made.splits, asked | facts)


def _say_lines(lines: Iterable[str], progress: Progress) -> None:
    for line in lines:
        progress(line)


def _report_reading(notes: Mapping[str, Any], section: DataSection, progress: Progress) -> None:
    """Report what a user may not expect in the files, and what was left out."""
    for name, found in _files(notes.get("reviews", {})):
        times = f", times: {found['timestamp']}" if "timestamp" in found else ""
        progress(f"{name}: {found['interactions']:,} interactions{times}")
        if "ignored_index_column" in found:
            progress(f"{name}: {_describe_ignored(found['ignored_index_column'])}")
        if rated := found.get("ratings"):
            progress(f"{name}: {_describe_rated(rated, section.min_rating is not None)}")
        _say_lines(_describe_missing_ids(name, found), progress)
    for parts in notes.get("splits", {}).values():
        for name, found in parts.items():
            if isinstance(found, Mapping):
                _say_lines(_describe_missing_ids(name, found), progress)
    _say_lines(_describe_metadata(_find_metadata(notes)), progress)
    if found := notes.get("bad_lines", {}).get("skipped"):
        count = "1 bad line" if found == 1 else f"{found:,} bad lines, the first"
        progress(f"left out: {count}: {notes['bad_lines']['first'][0]}")


def _find_metadata(notes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The notes of the metadata, which stand beside those of reviews or of an index."""
    found: Mapping[str, Any] = notes.get("metadata") or notes.get("index", {}).get("titles", {})
    return found


def _describe_metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What a user may not expect in metadata files."""
    for name, column in metadata.get("ignored_index_column", {}).items():
        yield f"{name}: {_describe_ignored(column)}"
    if lost := metadata.get("rows_with_unreadable_details"):
        yield f"metadata: {lost:,} rows whose details cannot be read: no brand from there"
    for name, counts in metadata.get("fields", {}).items():
        if lost := counts["rows_with_unusable"]:
            example = counts["unusable_example"]
            yield f"metadata: {lost:,} rows with an unusable {name}, such as {example}"


def _describe_missing_ids(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """One line for each column with ids that may stand for a missing one."""
    for column, words in found.get("ids_that_may_be_missing", {}).items():
        counts = ", ".join(f'"{word}" in {count:,} rows' for word, count in words.items())
        yield (
            f"{name}: warning: {column} is {counts}; it is taken as an id: if it stands for a "
            "missing one, remove these rows"
        )


def _describe_rated(found: Mapping[str, Any], threshold: bool) -> str:
    """The range of a file's ratings, and how many interactions have none."""
    text = "no ratings"
    if found["lowest"] is not None:
        text = f"ratings {found['lowest']:g} .. {found['highest']:g}"
    if found["absent"]:
        text += f"; {found['absent']:,} without"
        text += ", left out by data.min_rating" if threshold else ""
    return text


def _describe_ignored(column: str) -> str:
    return f'column "{column}" looks like the unnamed index of a pandas table and is ignored'


def _files(reviews: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The notes of each file, of those in folders too."""
    for name, found in reviews.items():
        if "interactions" in found and isinstance(found["interactions"], int):
            yield name, found
        else:
            yield from ((f"{name}/{inside}", notes) for inside, notes in found.items())


def write_split_rows(
    interactions: Path,
    known: pl.DataFrame,
    section: DataSection,
    seed: int,
    cleaning: CleaningSteps,
    folder: Path,
) -> Preparation:
    """Clean a log of interactions, name its items, and cut it into rows, written to ``folder``.

    The log stays in files of the engine until its rows are cut, in one pass.  In memory are the
    catalogue (items that occur, with their titles) and a batch of users.
    """
    engine, scratch, lowest = cleaning.engine, cleaning.scratch, section.min_rating
    everything = engine.scan(interactions)
    log = filter_interactions(everything, section, cleaning)
    named = name_items(collect_item_ids(log, engine, scratch / "ids"), known, section)
    log = filter_to_core(log, named, section, cleaning)

    left = collect_item_ids(log, engine, scratch / "ids").to_frame()
    items = build_catalogue(named.items.join(left, on=ITEM_ID, how="semi"), section)
    cleaning.progress("ordering")
    plan = plan_split(
        log, cleaning.steps[-1].interactions, section, seed, engine, scratch / "moments"
    )
    by_user = sort_by_user(log, items, engine, scratch / "by-user")
    bad = None
    if lowest is not None:
        bad = sort_by_user(
            select_badly_rated(everything, lowest, section), items, engine, scratch / "bad"
        )
    cleaning.progress("writing")
    fields = section.interaction_fields
    statistics = write_rows(by_user, bad, plan, section.history, len(items), engine, folder, fields)
    return Preparation(
        named=named,
        items=items.with_columns(pl.Series(COUNT, statistics.count_I)),
        splits=SPLITS,
        tied=statistics.summarize_ties(),
        clock=has_clock(section),
        cleaning=[asdict(step) for step in cleaning.steps],
        counts=statistics.splits,
    )


def take_rows(source: Source, section: DataSection, seed: int, folder: Path) -> Preparation:
    """Name the items of rows that come split, and write the rows as they are to ``folder``.

    Such sources are held in memory, whatever the engine is: they need no joins or groups.
    """
    rows: Mapping[str, pl.DataFrame] = source.rows or {}
    if section.form.pairs and "valid" not in rows:
        rows = hold_out_users(rows, seed)
    listed = source.items[ITEM_ID] if source.lists_catalogue else None
    named = name_items(collect_items(rows, listed), source.items, section)
    items = build_catalogue(named.items, section)
    splits, cleaning, counts = encode_given_rows(rows, items, section, seed)
    for name, part in splits.items():
        write_split(folder, name, part)
    return Preparation(
        named=named,
        items=items.with_columns(pl.Series(COUNT, count_pairs(splits["train"], len(items)))),
        splits=tuple(in_order(splits)),
        tied=None,
        clock=has_clock(section),
        cleaning=cleaning,
        counts=counts,
    )
