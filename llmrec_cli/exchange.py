"""Rows and lists for other tools: RecBole's atomic files, TREC runs, plain CSV.

What comes back from them enters ``llmrec compare --external`` (``comparing/external.py``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from llmrec_cli.comparing.evaluated import PreparedFolders, load_evaluation, require_evaluated
from llmrec_cli.data.columns import (
    BRAND,
    HISTORY,
    ITEM_ID,
    NEGATIVES,
    RANKED,
    ROW,
    SCORES,
    SPLITS,
    TARGET,
    TIMESTAMP,
    TITLE,
    USER_ID,
)
from llmrec_cli.data.readers.block import shown
from llmrec_cli.data.store import Prepared, load_prepared
from llmrec_cli.errors import ArtefactError, DataError, RecipeError
from llmrec_cli.files import write_atomically, write_folder
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.runs.run import run_at

ListFormat = Literal["trec", "csv"]


def export_data(recipe: Recipe, to: Path) -> list[Path]:
    """Write prepared rows as RecBole's atomic files, split as they are.

    ``NAME.train.inter``, ``NAME.valid.inter`` and ``NAME.test.inter`` (its ``benchmark_filename``)
    have a line per row: the user, the history oldest first, the target, its time in milliseconds
    (0 where there is none).
    ``NAME.item`` has titles and brands, ``NAME.yaml`` the settings to load them.

    Returns:
        The files.

    Raises:
        ArtefactError: nothing is prepared, the folder exists, or rows are of pairs.
        DataError: an id has a space or a tab, which separate the ids of a history there.
        MachineError: the disk or its permissions refuse.
    """
    if to.exists():
        raise ArtefactError(f"{to}: exists already and is never overwritten; name another folder")
    prepared = load_prepared(recipe.prepared)
    frames = {split: prepared.split(split) for split in SPLITS}
    if NEGATIVES in frames["test"].columns:
        raise ArtefactError(f"{prepared.folder}: rows of pairs; RecBole's files know histories")
    _require_one_word(prepared.folder, "item_id", prepared.items[ITEM_ID])
    files = {
        f"{recipe.name}.{split}.inter": _format_interactions(prepared, frames[split])
        for split in SPLITS
    }
    files |= {f"{recipe.name}.item": _format_items(prepared.items), f"{recipe.name}.yaml": _YAML}

    def fill(temporary: Path) -> None:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="")

    write_folder(to, fill, hashes=False, replaces=False)
    return [to / name for name in files]


_YAML = f"""# settings of RecBole for the files beside this one
field_separator: "\\t"
seq_separator: " "
USER_ID_FIELD: {USER_ID}
ITEM_ID_FIELD: {ITEM_ID}
TIME_FIELD: {TIMESTAMP}
load_col:
  inter: [{USER_ID}, {ITEM_ID}_list, {ITEM_ID}, {TIMESTAMP}]
  item: [{ITEM_ID}, {TITLE}, {BRAND}]
alias_of_item_id: [{ITEM_ID}_list]
benchmark_filename: [{", ".join(SPLITS)}]
eval_args:
  mode: full
