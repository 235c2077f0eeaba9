"""A comparison as tables: on a terminal, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from llmrec_cli.evaluation.comparison import (
    FIGURE_COLUMNS,
    Comparison,
    Contrast,
    Cost,
    Estimate,
    Standing,
)
from llmrec_cli.evaluation.predictions import to_jsonable
from llmrec_cli.report.formatting import (
    NAME,
    NONE,
    POLICY_NAMES,
    cut_text,
    format_detectable,
    format_ends,
    format_figure,
    format_memory,
    format_p,
    format_thousands,
)
from llmrec_cli.utils.text import (
    build_markdown_table,
    clean_line,
    escape_markdown,
    format_seconds,
)

# The cells of all tables as text, for every format.
#
# A cell is a list of words.  A narrow format may put them on separate lines.


Cell = tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        rows: a cell per heading; the first one is the entry's name.
        prose: numbers of the columns that hold sentences rather than figures.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    prose: frozenset[int] = frozenset()


def tabulate_comparison(comparison: Comparison, *, full: bool = True) -> list[Sheet]:
    """The tables of a comparison, under the headline policy.

    Args:
        full: with what the lists look like, and what they cost.
    """
    found = [tabulate_quality(comparison), tabulate_contrasts(comparison)]
    if any(len(standing.seeds) > 1 for standing in comparison.standings):
        found.append(tabulate_seeds(comparison))
    if full and any(standing.auc for standing in comparison.standings):
        found.append(tabulate_auc(comparison))
    if full and comparison.headline != "pairs":
        found.append(tabulate_lists(comparison))
    return [*found, tabulate_costs(comparison)] if full else found


def tabulate_quality(comparison: Comparison) -> Sheet:
    """Every metric with its interval over users."""
    headline = comparison.headline
    equal = comparison.has_equal_rows
    sizes = f"{comparison.n_rows:,} rows of {comparison.n_users:,} users"
    title = f"{comparison.split}: {sizes if equal else 'rows that differ'}, "
    title += comparison.candidates
    if headline != "pairs":
        title += f', {POLICY_NAMES[headline]} (seen = "{headline}")'
    names = [name for name in comparison.metrics if name != "ndcg@1"]  # which is hr@1
    rows = []
    for standing in comparison.standings:
        estimates = [standing.metrics[headline][name] for name in names]
        size = () if equal else ((f"{standing.n_rows:,}",), (f"{standing.n_users:,}",))
        rows.append((_name_cell(standing), *size, *map(_estimate_cell, estimates)))
    over = "users" if headline == "pairs" else "rows"
    caption = f"mean over {over} [95 % interval, bootstrap over users]"
    headings = ("entry", *(() if equal else ("rows", "users")), *(name.upper() for name in names))
    return Sheet(clean_line(title), headings, tuple(rows), caption)


def tabulate_contrasts(comparison: Comparison) -> Sheet:
    """The compared metric against the baseline, and whether each entry is comparable with it."""
    metric, headline = comparison.compared, comparison.headline
    rows = []
    for standing in comparison.standings:
        contrast = standing.contrasts[headline].get(metric)
        own = standing.metrics[headline][metric]
        rows.append(
            (
                _name_cell(standing),
                _estimate_cell(own),
                *_contrast_cells(contrast),
                _comparable_cell(standing, comparison),
            )
        )
    if comparison.baseline is None:
        caption = "no baseline: name one with --baseline; comparable: with the first entry"
    else:
        base = cut_text(comparison.baseline, NAME)
        caption = (
            f"difference: {metric} minus that of {base} over the same rows "
            "[95 % interval, users drawn]; p: sign-flip test over users; Holm: p corrected for all "
            "entries compared; detectable: the smallest true difference found with 80 % power at "
            "the 5 % level"
        )
    headings = ("entry", metric.upper(), "difference", "p", "p (Holm)", "detectable", "comparable")
    return Sheet(
        f"{metric.upper()} against the baseline", headings, tuple(rows), caption, frozenset({6})
    )


def tabulate_seeds(comparison: Comparison) -> Sheet:
    """The second level: how much seeds differ, for entries that have several."""
    metric, headline = comparison.compared, comparison.headline
    rows = []
    for standing in comparison.standings:
        if len(standing.seeds) < 2:
            continue
        own, contrast = standing.metrics[headline][metric], standing.contrasts[headline].get(metric)
        rows.append(
            (
                _name_cell(standing),
                (", ".join(map(str, standing.seeds)),),
                _interval_cell(own.mean, own.seed_low, own.seed_high),
                (", ".join(map(format_figure, own.by_seed)),),
                _interval_cell(contrast.mean, contrast.seed_low, contrast.seed_high, "+")
                if contrast
                else (NONE,),
            )
        )
    headings = ("entry", "seeds", metric.upper(), "each seed", "difference")
    caption = "mean over seeds [95 % interval, seeds drawn: Student's t]"
    return Sheet("over seeds", headings, tuple(rows), caption, frozenset({1, 3}))


def tabulate_auc(comparison: Comparison) -> Sheet:
    """The generate task's AUC, of the entries that have one."""
    rows = []
    for standing in comparison.standings:
        if standing.auc:
            found = standing.auc["metrics"].values()
            cells = [_interval_cell(m["mean"], m["low"], m["high"]) for m in found]
            rows.append((_name_cell(standing), *cells))
    return Sheet(
        "each target beside one item that its user does not own",
        ("entry", "AUC_PAIRED", "AUC_POOLED"),
        tuple(rows),
        "paired within users, and pooled over them [95 % interval, bootstrap over users]",
    )


