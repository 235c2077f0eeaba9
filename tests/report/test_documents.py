"""A comparison in documents and for other programs: it reads back, and names stay text."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt

from llmrec_cli.evaluation.comparison import Comparison
from llmrec_cli.report.tables import (
    comparison_to_csv,
    comparison_to_json,
    comparison_to_latex,
    comparison_to_markdown,
    tabulate_comparison,
)
from tests.evaluation.sample_entries import compared, entry_of

NAMES = [
    "align-msl",
    "a|b|c",
    "<script>alert(1)</script>",
    "[x](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "`code` *bold* _it_ **b** ~~s~~",
    "\\input{/etc/passwd} \\end{table}",
    "100 % & 50 # $x^2$ {y} ~z",
    "https://evil.example",
    "=cmd|' /C calc'!A1",
    "+1",
    "a\nb\r\n| c |",
    'quote " and , comma',
    "&lt;b&gt;",
]


def with_name(name: str) -> Comparison:
    base = replace(entry_of("base", 1), name=name)
    return compared(base, entry_of("ours", 2, hit=0.5), baseline=name)


@pytest.mark.parametrize("name", NAMES)
def test_markdown_renders_as_tables_of_the_same_words(name: str) -> None:
    """Read by an independent parser with tables and raw HTML switched on."""
    found = with_name(name)
    tokens = MarkdownIt("commonmark").enable("table").parse(comparison_to_markdown(found))
    assert not [t for t in tokens if t.type in ("html_block", "code_block", "fence", "bullet_list")]
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {child.type for child in inline}
    assert kinds <= {"text", "html_inline", "strong_open", "strong_close", "softbreak"}
    assert {child.content for child in inline if child.type == "html_inline"} <= {"<br>"}
    cells = [t.children or [] for before, t in pairwise(tokens) if before.type == "td_open"]
    merged = ["".join(c.content if c.type == "text" else "\n" for c in cell) for cell in cells]
    wanted = [
        "\n".join(cell)
        for sheet in tabulate_comparison(found)
        for row in sheet.rows
        for cell in row
    ]
    assert merged == wanted


@pytest.mark.parametrize("name", NAMES)
def test_latex_holds_no_command_of_a_name(name: str) -> None:
    found = with_name(name)
    latex = comparison_to_latex(found)
    assert (
        latex.count(r"\begin{table}")
        == latex.count(r"\end{table}")
        == len(tabulate_comparison(found))
    )
    commands = set(re.findall(r"\\[A-Za-z]+", latex))
    assert not commands & {r"\input", r"\C"}
    bare = re.sub(r"\\[\\{}$&#%_]", "", latex)
    assert bare.count("{") == bare.count("}")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    for line, row in zip(
        [line for line in body if not line.startswith("entry ")],
        [row for sheet in tabulate_comparison(found) for row in sheet.rows],
        strict=True,
    ):
        assert len(re.split(r"(?<!\\)&", line)) == len(row)


@pytest.mark.parametrize("name", NAMES)
def test_csv_reads_back_with_all_digits(name: str) -> None:
    found = with_name(name)
    rows = list(csv.DictReader(io.StringIO(comparison_to_csv(found))))
    assert len(rows) == 2 * 2 * len(found.metrics)
    for row in rows:
        assert not row["entry"].startswith(("=", "+", "-", "@"))
        standing = found.standings[0 if row["entry"] != "ours" else 1]
        estimate = standing.metrics[row["seen"]][row["metric"]]  # type: ignore[index]  # a policy
        assert float(row["mean"]) == estimate.mean
        assert row["seed_low"] == ""
        contrast = standing.contrasts[row["seen"]].get(row["metric"])  # type: ignore[index]
        assert row["p_holm"] == ("" if contrast is None else str(contrast.p_holm))


@pytest.mark.parametrize("name", NAMES)
def test_json_keeps_names_as_they_are_and_unknown_ends_null(name: str) -> None:
    found = json.loads(json.dumps(comparison_to_json(with_name(name)), allow_nan=False))
    assert found["standings"][0]["name"] == found["baseline"] == name
    assert found["standings"][0]["contrasts"] == {"keep": {}, "remove": {}}
    assert found["standings"][1]["metrics"]["keep"]["hr@1"]["seed_low"] is None
    assert found["standings"][1]["contrasts"]["keep"]["hr@1"]["p"] <= 1
