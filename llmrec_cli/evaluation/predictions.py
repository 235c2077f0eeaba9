"""Writing, checking and reading of predictions.parquet and report.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.data.schema import BEAM_DIFFERS, HISTORY, RANKED, ROW, SCORES, TARGET, USER_ID
from llmrec_cli.errors import ArtefactError
from llmrec_cli.evaluation.metrics import (
    Seen,
    Short,
    define_metrics,
    find_repeats,
    measure_lists,
    name_metrics,
    score_rows,
)
from llmrec_cli.evaluation.statistics import bootstrap_means, count_users
from llmrec_cli.models.base import NO_LEAF, RankedLists
from llmrec_cli.utils.files import create_atomically

# ``predictions.parquet``: the list of every row, written completely or not at all.


PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int32(), nullable=False),
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(HISTORY, pa.list_(pa.int32()), nullable=False),
        pa.field(TARGET, pa.int32(), nullable=False),
        pa.field(RANKED, pa.list_(pa.int32()), nullable=False),
        pa.field(SCORES, pa.list_(pa.float32()), nullable=False),
    ]
)
_BEAM_FIELD = pa.field(BEAM_DIFFERS, pa.bool_(), nullable=False)


def build_predictions(
    rows: pd.DataFrame,
    ranked: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    beam_differs: ArrayLike | None = None,
) -> pd.DataFrame:
    """Join evaluated rows with what was recommended to them, in the same order.

    Args:
        rows: a prepared split (or a part of it) with ``row, user_id, history, target``.
        ranked: per row, catalogue indices of items, best first, one item of each entry.
        scores: per row, the score of each ranked item, never rising.
        beam_differs: per row, whether the beam's list is not the exact one.

    Raises:
        ArtefactError: the lengths differ.
    """
    if not len(rows) == len(ranked) == len(scores):
        raise ArtefactError(
            f"{len(rows)} rows, but {len(ranked)} ranked lists and {len(scores)} lists of scores"
        )
    frame = rows[[ROW, USER_ID, HISTORY, TARGET]].reset_index(drop=True)
    frame[RANKED] = _box_arrays(ranked, np.int32)
    frame[SCORES] = _box_arrays(scores, np.float32)
    if beam_differs is not None:
        frame[BEAM_DIFFERS] = np.asarray(beam_differs, dtype=bool)
    return frame


def list_predictions(
    rows: pd.DataFrame,
    found: RankedLists,
    leaves: CatalogueEntries,
    beam_differs: ArrayLike | None = None,
) -> pd.DataFrame:
    """``build_predictions`` from what a Ranker found for the rows, one item for each entry."""
    held_BK = found.leaf_BK != NO_LEAF
    ranked = [leaves.item_of_leaf_L[k[h]] for k, h in zip(found.leaf_BK, held_BK, strict=True)]
    scores = [k[h] for k, h in zip(found.score_BK, held_BK, strict=True)]
    return build_predictions(rows, ranked, scores, beam_differs)


def check_predictions(predictions: pd.DataFrame, expected_rows: ArrayLike | None = None) -> None:
    """Check that each row occurs once, with a list and falling scores.

    Args:
        predictions: the columns of ``SCHEMA``.
        expected_rows: row ids that must all be there, and no others.

    Raises:
        ArtefactError: a column is missing; a row is missing, unexpected or there twice; a list and
            its scores differ in length; a score is NaN or higher than the one before it.
    """
    missing = [name for name in PREDICTIONS_SCHEMA.names if name not in predictions.columns]
    if missing:
        raise ArtefactError(
            f"predictions: no column {missing[0]}; expected {', '.join(PREDICTIONS_SCHEMA.names)}"
        )
    _check_rows(predictions[ROW].to_numpy(), expected_rows)
    _check_lists(predictions)


def write_predictions(
    path: Path, predictions: pd.DataFrame, expected_rows: ArrayLike | None = None
) -> None:
    """Check and write ``predictions``, ordered by row; the file appears complete or not at all.

    Raises:
        ArtefactError: see ``check_predictions``.
        MachineError: the disk or its permissions refuse.
    """
    check_predictions(predictions, expected_rows)
    table = _to_table(predictions.sort_values(ROW, kind="stable"))
    create_atomically(path, lambda stream: pq.write_table(table, stream, compression="zstd"))


def read_predictions(path: Path, expected_rows: ArrayLike | None = None) -> pd.DataFrame:
    """Read and check a predictions file; lists become numpy arrays (int32, scores float32).

    Raises:
        ArtefactError: the file is missing, damaged, or fails ``check_predictions``.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: no such file; run `llmrec eval` first") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: not a readable parquet file: {_first_line(error)}") from error
    try:
        frame = _to_frame(table)
        check_predictions(frame, expected_rows)
    except (ArtefactError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: {_first_line(error)}") from error
    return frame


def _check_rows(row_R: NDArray[np.int32], expected_rows: ArrayLike | None) -> None:
    ids, times = np.unique(row_R, return_counts=True)
    if (times > 1).any():
        at = int(np.argmax(times > 1))
        raise ArtefactError(f"predictions: row {ids[at]} occurs {times[at]} times")
    if expected_rows is None:
        return
    expected = np.asarray(expected_rows)
    for label, odd in (
        ("missing", np.setdiff1d(expected, ids)),
        ("unexpected", np.setdiff1d(ids, expected)),
    ):
        if len(odd):
            raise ArtefactError(
                f"predictions: {len(odd)} of {len(expected)} rows {label}, first {odd[0]}"
            )


def _check_lists(predictions: pd.DataFrame) -> None:
    if len(predictions) == 0:
        raise ArtefactError("predictions: no rows")
    items, scores = (list(predictions[column]) for column in (RANKED, SCORES))
    length_R = np.array([len(x) for x in items])
    wrong_R = length_R != np.array([len(x) for x in scores])
    if not wrong_R.any():
        row_E = np.repeat(np.arange(len(scores)), length_R)
        with np.errstate(invalid="ignore"):  # -inf after -inf is in order, and NaN is reported
            score_E = np.concatenate(scores).astype(np.float64)
            rises_E = ~(score_E[1:] <= score_E[:-1]) & (row_E[1:] == row_E[:-1])
        wrong_R[row_E[np.isnan(score_E)]] = True
        wrong_R[row_E[1:][rises_E]] = True
    if wrong_R.any():
        at = int(np.argmax(wrong_R))
        raise ArtefactError(
            f"predictions, row {predictions[ROW].iloc[at]}: {len(items[at])} items and "
            f"{len(scores[at])} scores; expected as many of both, no NaN, and no score above "
            "the one before"
        )


def _to_table(frame: pd.DataFrame) -> pa.Table:
    schema = (
        PREDICTIONS_SCHEMA.append(_BEAM_FIELD)
        if BEAM_DIFFERS in frame.columns
        else PREDICTIONS_SCHEMA
    )
    arrays = [pa.array(frame[field.name].tolist(), type=field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    wanted = [*PREDICTIONS_SCHEMA, *([_BEAM_FIELD] if BEAM_DIFFERS in table.column_names else [])]
    present = [field for field in wanted if field.name in table.column_names]
    return pd.DataFrame({f.name: _read_column(table[f.name].cast(f.type), f) for f in present})


def _read_column(values: pa.ChunkedArray, field: pa.Field) -> pd.Series[Any]:
    if values.null_count:
        raise ArtefactError(f"{field.name}: {values.null_count} null, expected none")
    values.validate(full=True)  # UTF-8, and lists within their values
    if not pa.types.is_list(field.type):
        return values.to_pandas()  # type: ignore[no-any-return]  # pyarrow has no types
    whole = values.combine_chunks()
    flat = whole.flatten()
    if flat.null_count:
        raise ArtefactError(f"{field.name}: {flat.null_count} null in its lists, expected none")
    ends = np.cumsum(whole.value_lengths().to_numpy(zero_copy_only=False))
    lists = np.split(flat.to_numpy(zero_copy_only=False), ends)[:-1]
    return _box_arrays(lists, field.type.value_type.to_pandas_dtype())


def _box_arrays(lists: Sequence[ArrayLike], kind: type) -> pd.Series[Any]:
    """Arrays as cells: pandas would make a matrix of lists of equal length."""
    cells = np.empty(len(lists), dtype=object)
    for at, values in enumerate(lists):
        cells[at] = np.asarray(values, dtype=kind)
    return pd.Series(cells, dtype=object)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


# ``report.json``: one run's figures, with their protocol.


SEEN: Final[tuple[Seen, ...]] = ("keep", "remove")

DEFINITIONS: Final = {
    "rank": "place of the target among the list's distinct catalogue entries, from 1",
    **define_metrics(),
    "low, high": "95 % percentile bootstrap over users (a user with all of his or her rows)",
    "seen": "keep: the row's history stays among the candidates; remove: it is dropped, except "
    "for the target's own entry",
    "repeats": "rows whose target's entry stands in their own history; `remove` keeps it a "
    "candidate and drops its rivals, so these rows get easier",
    "coverage": "share of catalogue entries in at least one list of the largest K",
    "gini": "inequality of how often each catalogue entry is recommended, 0 equal .. 1",
    "popularity": "mean training interactions of a recommended entry",
    "long_tail": "share of recommendations outside the most popular 20 % of entries",
    "short": "lists with fewer than the largest K entries although candidates were left",
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a figure depends on.  Two runs are comparable only where all but the decoder agree."""

    split: str  # "valid" or "test"
    seen: Seen  # the headline
    cutoffs: tuple[int, ...]
    candidates: str  # e.g. "whole catalogue"
    decoder: Mapping[str, Any]  # search, mask, temperature, ...
    hashes: Mapping[str, str]  # "data" (compared between runs), "model", "catalogue", ...


def build_report(
    predictions: Mapping[Seen, pd.DataFrame],
    leaves: CatalogueEntries,
    protocol: Protocol,
    resamples: int = 2000,
    seed: int = 0,
    short: Short = "refuse",
) -> dict[str, Any]:
    """Figures with history kept and with history removed, ready for ``json.dump``.

    Args:
        predictions: the frame to score under each policy.  One frame may serve both if its lists
            are deep enough (``models.base.Ranker.rank``); a beam that searched without the history
            gives its own frame for ``remove``.
        leaves: the catalogue's distinct entries.
        protocol: stored as it is; its cut-offs are scored.
        resamples, seed: of the bootstrap.
        short: see ``score_rows``.

    Returns:
        ``rows, users, repeats, items, entries, protocol, keep, remove, bootstrap, definitions``;
        ``keep`` and ``remove`` hold ``metrics`` (mean, low, high; null: unknown) and ``lists``.

    Raises:
        ArtefactError: see ``score_rows``.
    """
    report: dict[str, Any] = {
        "rows": len(predictions[protocol.seen]),
        "users": count_users(predictions[protocol.seen]),
        "repeats": int(find_repeats(predictions[protocol.seen], leaves).sum()),
        "items": leaves.n_items,
        "entries": leaves.n_leaves,
        "protocol": asdict(protocol),
        "bootstrap": {"resamples": resamples, "seed": seed},
    }
    for seen in SEEN:
        frame, depth = predictions[seen], max(protocol.cutoffs)
        rows = score_rows(frame, leaves, protocol.cutoffs, seen, short)
        intervals = bootstrap_means(rows, name_metrics(protocol.cutoffs), resamples, seed)
        report[seen] = {
            "metrics": {name: asdict(interval) for name, interval in intervals.items()},
            "lists": asdict(measure_lists(frame, leaves, depth, seen)),
        }
        if BEAM_DIFFERS in frame.columns:
            differs = int(frame[BEAM_DIFFERS].sum())
            report[seen]["beam_error"] = {"rows": differs, "share": differs / len(frame)}
    plain: dict[str, Any] = to_jsonable({**report, "definitions": dict(DEFINITIONS)})
    return plain


def to_jsonable(value: Any) -> Any:
    """Nested values as JSON knows them: lists for tuples, null for NaN and infinity.

    Keys stay strings; anything else that JSON lacks is left for ``json.dump`` to refuse.
    """
    if isinstance(value, Mapping):
        return {key: to_jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