def tabulate_lists(comparison: Comparison) -> Sheet:
    """What the recommended lists look like as a whole."""
    rows = []
    for standing in comparison.standings:
        found = standing.lists[comparison.headline]
        error = standing.beam_error
        cells = [
            format_figure(found["coverage"]),
            format_figure(found["gini"]),
            f"{found['popularity']:,.1f}",
            format_figure(found["long_tail"]),
            f"{found['short']:,.0f}",
            NONE if error is None else format_figure(error),
        ]
        rows.append((_name_cell(standing), *((cell,) for cell in cells)))
    return Sheet(
        "what is recommended",
        ("entry", "coverage", "Gini", "popularity", "long tail", "short lists", "beam error"),
        tuple(rows),
        "coverage: share of the catalogue in any list; popularity: mean training interactions of a "
        "recommended entry; long tail: share outside the most popular fifth; beam error: share of "
        "lists that are not the exact ones",
    )


def tabulate_costs(comparison: Comparison) -> Sheet:
    """What every entry cost."""
    rows = [
        (_name_cell(standing), *_cost_cells(standing.cost)) for standing in comparison.standings
    ]
    return Sheet(
        "cost",
        (
            "entry",
            "training",
            "with parents",
            "device time",
            "tokens",
            "peak memory",
            "evaluation",
            "ms per row",
            "device",
        ),
        tuple(rows),
        "training: its updates, validation apart; with parents: all stages it stands on; tokens: "
        "padded ones that went through the model; ms per row: decoding; "
        f"{NONE}: not recorded",
        frozenset({8}),
    )


def _cost_cells(cost: Cost) -> tuple[Cell, ...]:
    device = cost.device if cost.processes in (None, 1) else f"{cost.processes} x {cost.device}"
    cells = [
        _show_known(cost.train_seconds, format_seconds),
        _show_known(cost.lineage_seconds, format_seconds),
        _show_known(cost.device_seconds, format_seconds),
        _show_known(cost.tokens, format_thousands),
        _show_known(cost.peak_bytes, format_memory),
        _show_known(cost.eval_seconds, format_seconds),
        _show_known(cost.milliseconds_per_row, lambda value: f"{value:.3g}"),
        NONE if device is None else clean_line(device),
    ]
    return tuple((cell,) for cell in cells)


