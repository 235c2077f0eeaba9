"""Runs side by side: mean and 95 % interval per metric, and the difference from a baseline run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from llmrec_cli.errors import ArtefactError
from llmrec_cli.report.lists import Seen
from llmrec_cli.report.metrics import metric_names
from llmrec_cli.report.report_json import jsonable
from llmrec_cli.report.statistics import Difference, Interval, paired_difference
from llmrec_cli.report.text import plain

_NAME_CELLS = 32


@dataclass(frozen=True)
class Run:
    """A finished run as the leaderboard needs it."""

    name: str
    report: Mapping[str, Any]  # as ``build_report`` makes it or report.json holds it
    rows: pd.DataFrame  # ``score_rows`` under the headline policy


@dataclass(frozen=True, slots=True)
class Line:
    """One run's figures."""

    name: str
    metrics: Mapping[str, Interval]
    difference: Difference | None  # from the baseline; None for the baseline itself or without one


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Runs under one protocol, in the order given."""

    split: str
    seen: Seen | None  # None: a task that knows no seen items
    candidates: str
    n_rows: int
    n_users: int
    metrics: tuple[str, ...]
    compared: str  # the metric of the differences
    baseline: str | None
    lines: tuple[Line, ...]


def build_leaderboard(
    runs: Sequence[Run],
    baseline: str | None = None,
    compared: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Leaderboard:
    """Put runs side by side.

    Args:
        runs: at least one; all evaluated under the same protocol (the decoder may differ).
        baseline: name of the run that the others are compared with, by paired difference.
        compared: metric of that comparison; default NDCG at the largest cut-off.
        resamples, seed: of the paired difference.

    Raises:
        ArtefactError: two runs of one name, an unknown baseline or metric, different protocols or
            different rows.
    """
    protocol = _common_protocol(runs)
    metrics = tuple(metric_names(protocol["cutoffs"]))
    compared = compared or f"ndcg@{max(protocol['cutoffs'])}"
    by_name = {run.name: run for run in runs}
    for label, value, known in (("baseline", baseline, by_name), ("metric", compared, metrics)):
        if value is not None and value not in known:
            raise ArtefactError(f"no {label} {value!r}; there is {', '.join(known)}")
    base = by_name[baseline] if baseline is not None else None
    return Leaderboard(
        split=protocol["split"],
        seen=protocol["seen"],
        candidates=protocol["candidates"],
        n_rows=runs[0].report["rows"],
        n_users=runs[0].report["users"],
        metrics=metrics,
        compared=compared,
        baseline=baseline,
        lines=tuple(_line(run, base, protocol["seen"], compared, resamples, seed) for run in runs),
    )


def to_table(board: Leaderboard) -> Table:
    """The leaderboard for a terminal; names are shown, never interpreted."""
    table = Table(
        title=Text(_title(board)),
        caption=Text(_caption(board)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("run", overflow="fold")
    headings, grid = _headings(board), _cells(board, separator="\n")
    for place, heading in enumerate(headings[1:], start=1):
        words = " ".join([heading, *(cells[place] for cells in grid)]).split()
        widest = max(map(cell_len, words))  # a number may go to its own line, never lose digits
        table.add_column(Text(heading), justify="right", min_width=widest)
    for cells in grid:
        table.add_row(*map(Text, cells))
    return table


def to_text(board: Leaderboard) -> str:
    """The leaderboard as plain aligned lines, for logs and pipes."""
    grid = [_headings(board), *_cells(board, separator=" ")]
    widths = [max(map(cell_len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(_fill(c, w) for c, w in zip(row, widths, strict=True)) for row in grid]
    return "\n".join([_title(board), *(line.rstrip() for line in lines), _caption(board)])


def to_json(board: Leaderboard) -> dict[str, Any]:
    """The leaderboard for ``json.dump``; names as they are, unknown interval ends are null."""
    plain_dict: dict[str, Any] = jsonable(asdict(board))
    return plain_dict


def _line(run: Run, base: Run | None, seen: Seen, compared: str, resamples: int, seed: int) -> Line:
    metrics = {name: _interval(ends) for name, ends in run.report[seen]["metrics"].items()}
    if base is None or run is base:
        return Line(run.name, metrics, None)
    try:
        difference = paired_difference(run.rows, base.rows, compared, resamples, seed)
    except ArtefactError as error:
        raise ArtefactError(f"{plain(run.name)} against {plain(base.name)}: {error}") from error
    return Line(run.name, metrics, difference)


def _interval(ends: Mapping[str, float | None]) -> Interval:
    """Back from JSON, where an unknown end is null."""
    return Interval(**{key: float("nan") if end is None else end for key, end in ends.items()})


def _common_protocol(runs: Sequence[Run]) -> Mapping[str, Any]:
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ArtefactError(f"a leaderboard needs runs of different names, not {names}")
    first = _comparable(runs[0])
    for run in runs[1:]:
        for key, value in _comparable(run).items():
            if value != first[key]:
                raise ArtefactError(
                    f"{plain(run.name)} and {plain(names[0])} do not compare: {key} = {value} and "
                    f"{first[key]}"
                )
    protocol: Mapping[str, Any] = runs[0].report["protocol"]
    return protocol


def _comparable(run: Run) -> dict[str, Any]:
    protocol = run.report["protocol"]
    same = {key: protocol[key] for key in ("split", "seen", "candidates")}
    sizes = {key: run.report[key] for key in ("rows", "users", "items")}
    return {
        **same,
        "cutoffs": sorted(protocol["cutoffs"]),
        "data hash": protocol["hashes"].get("data"),
        **sizes,
    }


def _title(board: Leaderboard) -> str:
    title = f"{board.split}: {board.n_rows:,} rows of {board.n_users:,} users, {board.candidates}"
    if board.seen is None:
        return plain(title)
    policy = {"keep": "history kept", "remove": "history removed"}[board.seen]
    return plain(f'{title}, {policy} (seen = "{board.seen}")')


def _caption(board: Leaderboard) -> str:
    over = "rows" if board.seen is not None else "users"
    caption = f"mean over {over} [95 % interval, bootstrap over users]"
    if board.baseline is None:
        return caption
    return f"{caption}; difference: {board.compared} minus that of {_label(board.baseline)}, paired"


def _headings(board: Leaderboard) -> list[str]:
    names = [name.upper() for name in board.metrics]
    return [
        "run",
        *names,
        *([f"{board.compared.upper()} difference"] if board.baseline is not None else []),
    ]


def _cells(board: Leaderboard, separator: str) -> list[list[str]]:
    grid = []
    for line in board.lines:
        cells = [_label(line.name)]
        cells += [_show(line.metrics[name], separator, "") for name in board.metrics]
        if board.baseline is not None:
            cells.append(_show_difference(line.difference, separator))
        grid.append(cells)
    return grid


def _label(name: str) -> str:
    """A run's name as one harmless line of at most ``_NAME_CELLS`` terminal cells."""
    shown = plain(name)
    if cell_len(shown) <= _NAME_CELLS:
        return shown
    return set_cell_size(shown, _NAME_CELLS - 1).rstrip() + "…"


def _show_difference(difference: Difference | None, separator: str) -> str:
    if difference is None:
        return "baseline"
    return f"{_show(difference, separator, '+')}{separator}p = {difference.p:.2g}"


def _show(value: Interval | Difference, separator: str, sign: str) -> str:
    low, high = (_number(end, sign) for end in (value.low, value.high))
    return f"{_number(value.mean, sign)}{separator}[{low}, {high}]"


def _number(value: float, sign: str) -> str:
    """Four digits in the field's short form: .0782, +.0080."""
    return "?" if value != value else f"{value:{sign}.4f}".replace("0.", ".", 1)


def _fill(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))
