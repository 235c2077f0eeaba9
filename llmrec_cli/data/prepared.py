"""The prepared folder: parquet files, and a manifest with their hashes, written last.

The same inputs give the same bytes on every run, machine and worker count: everything is ordered
before it is written, writer settings are fixed, and the manifest holds no clock time and no path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.config.data import CIRCUMSTANCES, DataSection
from llmrec_cli.data.formats.tables import find_tables
from llmrec_cli.data.schema import ITEMS_FILE, PREFERENCE, SPLITS, TOKENS, in_order, split_file
from llmrec_cli.data.table_files import (
    TableFile,
    check_items,
    check_table_rows,
    items_schema,
    rows_schema,
)
from llmrec_cli.errors import ArtefactError, DataError, MachineError
from llmrec_cli.utils.files import (
    MANIFEST_FILE,
    follow_umask,
    hash_file,
    publish_folder,
    sync_folder,
    temporary_folder,
)

Manifest: TypeAlias = dict[str, Any]

LAYOUT = 1  # is raised when a folder of earlier versions can no longer be read

_PATH_KEYS = ("reviews", "metadata", "index", "splits")  # compared by content, not by name


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared folder whose files match its manifest."""

    folder: Path  # of parquet files and manifest.json
    manifest: Manifest  # sources, settings, counts at each step, decisions, audit
    items: pd.DataFrame  # item, item_id, title, brand, tokens (lists of str, or None), count, ...
    reused: bool = False  # the folder existed already and fits the recipe
    notes: tuple[str, ...] = ()  # what a reader has to know of how it was made, one line each
    index: Path | None = None  # file of the semantic IDs that llmrec made, which ``items`` have
    place_I: NDArray[np.int32] | None = None  # of each item of the files, in ``items``; -1: none
    newer: frozenset[str] = frozenset()  # ids and titles of those that have no place in ``items``

    def split(self, name: str) -> pd.DataFrame:
        """Rows of a split: row, user, user_id, history, target, ... (``llmrec_cli.data.schema``).

        Args:
            name: one of ``splits``.

        Returns:
            A row per target; history, negatives and disliked hold int32 arrays of catalogue
            indices, the first in time.

        Raises:
            ArtefactError: the file is damaged.
        """
        if self.place_I is not None:
            raise TypeError("the rows of a whole catalogue, for a part of its items")
        table = _read_table(self.folder / split_file(name))
        frame: pd.DataFrame = table.to_pandas()
        return frame

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits.

        Returns:
            train, valid, test, and preference where the source has one.
        """
        files = self.manifest["files"]
        return tuple(name for name in in_order((*SPLITS, PREFERENCE)) if split_file(name) in files)


def describe_sources(section: DataSection, seed: int, locate: Callable[[str], Path]) -> Manifest:
    """What a prepared folder depends on: the data section, the seed, the content of the sources.

    Paths are left out: sources are known by their base name, size and SHA-256.  So is the engine,
    because it changes no row.

    Raises:
        DataError: a source does not exist, or is a folder of other files than parquet.
        MachineError: a source cannot be read.
    """
    data = section.model_dump(mode="json", exclude=set(CIRCUMSTANCES))
    named = {key: data.pop(key) for key in _PATH_KEYS}
    splits = named.pop("splits")
    named |= {f"splits.{split}": paths for split, paths in splits.items()}
    sources = [
        source
        for key, paths in named.items()
        for path in ([paths] if isinstance(paths, str) else paths or [])
        for source in _describe_sources(f"data.{key}", path, locate(path), section)
    ]
    return {"layout": LAYOUT, "data": data, "seed": seed, "sources": sources}


def read_file_states(section: DataSection, locate: Callable[[str], Path]) -> list[tuple[int, ...]]:
    """Inode, size and times of each source: they show whether it was written to or replaced."""
    states = list[tuple[int, ...]]()
    for name in section.files():
        try:
            found = locate(name).stat()
        except OSError:  # ``describe_sources`` reports it
            states.append(())
        else:
            states.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    return states


def require_unchanged(
    section: DataSection, locate: Callable[[str], Path], before: Sequence[tuple[int, ...]]
) -> None:
    """Refuse sources that changed since ``read_file_states``: the hashes are of other content.

    Raises:
        DataError: names the first one.
    """
    for name, was, now in zip(
        section.files(), before, read_file_states(section, locate), strict=True
    ):
        if was != now:
            raise DataError(f"{name}: changed while it was read; prepare again when it is whole")


@contextmanager
def stage_folder(folder: Path) -> Iterator[Path]:
    """A hidden sibling that becomes ``folder`` when the block ends, and is deleted on any error.

    If another process has made ``folder`` meanwhile, that one stays.

    Raises:
        MachineError: the disk refuses.
    """
    try:
        with temporary_folder(folder) as stage:
            yield stage
            follow_umask(stage)
            with suppress(FileExistsError):
                publish_folder(stage, folder)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise MachineError(f"{folder}: not prepared: {where}{error.strerror or error}") from error


def write_split(folder: Path, name: str, rows: pl.DataFrame) -> None:
    """Write the rows of a split that are in memory, without ROW and in their final order."""
    with TableFile(folder / split_file(name), rows_schema(rows.columns)) as file:
        file.append(rows)


def write_items(folder: Path, items: pl.DataFrame) -> None:
    """Write the catalogue with COUNT, ordered by ITEM."""
    with TableFile(folder / ITEMS_FILE, items_schema(items.columns)) as file:
        file.append(items)


def write_manifest(folder: Path, splits: Iterable[str], facts: Manifest) -> None:
    """Write the manifest, last: ``facts``, and sizes and hashes of the files that are there."""
    names = [ITEMS_FILE, *map(split_file, in_order(splits))]
    files = {name: _describe_file(folder / name) for name in names}
    text = json.dumps(facts | {"files": files}, indent=2, ensure_ascii=False, allow_nan=False)
    with (folder / MANIFEST_FILE).open("wb") as out:
        out.write(text.encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())
    sync_folder(folder)


def load_prepared(folder: Path, reused: bool = False) -> Prepared:
    """Open a prepared folder after checking every file against the manifest.

    Raises:
        ArtefactError: there is no manifest, a file is missing or has changed, or tables are not
            llmrec's.
    """
    manifest = read_manifest(folder)
    for name, written in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise ArtefactError(f"{file}: missing; remove {folder} and run `llmrec prepare` again")
        if hash_file(file) != written["sha256"]:
            raise ArtefactError(
                f"{file}: changed since it was prepared (SHA-256 differs from {MANIFEST_FILE});"
                f" remove {folder} and run `llmrec prepare` again"
            )
    items = _read_items(folder / ITEMS_FILE)
    for name in manifest["files"].keys() - {ITEMS_FILE}:
        check_table_rows(folder / name, len(items))
    return Prepared(folder, manifest, items, reused)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        ArtefactError: there is none, or it is not llmrec's.
    """
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise ArtefactError(
            f"{folder}: not a prepared folder (no {MANIFEST_FILE}); "
            "run first: llmrec prepare RECIPE"
        )
    try:
        manifest: Manifest = json.loads(file.read_bytes())
        complete = {ITEMS_FILE, *map(split_file, SPLITS)} <= manifest["files"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        complete = False
    if not complete or manifest.get("layout") != LAYOUT:
        raise ArtefactError(f"{file}: not a manifest of layout {LAYOUT}")
    return manifest


@contextmanager
def translate_read_errors(folder: Path) -> Iterator[None]:
    """Around reads of a prepared folder by polars: hashes do not protect against its maker.

    Raises:
        ArtefactError: a file cannot be read, or has other columns.
    """
    try:
        yield
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise ArtefactError(f"{folder}: not as it was prepared: {reason}") from error


def check_fits(folder: Path, asked: Manifest) -> None:
    """Refuse a prepared folder that was made from something else than ``asked``.

    Args:
        asked: from ``describe_sources``.

    Raises:
        DataError: names the first key or source that differs.
    """
    made = read_manifest(folder)
    difference = _first_difference(made, asked)
    if difference:
        raise DataError(
            f"{folder}: prepared from something else: {difference};"
            " remove the folder, or give the recipe another name"
        )


def require_same_data(folder: Path, manifest: Manifest, section: DataSection) -> None:
    """Refuse prepared rows that were made with other choices than the recipe has now.

    Sources are not looked at: they may be on another machine.

    Raises:
        DataError: names the first key that differs, with both values.
    """
    data = {"fields": []} | section.model_dump(mode="json", exclude={*CIRCUMSTANCES, *_PATH_KEYS})
    made = {"fields": []} | manifest["data"]  # where none are asked for, the key is left out
    for key in data:
        if key in made and made[key] != data[key]:
            raise DataError(
                f"{folder}: prepared with data.{key} = {json.dumps(made[key])}, the "
                f"recipe has {json.dumps(data[key])}; run llmrec prepare under another name "
                "(name=...), or take the change back"
            )


def _first_difference(made: Manifest, asked: Manifest) -> str | None:
    had, wanted = _select_choices(made), _select_choices(asked)
    for key in [*wanted, *(had.keys() - wanted.keys())]:
        if wanted.get(key) != had.get(key):
            return f"{key} was {json.dumps(had.get(key))}, is now {json.dumps(wanted.get(key))}"
    return _first_other_source(made["sources"], asked["sources"])


def _select_choices(manifest: Manifest) -> Manifest:
    return {f"data.{key}": value for key, value in manifest["data"].items()} | {
        "seed": manifest["seed"]
    }


def _first_other_source(made: Sequence[Manifest], asked: Sequence[Manifest]) -> str | None:
    for was, now in zip(made, asked, strict=False):
        if (was["key"], was["sha256"]) != (now["key"], now["sha256"]):
            return f"{now['key']} {now['name']} differs in content from {was['key']} {was['name']}"
    if len(made) != len(asked):
        return f"{len(made)} source files then, {len(asked)} now"
    return None


def _describe_sources(key: str, name: str, path: Path, section: DataSection) -> Iterator[Manifest]:
    """A file, or of a folder of parquet files each one."""
    if not section.form.folders or not path.is_dir():
        yield _describe_source(key, name, path, path.name)
        return
    for table in find_tables(path):
        yield _describe_source(
            key, name, table.path, table.path.relative_to(path.parent).as_posix()
        )


def _describe_source(key: str, name: str, file: Path, shown: str) -> Manifest:
    try:
        return {
            "key": key,
            "name": shown,
            "bytes": file.stat().st_size,
            "sha256": hash_file(file),
        }
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{key} = {name}: {error.strerror}; expected a file") from None
    except OSError as error:
        raise MachineError(f"{key} = {name}: {error.strerror}") from None


def _describe_file(file: Path) -> Manifest:
    rows = pq.read_metadata(file).num_rows
    return {"rows": rows, "bytes": file.stat().st_size, "sha256": hash_file(file)}


def _read_items(file: Path) -> pd.DataFrame:
    table = _read_table(file)
    check_items(file, table)
    frame: pd.DataFrame = table.to_pandas()
    # Plain lists where pyarrow gives numpy arrays of objects.
    return frame.assign(**{TOKENS: pd.Series(table[TOKENS].to_pylist(), dtype=object)})


def _read_table(file: Path) -> pa.Table:
    """A table of our own columns; metadata of pandas and of extension types are ignored.

    Raises:
        ArtefactError: no parquet file.
    """
    try:
        table = pq.read_table(file, partitioning=None)
        table.validate(full=True)  # UTF-8, and lists within their values
        return table.replace_schema_metadata(None)
    except MemoryError:  # Arrow has a kind of its own
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ArtefactError(f"{file}: no readable parquet file ({reason})") from None