def _show_known(value: float | None, show: Callable[[float], str]) -> str:
    return NONE if value is None else show(value)


def _name_cell(standing: Standing) -> Cell:
    return (cut_text(standing.name, NAME),)


def _interval_cell(
    mean: float | None, low: float | None, high: float | None, sign: str = ""
) -> Cell:
    return format_figure(mean, sign), format_ends(low, high, sign)


def _estimate_cell(estimate: Estimate) -> Cell:
    return _interval_cell(estimate.mean, estimate.low, estimate.high)


def _contrast_cells(contrast: Contrast | None) -> tuple[Cell, Cell, Cell, Cell]:
    if contrast is None:
        return (NONE,), (NONE,), (NONE,), (NONE,)
    return (
        _interval_cell(contrast.mean, contrast.low, contrast.high, "+"),
        (format_p(contrast.p),),
        (format_p(contrast.p_holm),),
        (format_detectable(contrast.detectable),),
    )


def _comparable_cell(standing: Standing, comparison: Comparison) -> Cell:
    if standing.name == comparison.baseline:
        return ("baseline",)
    return (clean_line(standing.why_not) if standing.why_not else "yes",)


# Tables for a terminal, and as plain aligned lines for logs and pipes.


_NAME_CELLS = 12  # names are folded to this width where there is no room for them
_PROSE_CELLS = 14  # a column of sentences is at least as wide as this


def comparison_to_tables(comparison: Comparison, *, full: bool = True) -> list[RenderableType]:
    """A comparison for a terminal; names are shown, never interpreted."""
    found: list[RenderableType] = []
    for sheet in tabulate_comparison(comparison, full=full):
        found += [FittedTable(sheet), Text()]
    notes = [Text(note) for note in _note_lines(comparison)]
    return [*found, *notes] if notes else found[:-1]


def comparison_to_lines(comparison: Comparison, *, full: bool = True) -> list[str]:
    """A comparison as plain lines, a blank one after each table."""
    blocks = [[*sheet_lines(sheet), ""] for sheet in tabulate_comparison(comparison, full=full)]
    lines = [line for block in blocks for line in block]
    notes = _note_lines(comparison)
    return lines + notes if notes else lines[:-1]


def _note_lines(comparison: Comparison) -> list[str]:
    return [f"note: {clean_line(note)}" for note in comparison.notes]