train_neg_sample_args: null
"""


def _format_interactions(prepared: Prepared, rows: pd.DataFrame) -> str:
    ids = prepared.items[ITEM_ID].to_numpy()
    heading = [f"{USER_ID}:token", f"{ITEM_ID}_list:token_seq", f"{ITEM_ID}:token"]
    times = [0 if pd.isna(time) else int(time) for time in rows[TIMESTAMP]]
    columns = (rows[USER_ID], rows[HISTORY], rows[TARGET], times)
    lines = (
        (user, " ".join(ids[history]), ids[target], time)
        for user, history, target, time in zip(*columns, strict=True)
    )
    return _format_table("\t", [*heading, f"{TIMESTAMP}:float"], lines)


def _format_items(items: pd.DataFrame) -> str:
    heading = (f"{ITEM_ID}:token", f"{TITLE}:token_seq", f"{BRAND}:token")
    columns = [items[name].fillna("") for name in (ITEM_ID, TITLE, BRAND)]
    lines = ([" ".join(cell.split()) for cell in row] for row in zip(*columns, strict=True))
    return _format_table("\t", heading, lines)


def export_lists(
    folder: Path, to: Path, *, split: str, format: ListFormat, relevant: Path | None = None
) -> int:
    """Write what a run recommends, in the order of its lists.

    Queries of a TREC run are user ids where every user has one row, and row numbers otherwise.
    Its scores are those of the run in float32, each below the one before: trec_eval orders by the
    score alone.

    Args:
        relevant: of a TREC run, also write the targets as trec_eval's qrels.

    Returns:
        The number of lists.

    Raises:
        ArtefactError: the run was not evaluated on the split, or has scored pairs.
        DataError: an id has a space.
        MachineError: the disk or its permissions refuse.
    """
    if relevant is not None and format != "trec":
        raise RecipeError(f'--qrels {relevant}: goes with --format trec, not "{format}"')
    run = run_at(folder)
    require_evaluated(run, split)
    evaluation, ground = load_evaluation(run, PreparedFolders(split))
    if evaluation.predictions is None:
        raise ArtefactError(f"{folder}: has scored pairs, not lists")
    frame, ids = evaluation.predictions, ground.items[ITEM_ID].to_numpy()
    if format == "csv":
        heading = (ROW, USER_ID, ITEM_ID, "rank", "score")
        write_atomically(to, _format_table(",", heading, _make_csv_lines(frame, ids)).encode())
        return len(frame)
    by_user = not ground.rows[USER_ID].duplicated().any()
    queries = frame[USER_ID].tolist() if by_user else list(map(str, frame[ROW]))
    _require_one_word(ground.folder, "item_id", ids)
    _require_one_word(ground.folder, "user_id", queries)
    write_atomically(to, "".join(_make_trec_lines(frame, ids, queries, run.name)).encode())
    if relevant is not None:
        targets = zip(queries, ids[frame[TARGET]], strict=True)
        write_atomically(relevant, "".join(f"{q} 0 {item} 1\n" for q, item in targets).encode())
    return len(frame)


def _make_csv_lines(frame: pd.DataFrame, ids: Any) -> Iterator[tuple[Any, ...]]:
    for row, user, ranked, scores in _iterate_lists(frame):
        for place, (item, score) in enumerate(zip(ids[ranked], scores, strict=True), start=1):
            yield row, user, item, place, repr(float(score))


def _make_trec_lines(
    frame: pd.DataFrame, ids: Any, queries: Sequence[str], tag: str
) -> Iterator[str]:
    for query, (_, _, ranked, scores) in zip(queries, _iterate_lists(frame), strict=True):
        for place, (item, score) in enumerate(
            zip(ids[ranked], force_falling(scores), strict=True), 1
        ):
            yield f"{query} Q0 {item} {place} {score:.9g} {tag}\n"


def force_falling(scores: Sequence[float]) -> list[float]:
    """Float32 scores with each one below the one before, changed as little as can be."""
    lower = np.array(scores, np.float32)
    for before, at in pairwise(range(len(lower))):
        limit = np.nextafter(lower[before], np.float32(-np.inf))
        lower[at] = min(lower[at], limit)
    return [float(score) for score in lower]


def _iterate_lists(frame: pd.DataFrame) -> Iterator[tuple[int, str, Any, Any]]:
    return zip(frame[ROW], frame[USER_ID], frame[RANKED], frame[SCORES], strict=True)


def _format_table(delimiter: str, heading: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Cells with quotes or the delimiter in them are quoted, as pandas and RecBole read them."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(lines)
    return out.getvalue()


def _require_one_word(folder: Path, name: str, ids: Iterable[str]) -> None:
    for found in ids:
        if found.split() != [found]:
            raise DataError(
                f"{folder}: {name} {shown(found)} is not one word; the format separates by spaces"
            )
