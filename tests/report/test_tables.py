"""A comparison on a terminal and as lines: nothing lost, nothing interpreted."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from llmrec_cli.evaluation.comparison import Comparison, Cost, Entry
from llmrec_cli.report.formatting import (
    format_memory,
    format_p,
    format_thousands,
    strip_zero,
)
from llmrec_cli.report.page.comparison import describe_comparison
from llmrec_cli.report.tables import (
    comparison_to_lines,
    comparison_to_tables,
    tabulate_comparison,
    tabulate_quality,
)
from llmrec_cli.utils.text import format_seconds
from tests.evaluation.sample_entries import compared, entry_of, predictions_of

COST = Cost(
    train_seconds=38.24,
    valid_seconds=2.0,
    lineage_seconds=77.5,
    device="cpu",
    processes=2,
    device_seconds=155.0,
    tokens=1_240_000,
    peak_bytes=812 << 20,
    eval_seconds=4000.0,
    eval_peak_bytes=900 << 20,
    milliseconds_per_row=8.8,
)


def two(**changes: Any) -> Comparison:
    ours = replace(entry_of("align-msl", 2, hit=0.7), cost=COST)
    return compared(entry_of("baseline-pop", 1), ours, baseline="baseline-pop", **changes)


def text(comparison: Comparison, *, full: bool = True) -> str:
    return "\n".join(comparison_to_lines(comparison, full=full))


def rendered(comparison: Comparison, columns: int = 120) -> str:
    out = io.StringIO()
    console = Console(file=out, width=columns, force_terminal=True, color_system=None)
    console.print(Group(*comparison_to_tables(comparison)))
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def test_the_tables_show_the_figures_and_name_the_policy() -> None:
    found = two(headline="remove")
    lines = comparison_to_lines(found)
    title = 'whole catalogue, history removed (seen = "remove")'
    assert lines[0] == f"test: 40 rows of 14 users, {title}"
    ours = found.standings[1]
    estimate, contrast = ours.metrics["remove"]["ndcg@5"], ours.contrasts["remove"]["ndcg@5"]
    mean, low, high = (f"{x:.4f}"[1:] for x in (estimate.mean, estimate.low, estimate.high))
    assert f"{mean} [{low}, {high}]" in text(found)
    shown = f"+{contrast.mean:.4f} [+{contrast.low:.4f}, +{contrast.high:.4f}]".replace("+0", "+")
    line = next(line for line in lines if shown in line)
    assert line.startswith("align-msl ")
    assert line.endswith(" yes")
    assert f"{contrast.detectable:.4f}"[1:] in line
    assert any(re.fullmatch(r"baseline-pop .* -  +-  +-  +-  +baseline", line) for line in lines)
    assert 'seen = "remove"' in rendered(found)


def test_rows_that_differ_stand_beside_each_entry() -> None:
    found = compared(entry_of("few", rows=10), entry_of("many", rows=40))
    sheet = tabulate_quality(found)
    assert sheet.title.startswith("test: rows that differ, whole catalogue")
    assert sheet.headings[:3] == ("entry", "rows", "users")
    assert [row[1] for row in sheet.rows] == [("10",), ("40",)]
    assert "2 ways to recommend, on test rows that differ. 1 of them" in describe_comparison(found)


def test_where_nothing_varies_no_difference_is_detectable() -> None:
    """Two runs of the same lists: users do not differ, so no standard error and no power."""
    found = compared(entry_of("base", 1), entry_of("same", 1), baseline="base")
    assert found.standings[1].contrasts["keep"]["ndcg@5"].detectable == 0
    (line,) = (line for line in comparison_to_lines(found) if re.match(r"same .* yes$", line))
    assert re.search(r" \+\.0000 \[\+\.0000, \+\.0000\] +1 +1 +- +yes$", line)


def test_a_reason_stands_in_the_row_of_its_entry() -> None:
    other = entry_of("other", 2, decoder={"search": "beam", "beams": 20})
    found = compared(entry_of("base", 1), other, baseline="base")
    line = next(line for line in comparison_to_lines(found) if "beam of 20" in line)
    assert re.fullmatch(r"other .* -  +-  +-  +-  +search: beam of 20, baseline exact", line)


def test_ndcg_at_1_is_hr_at_1_and_shown_once() -> None:
    assert "HR@1 " in text(two())
    assert "NDCG@1 " not in text(two())
    assert "ndcg@1" in two().metrics


def test_seeds_have_a_table_where_there_are_several() -> None:
    base, ours = entry_of("base", 1, 2), entry_of("ours", 1, 2, 3)
    shown = text(compared(base, ours, baseline="base"))
    assert "over seeds" in shown
    assert "1, 2, 3" in shown
    assert "Student's t" in shown
    assert "over seeds" not in text(two())


def test_the_short_form_shows_the_figures_only() -> None:
    short = text(two(), full=False)
    assert "cost" not in short
    assert "what is recommended" not in short
    assert text(two()).startswith(short[:1000])


def test_costs_are_told_in_words() -> None:
    shown = text(two())
    for word in ("38.2 s", "1 min 18 s", "2 min 35 s", "1.24 M", "812 MiB", "1 h 7 min", "8.8"):
        assert word in shown
    assert "2 x cpu" in shown


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_seconds(0.0412), "0.0412 s"),
        (format_seconds(59.9), "59.9 s"),
        (format_seconds(59.99), "60 s"),
        (format_seconds(3599.6), "1 h 0 min"),
        (format_thousands(812), "812"),
        (format_thousands(58_340), "58.3 k"),
        (format_thousands(3.5e9), "3.5 G"),
        (format_memory(3.2 * 2**30), "3.2 GiB"),
        (format_p(0.0004997), ".0005"),
        (format_p(1.0), "1"),
        (format_p(0.25), ".25"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown == expected


def test_unknown_ends_are_question_marks() -> None:
    frame = predictions_of(1, n_users=1)
    lonely = entry_of("one")
    lonely = replace(lonely, evaluations=(replace(lonely.evaluations[0], predictions=frame),))
    assert "[?, ?]" in text(compared(lonely))


def test_notes_stand_at_the_end() -> None:
    found = replace(two(), notes=("a note", "an \x1b[31mother\nnote"))
    assert comparison_to_lines(found)[-2:] == ["note: a note", "note: an other note"]
    assert "note: an other note" in rendered(found)


HOSTILE = [
    "[/]",
    "[bold red]x[/bold red]",
    "\x1b[2J\x1b]0;title\x07x",
    "=cmd|' /C calc'!A1",
    "\u202egnp.exe\u2066",
    "line\nbreak\u2028x",
    "nul\x00",
    "源氏物語" * 30,
    "\U0001f600" * 10_000,
    "",
]


def hostile(name: str) -> tuple[Entry, Entry]:
    return replace(entry_of("base", 1), name=name), entry_of("ours", 2)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_never_break_a_table(name: str) -> None:
    found = compared(*hostile(name), baseline=name)
    for shown in (text(found), rendered(found), rendered(found, columns=40)):
        assert not set(shown) & set("\x1b\x00\x07\u202e\u2066\u2028\r")
    lines = text(found).splitlines()
    assert len(lines) == sum(len(sheet.rows) + 4 for sheet in tabulate_comparison(found)) - 1
    assert max(map(len, lines)) < 400
    if name.startswith("["):
        assert name in rendered(found)


@pytest.mark.parametrize("columns", [80, 100, 140])
@pytest.mark.parametrize("name", ["pop", "an-experiment-of-long-name/align-msl-ats"])
def test_a_narrow_terminal_loses_no_digit(columns: int, name: str) -> None:
    base = replace(entry_of("base", 1), name=name)
    found = compared(base, entry_of("ours", 2, hit=0.7), baseline=name)
    shown = rendered(found, columns)
    assert "…" not in shown
    wanted, seen = (sorted(re.findall(r"[+-]?[01]?\.\d{4}", x)) for x in (text(found), shown))
    assert wanted == seen
    assert len(wanted) == 2 * 4 * 3 + (2 * 3 + 4) + 2 * 3  # and one p of four digits
    assert max(map(len, shown.splitlines())) <= columns


def test_one_and_minus_keep_their_digits() -> None:
    first, last = entry_of("first", 1, hit=1.0), entry_of("last", 2)
    shown = text(compared(first, last, baseline="first"))
    assert "1.0000 [1.0000, 1.0000]" in shown
    assert re.search(r"-\.\d{4} \[-\.\d{4}, -\.\d{4}\]", shown)


@pytest.mark.parametrize(
    ("number", "short"),
    [("0.0782", ".0782"), ("+0.0080", "+.0080"), ("-0.5", "-.5"), ("10.5000", "10.5000")],
)
def test_only_a_leading_zero_goes(number: str, short: str) -> None:
    assert strip_zero(number) == short


def test_columns_line_up_with_wide_letters() -> None:
    wide = replace(entry_of("x"), name="源氏")
    lines = comparison_to_lines(compared(wide, entry_of("ours", 2)))
    starts = {cell_len(line[: line.index(" .")]) for line in lines[2:4]}
    assert len(starts) == 1


def test_short_lists_are_counted() -> None:
    frame = predictions_of(1)
    short = entry_of("short")
    frame["ranked"] = [ranked[: 3 + at % 2] for at, ranked in enumerate(frame["ranked"])]
    short = replace(short, evaluations=(replace(short.evaluations[0], predictions=frame),))
    found = compared(short)
    assert found.standings[0].lists["keep"]["short"] == 40
    assert found.notes == ("short: 40 of 40 lists end before 5 entries; past its end is a miss",)
    assert np.isfinite(found.standings[0].metrics["keep"]["hr@5"].mean)