@dataclass(frozen=True)
class FittedTable:
    """A table that asks for the terminal's width when it is shown."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sheet = self.sheet
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place, width in enumerate(column_widths(sheet, options.max_width)):
            left = place == 0 or place in sheet.prose
            table.add_column(
                Text(sheet.headings[place]),
                justify="left" if left else "right",
                width=width,
                overflow="fold",
            )
        for row in sheet.rows:
            table.add_row(*(Text("\n".join(cell)) for cell in row))
        yield Text(sheet.title, style="bold")
        yield table
        yield Text(sheet.caption, style="italic")


def column_widths(sheet: Sheet, room: int) -> list[int]:
    """Cells of each column so that a table fits into ``room`` cells, if that can be.

    A number may go to its own line, but never loses digits.  Sentences are folded first, then
    intervals go to lines of their own, then names are folded.
    """
    columns = list(zip(((heading,) for heading in sheet.headings), *sheet.rows, strict=True))
    widths = [max(map(cell_len, chain(*column))) for column in columns]
    least = [max(map(cell_len, " ".join(chain(*column)).split())) for column in columns]
    free = {0: min(widths[0], _NAME_CELLS)}
    free |= {place: min(widths[place], _PROSE_CELLS) for place in sheet.prose}
    figures = [place for place in range(len(columns)) if place not in free]
    natural, spare = list(widths), room - len(columns) * 2 - 1  # padding and edges
    for places in (sorted(sheet.prose), figures, [0]):
        if sum(widths) > spare:
            for place in places:
                widths[place] = free.get(place, least[place])
    for place in (*sorted(sheet.prose), 0):  # what is left over is given back
        widths[place] += max(0, min(natural[place] - widths[place], spare - sum(widths)))
    return widths


def sheet_lines(sheet: Sheet) -> list[str]:
    """A table as aligned lines: title, headings, rows, caption."""
    grid = [list(sheet.headings), *([" ".join(cell) for cell in row] for row in sheet.rows)]
    widths = [max(map(cell_len, column)) for column in zip(*grid, strict=True)]
    rows = ["  ".join(_pad_cell(c, w) for c, w in zip(row, widths, strict=True)) for row in grid]
    return [sheet.title, *(row.rstrip() for row in rows), sheet.caption]


def _pad_cell(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))


# Tables for documents: Markdown and LaTeX.  Names come from elsewhere and are escaped.


_FIGURE = re.compile(r"\[?[+-]?[\d.?, %+-]*\]?")  # nothing to escape; more legible as it is
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after \\ a bracket would be its argument
    "]": "{]}",
}


def comparison_to_markdown(comparison: Comparison) -> str:
    """All tables of a comparison in GitHub's Markdown."""
    parts = [_sheet_markdown(sheet) for sheet in tabulate_comparison(comparison)]
    notes = [f"- {escape_markdown(note)}" for note in comparison.notes]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def comparison_to_latex(comparison: Comparison) -> str:
    """All tables of a comparison for LaTeX, to ``\\input``; needs the package booktabs."""
    begun = "% needs \\usepackage{booktabs,textcomp} and \\usepackage[T1]{fontenc}"
    return (
        "\n\n".join([begun, *(_sheet_latex(sheet) for sheet in tabulate_comparison(comparison))])
        + "\n"
    )


def _sheet_markdown(sheet: Sheet) -> str:
    rows = [["<br>".join(map(_escape_markdown, cell)) for cell in row] for row in sheet.rows]
    headings = list(map(_escape_markdown, sheet.headings))
    table = build_markdown_table(headings, rows, {0, *sheet.prose})
    return f"**{_escape_markdown(sheet.title)}**\n\n{table}\n\n{_escape_markdown(sheet.caption)}"


def _escape_markdown(text: str) -> str:
    """Text that stays text; a figure as it is."""
    return text if _FIGURE.fullmatch(text) else escape_markdown(text)


def _sheet_latex(sheet: Sheet) -> str:
    columns = ["l" if at == 0 else _latex_column(at, sheet) for at in range(len(sheet.headings))]
    rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in sheet.rows]
    heading = " & ".join(map(_latex_text, sheet.headings)) + r" \\"
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex_text(sheet.title)}. {_latex_text(sheet.caption)}.}}",
            r"\centering\small",
            rf"\begin{{tabular}}{{{''.join(columns)}}}",
            r"\toprule",
            heading,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_column(at: int, sheet: Sheet) -> str:
    return r"p{0.2\textwidth}" if at in sheet.prose else "r"


def _latex_cell(cell: Cell) -> str:
    """A figure with its interval in small letters behind it."""
    first, *others = map(_latex_text, cell)
    return " ".join([first, *(rf"{{\scriptsize {other}}}" for other in others)])


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


# A comparison's figures for other programs: CSV with all digits, and JSON.


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """The values of ``evaluation.comparison`` for ``json.dump``; unknown ends are null."""
    found: dict[str, Any] = to_jsonable(asdict(comparison))
    return found


def comparison_to_csv(comparison: Comparison) -> str:
    """One line per entry, policy and metric; what is unknown is empty.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, FIGURE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in comparison.list_figures():
        writer.writerow({name: _guard_cell(value) for name, value in row.items()})
    return out.getvalue()


def _guard_cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
