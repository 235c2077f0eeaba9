"""Hostile titles become one harmless line; honest ones stay as they are."""

from __future__ import annotations

import unicodedata

import pytest

from llmrec_cli.utils.text import clean_line

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[Hcleared",
    "\x1b]0;new window title\x07",
    "\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJmIC8=\x07clipboard",
    "\x1bPdevice\x1b\\",
    "\x1b]never closed",
    "\x1b",
    "\x9b31mC1",
    "\x9d0;title\x9c",
    "a\rb\nc\td",
    "a\u2028b\u2029c\x85d",
    "\u202egnp.exe",
    "\u2066isolate\u2069",
    "\u200e\u200f\u061c marks",
    "zero\u200bwidth\ufeff\u2060\u00ad",
    "tag\U000e0041\U000e007f",
    "nul\x00 bell\x07 back\x08 delete\x7f",
    "lone \ud800 surrogate",
    "[/]",
    "[bold]not bold[/bold]",
    "[link=https://example.org]x[/link]",
    "=cmd|' /C calc'!A1",
    "<script>alert(1)</script>",
    "](javascript:alert(1))",
    "\U0001f600" * 10_000,
    "\x1b]" * 5_000,
    "\x9d" * 50_000,
    "\x1b[" + "1;" * 50_000,
    " " * 50_000 + "x",
]


@pytest.mark.parametrize("title", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_a_terminal_obeys_is_left(title: str) -> None:
    shown = clean_line(title)
    assert {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    assert shown == " ".join(shown.split())
    shown.encode()
    assert clean_line(shown) == shown


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("before\x1b]never closed", "beforenever closed"),
        ("\x9b31mC1", "C1"),
        ("a\r\nb\tc", "a b c"),
        ("\u202egnp.exe", "gnp.exe"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
    ],
)
def test_the_words_stay(title: str, shown: str) -> None:
    assert clean_line(title) == shown


@pytest.mark.parametrize(
    "title",
    [
        "[/]",
        "[bold]Dune[/bold]",
        "=SUM(A1)",
        "<b>Dune</b>",
        "Пиковая дама",
        "源氏物語",
        "שלום",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian needs its non-joiner
        "family \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "e\u0301tude",
    ],
)
def test_honest_titles_are_untouched(title: str) -> None:
    assert clean_line(title) == title
