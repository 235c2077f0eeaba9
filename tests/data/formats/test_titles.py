"""Clean titles, and which ones are unusable."""

from __future__ import annotations

import pytest

from llmrec_cli.data.formats.texts import clean_title


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" Maggiano&#39;s  Gift\tCard ", "Maggiano's Gift Card"),
        ("Rhythm &amp; Blues", "Rhythm & Blues"),
        ("&amp;amp;", "&amp;"),  # once, not until stable
        ("a\u2028b\u00a0c\x00d\x1b[31m", "a b c d [31m"),
        ("Nan", "Nan"),
        ("None of This Is True", "None of This Is True"),
        ("?", "?"),
        ("÷", "÷"),
        ("I <3 You", "I <3 You"),
        ("a < b > c", "a < b > c"),
        ("<b>Bold</b> Title", "<b>Bold</b> Title"),
        ("5555991584", "5555991584"),
        ("half \ud83d emoji", "half emoji"),
        ("NULL Island", "NULL Island"),
        ("Null", "Null"),
        ("\u200b\ufeffTitle\u00ad \u200d", "Title"),
        (
            "\u0645\u06cc\u200c\u062e\u0648",
            "\u0645\u06cc\u200c\u062e\u0648",
        ),  # it joins letters there
    ],
)
def test_usable_titles(raw: str, clean: str) -> None:
    assert clean_title(raw) == clean


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "",
        " \t\n",
        "&nbsp;",
        '<span class="a-size-medium a-color-secondary',
        "nan",
        " NaN ",
        "None",
        *("NULL", " NULL ", "null", "N/A", "n/a", "NA", "\\N", "<NA>", "#N/A", "\u200bNULL\ufeff"),
        *("\u200b", "\u200c \u200d", "\ufeff", "\u2060\u00ad", " \u200b\t"),
        "<span>",
        "<span></span>",
        "<!-- -->",
        "&lt;span&gt;",
        "var aPageStart = (new Date()).getTime();",
    ],
)
def test_unusable_titles(raw: str | None) -> None:
    assert clean_title(raw) is None
