"""Tables for documents: Markdown and LaTeX.  Names come from elsewhere and are escaped."""

from __future__ import annotations

import re

from llmrec_cli.report.comparison import Comparison
from llmrec_cli.report.tables.sheets import Cell, Sheet, tabulate_comparison
from llmrec_cli.report.text import build_markdown_table, markdown

_FIGURE = re.compile(r"\[?[+-]?[\d.?, %+-]*\]?")  # nothing to escape, and better read as it is
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


def to_markdown(comparison: Comparison) -> str:
    """All tables of a comparison in GitHub's Markdown."""
    parts = [_sheet_markdown(sheet) for sheet in tabulate_comparison(comparison)]
    notes = [f"- {markdown(note)}" for note in comparison.notes]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def to_latex(comparison: Comparison) -> str:
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
    return text if _FIGURE.fullmatch(text) else markdown(text)


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
