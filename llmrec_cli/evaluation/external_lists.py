"""External lists: read lists of other tools, write llmrec's rows and lists."""

from __future__ import annotations

import csv
import io
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.data.formats.delimited import Kinds, read_header
from llmrec_cli.data.formats.parsing import make_fault, read_blocks, read_head, show_text
from llmrec_cli.data.formats.tables import Table, read_parts
from llmrec_cli.data.prepared import Prepared, load_prepared
from llmrec_cli.data.schema import (
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
from llmrec_cli.errors import ArtefactError, DataError, RecipeError
from llmrec_cli.evaluation.comparison import (
    ComparisonConfig,
    Entry,
    EvaluatedData,
    Evaluation,
    build_comparability_keys,
)
from llmrec_cli.evaluation.entries import (
    UNKNOWN,
    PreparedFolders,
    load_evaluation,
    require_evaluated,
)
from llmrec_cli.evaluation.predictions import build_predictions, read_predictions
from llmrec_cli.runs.run import run_at
from llmrec_cli.utils.files import write_atomically, write_folder

# Lists that another tool has made, as an entry of a comparison, scored under our protocol.
#
# One line per recommended item, in any order: CSV or parquet with the columns ``item_id``,
# ``user_id`` or ``row``, and ``score`` or ``rank`` (RecBole's ``user_id:token`` is ``user_id``), or
# a TREC run (``qid Q0 docno rank score tag``). The score decides, as in trec_eval; equal scores go
# by rank, then by line. Or our own ``predictions.parquet``.


Missing = Literal["refuse", "miss"]
Ints = NDArray[np.int64]
Lists = Mapping[int, tuple[NDArray[Any], NDArray[Any]]]
"""Row number -> catalogue indices, best first, and their scores."""

_CHANCE = 20  # if random lists would hold that many history items, their absence is a choice
RANK, SCORE = "rank", "score"
QUERY = "qid"  # of a TREC run: a user or a row
_EXPECTED = "item_id, user_id or row, and rank or score"
_TREC = "expected a TREC run: qid Q0 docno rank score tag"

Floats = NDArray[np.float64]


def load_external_entry(
    name: str,
    path: Path,
    evaluated_data: EvaluatedData,
    asked: ComparisonConfig,
    missing: Missing,
    measure: Entry | None,
) -> tuple[Entry, list[str]]:
    """Read another tool's lists, for the rows that the other entries were evaluated on.

    Args:
        missing: what becomes of a row without a list: an error, or a miss.
        measure: an entry of ours over the rows in question; None: all rows of the split.

    Returns:
        The entry, and what a reader has to know about it.

    Raises:
        DataError: an item, user or row that is unknown, a repeated item or rank, a score that is
            no number; file and line are named.
        ArtefactError: rows without a list; or the task ranks no catalogue.
    """
    if not asked.cutoffs:
        raise ArtefactError(f'{path}: lists of items, but task "rank-pair" ranks two candidates')
    wanted = evaluated_data.rows
    if measure is not None and measure.evaluations[0].predictions is not None:
        wanted = wanted.iloc[measure.evaluations[0].predictions[ROW].to_numpy()]
    lists, notes = _read_lists(path, evaluated_data)
    notes += _check_coverage(path, lists, wanted, missing)
    nothing = (np.array([], np.int64), np.array([], np.float32))
    ranked, scores = zip(*(lists.get(row, nothing) for row in wanted[ROW]), strict=True)
    predictions = build_predictions(wanted, ranked, scores)
    run = Evaluation(path.name, name, None, None, {}, {}, predictions, None)
    without = _leaves_history_out(predictions, evaluated_data.leaves)
    if without:
        notes.append("no list holds an item of its row's history; compare with --seen remove")
    notes.append("another tool's lists: how it was trained and chosen is not compared")
    traits = build_comparability_keys(run, evaluated_data, "external")
    entry = Entry(name, "external", evaluated_data, (run,), traits, UNKNOWN, without)
    return entry, [f"{name}: {note}" for note in notes]


def _check_coverage(path: Path, lists: Lists, wanted: pd.DataFrame, missing: Missing) -> list[str]:
    """Refuse or note rows without a list, and note lists that nobody asked for."""
    absent = wanted[~wanted[ROW].isin(list(lists))]
    of = f"{len(absent):,} of {len(wanted):,} rows"
    if len(absent) and missing == "refuse":
        first = absent.iloc[0]
        raise ArtefactError(
            f"{path}: no list for {of}, first row {first[ROW]} (user {show_text(first[USER_ID])}); "
            "add --missing miss to count them as misses"
        )
    notes = [f"no list for {of}: misses"] if len(absent) else []
    beyond = len(lists) - (len(wanted) - len(absent))
    if beyond:
        notes.append(f"{beyond:,} lists for rows that the others were not evaluated on: left out")
    return notes


def _read_lists(path: Path, evaluated_data: EvaluatedData) -> tuple[Lists, list[str]]:
    if is_ours(path):
        return _read_our_lists(path, evaluated_data), []
    listed = read_listed(path)
    row_E, notes = _match_rows(listed, evaluated_data)
    item_E = _match_items(listed, evaluated_data)
    _refuse_repeats(listed, row_E, item_E, "the item {} occurs twice in the list of its user")
    if listed.score_E is None and listed.rank_E is not None:
        _refuse_repeats(listed, row_E, listed.rank_E, "the rank {} occurs twice in a list")
    order_E = _order_best_first(listed, row_E)
    starts = np.flatnonzero(np.diff(row_E[order_E], prepend=-1))
    score_E = -np.arange(len(row_E)) if listed.score_E is None else listed.score_E[order_E]
    parts = [np.split(values, starts[1:]) for values in (item_E[order_E], score_E)]
    rows = row_E[order_E][starts].tolist()
    return dict(zip(rows, zip(*parts, strict=True), strict=True)), notes


def _read_our_lists(path: Path, evaluated_data: EvaluatedData) -> Lists:
    predictions = read_predictions(path)
    row_R = predictions[ROW].to_numpy(np.int64)
    fits = (row_R >= 0) & (row_R < len(evaluated_data.rows))
    if fits.all():
        ours = evaluated_data.rows.iloc[row_R]
        for column in (USER_ID, TARGET):
            fits &= predictions[column].to_numpy() == ours[column].to_numpy()
    if not fits.all():
        row = row_R[int(np.argmin(fits))]
        raise DataError(f"{path}: row {row} is not that user and target of {evaluated_data.split}")
    item_E = np.concatenate([*predictions[RANKED]])
    strange_E = (item_E < 0) | (item_E >= len(evaluated_data.items))
    if strange_E.any():
        found = item_E[int(np.argmax(strange_E))]
        raise DataError(f"{path}: item {found}, expected 0 to {len(evaluated_data.items) - 1}")
    lists = zip(predictions[RANKED], predictions[SCORES], strict=True)
    return dict(zip(row_R.tolist(), lists, strict=True))


def _match_rows(listed: Listed, evaluated_data: EvaluatedData) -> tuple[Ints, list[str]]:
    """Row number of every listed item, and a note on what the queries were taken for."""
    if listed.kind == ROW:
        return _match_numbers(listed, len(evaluated_data.rows)), []
    users = evaluated_data.rows[USER_ID]
    if listed.kind == QUERY and not users.isin(listed.key_E).any():
        return _match_numbers(listed, len(evaluated_data.rows)), ["its queries are row numbers"]
    notes = ["its queries are user ids"] if listed.kind == QUERY else []
    row_of = dict(zip(users, evaluated_data.rows[ROW].tolist(), strict=True))
    found = np.array([row_of.get(user, -1) for user in listed.key_E])
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        user, split = show_text(listed.key_E[at]), evaluated_data.split
        raise listed.fault(at, f"user {user} has no {split} row")
    several = users.isin(users[users.duplicated()]).to_numpy()
    if several[found].any():
        at = int(np.argmax(several[found]))
        raise listed.fault(
            at,
            f"user {show_text(listed.key_E[at])} has several {evaluated_data.split} rows: "
            f"name them by their number in {evaluated_data.split}.parquet, from 0, in a column "
            '"row"',
        )
    return found, notes


def _match_numbers(listed: Listed, n_rows: int) -> Ints:
    known = {str(row): row for row in range(n_rows)}
    found = np.array([known.get(key, -1) for key in listed.key_E])
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        whose = "user or row" if listed.kind == QUERY else "row"
        problem = f"unknown {whose} {show_text(listed.key_E[at])}, expected 0 to {n_rows - 1}"
        raise listed.fault(at, problem)
    return found


def _match_items(listed: Listed, evaluated_data: EvaluatedData) -> Ints:
    known = {item: at for at, item in enumerate(evaluated_data.items[ITEM_ID])}
    found = np.array([known.get(item, -1) for item in listed.item_E])
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        raise listed.fault(
            at,
            f"item {show_text(listed.item_E[at])} is not among the {len(known):,} of the catalogue "
            "(items.parquet, item_id)",
        )
    return found


def _refuse_repeats(listed: Listed, row_E: Ints, what_E: NDArray[Any], problem: str) -> None:
    """Refuse a row that has the same item or rank twice; the message names the later line."""
    order_E = np.lexsort((np.arange(len(row_E)), what_E, row_E))
    row_P, what_P = row_E[order_E], what_E[order_E]
    twice_P = (row_P[1:] == row_P[:-1]) & (what_P[1:] == what_P[:-1])
    if twice_P.any():
        at = int(order_E[1:][twice_P].min())
        names = listed.item_E if what_E.dtype.kind == "i" else [f"{rank:g}" for rank in what_E]
        raise listed.fault(at, problem.format(show_text(names[at])))


def _order_best_first(listed: Listed, row_E: Ints) -> Ints:
    """Entries by row; within one by falling score, then rising rank, then line."""
    keys: list[NDArray[Any]] = [np.arange(len(row_E))]
    if listed.rank_E is not None:
        keys.append(listed.rank_E)
    if listed.score_E is not None:
        keys.append(-listed.score_E)
    order_E: Ints = np.lexsort((*keys, row_E))
    return order_E


def _leaves_history_out(predictions: pd.DataFrame, leaves: CatalogueEntries) -> bool:
    """Whether the lists leave the histories of their rows out.

    They do if they hold no item of a history, although random lists would hold ``_CHANCE`` or more.
    """
    expected, leaf_of = 0.0, leaves.leaf_of_item_I
    for history, ranked in zip(predictions[HISTORY], predictions[RANKED], strict=True):
        own = np.unique(leaf_of[history])
        if np.isin(leaf_of[ranked], own).any():
            return False
        expected += len(ranked) * len(own) / leaves.n_leaves
    return expected >= _CHANCE


@dataclass(frozen=True)
class Listed:
    """One recommended item per entry, in the order of the file.

    Attributes:
        kind: what ``key_E`` holds: USER_ID, ROW or QUERY.
        rank_E, score_E: finite, or None where the file has no such column.
    """

    path: Path
    kind: str
    key_E: list[str]
    item_E: list[str]
    rank_E: Floats | None
    score_E: Floats | None
    _line_of: Callable[[int], int]

    def fault(self, entry: int, problem: str) -> DataError:
        """The error of one entry, which names file and line."""
        return make_fault(self.path, self._line_of(int(entry)), problem)


def is_ours(path: Path) -> bool:
    """Whether a file is a ``predictions.parquet`` of llmrec's own schema."""
    return read_head(path)[:4] == b"PAR1" and RANKED in _read_parquet_names(path)


def read_listed(path: Path) -> Listed:
    """Read another tool's file.

    Raises:
        DataError: missing, damaged or empty; columns that are not there; a rank or score that is
            no finite number.
    """
    if read_head(path)[:4] == b"PAR1":
        return _read_table(path, _read_parquet_names(path))
    first = next(read_blocks(path)).data.partition(b"\n")[0]
    cells = first.split()
    if len(cells) == 6 and cells[1].upper() == b"Q0":
        return _read_trec(path)
    return _read_table(path, read_header(path, "\t" if b"\t" in first else ","))


def _read_parquet_names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except MemoryError:  # Arrow has a kind of its own
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise make_fault(path, 1, f"no readable parquet file ({reason})") from None


@dataclass
class _Lines:
    """The line of every listed item, over consecutive parts of a file."""

    starts: list[int] = field(default_factory=list)
    line_of: list[Callable[[int], int]] = field(default_factory=list)

    def add(self, start: int, line_of: Callable[[int], int]) -> None:
        self.starts.append(start)
        self.line_of.append(line_of)

    def __call__(self, entry: int) -> int:
        part = bisect_right(self.starts, entry) - 1
        return self.line_of[part](entry - self.starts[part])


def _read_table(path: Path, names: Sequence[str]) -> Listed:
    """A table with named columns; RecBole writes ``name:type``."""
    found = {name.partition(":")[0]: name for name in names}
    kind = USER_ID if USER_ID in found else ROW
    if not {kind, ITEM_ID} <= found.keys() or not {RANK, SCORE} & found.keys():
        raise make_fault(
            path, 1, f"columns {show_text(', '.join(names), 100)}, expected {_EXPECTED}"
        )
    numbers = [name for name in (RANK, SCORE) if name in found]
    parts, lines, count = [], _Lines(), 0
    wanted = Kinds(numbers=tuple(found[name] for name in numbers))
    for part in read_parts(Table(path), [found[kind], found[ITEM_ID]], wanted):
        lines.add(count, part.line_of)
        count += len(part.texts[found[ITEM_ID]])
        parts.append(part)
    if not count:
        raise DataError(f"{path}: no line of a recommended item")
    by_name = {
        name: np.concatenate(
            [part.numbers[found[name]].to_numpy(zero_copy_only=False) for part in parts]
        )
        for name in numbers
    }
    listed = Listed(
        path=path,
        kind=kind,
        key_E=list(chain.from_iterable(part.texts[found[kind]] for part in parts)),
        item_E=list(chain.from_iterable(part.texts[found[ITEM_ID]] for part in parts)),
        rank_E=by_name.get(RANK),
        score_E=by_name.get(SCORE),
        _line_of=lines,
    )
    return _check_numbers(listed)


def _check_numbers(listed: Listed) -> Listed:
    for name, number_E in ((RANK, listed.rank_E), (SCORE, listed.score_E)):
        if number_E is not None and np.isnan(number_E).any():
            at = int(np.argmax(np.isnan(number_E)))
            raise listed.fault(at, f'"{name}" is not a number')
    if listed.score_E is not None:  # predictions hold 32 bits
        over_E = np.isfinite(listed.score_E) & (np.abs(listed.score_E) > np.finfo(np.float32).max)
        if over_E.any():
            at = int(np.argmax(over_E))
            raise listed.fault(at, f'"{SCORE}" is {listed.score_E[at]:g}, expected at most 3.4e+38')
    return listed


def _read_trec(path: Path) -> Listed:
    """Read a run in TREC's format; its second and last column are not used."""
    lines = [line for block in read_blocks(path) for line in block.lines()]
    rows = [line.decode().split() for _, line in lines]
    for (number, line), cells in zip(lines, rows, strict=True):
        if len(cells) != 6:
            problem = f"{len(cells)} cells, {_TREC}; found {show_text(line.decode())}"
            raise make_fault(path, number, problem)
    query_E, _, item_E, rank_E, score_E, _ = map(list, zip(*rows, strict=True))
    numbers = [number for number, _ in lines]
    return _check_numbers(
        Listed(
            path=path,
            kind=QUERY,
            key_E=query_E,
            item_E=item_E,
            rank_E=_parse_floats(path, numbers, RANK, rank_E),
            score_E=_parse_floats(path, numbers, SCORE, score_E),
            _line_of=numbers.__getitem__,
        )
    )


def _parse_floats(path: Path, numbers: Sequence[int], name: str, cells: Iterable[Any]) -> Floats:
    values = []
    for number, cell in zip(numbers, cells, strict=True):
        try:
            values.append(float(cell))
        except ValueError:
            raise make_fault(
                path, number, f'"{name}" is {show_text(cell)}, expected a number'
            ) from None
    return np.array(values)


# Rows and lists for other tools: RecBole's atomic files, TREC runs, plain CSV.
#
# What comes back from them enters ``llmrec compare --external`` (``evaluation/external_lists.py``).


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
    prepared = load_prepared(recipe.prepared_folder)
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
    evaluation, evaluated_data = load_evaluation(run, PreparedFolders(split))
    if evaluation.predictions is None:
        raise ArtefactError(f"{folder}: has scored pairs, not lists")
    frame, ids = evaluation.predictions, evaluated_data.items[ITEM_ID].to_numpy()
    if format == "csv":
        heading = (ROW, USER_ID, ITEM_ID, "rank", "score")
        write_atomically(to, _format_table(",", heading, _make_csv_lines(frame, ids)).encode())
        return len(frame)
    by_user = not evaluated_data.rows[USER_ID].duplicated().any()
    queries = frame[USER_ID].tolist() if by_user else list(map(str, frame[ROW]))
    _require_one_word(evaluated_data.folder, "item_id", ids)
    _require_one_word(evaluated_data.folder, "user_id", queries)
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
                f"{folder}: {name} {show_text(found)} is not one word; the format separates by "
                "spaces"
            )
