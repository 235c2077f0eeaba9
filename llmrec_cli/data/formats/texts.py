"""Titles and item fields as people read them: one line of text each, or nothing usable."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from itertools import takewhile
from typing import Final

from llmrec_cli.data.formats.checks import MISSING_WORDS
from llmrec_cli.data.schema import CATEGORY, DESCRIPTION, PRICE

# Titles: entities decoded once, white space collapsed, fragments refused.


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_INVISIBLE: Final = " \u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero-width, and the soft hyphen
_MARKUP: Final = re.compile(r"<[A-Za-z/!][^<>]*(?:>|$)")


def clean_title(raw: str | None) -> str | None:
    """Make a raw title presentable, or return None where nothing usable is left.

    HTML entities are decoded once (``&amp;amp;`` becomes ``&amp;``), control characters and lone
    surrogates count as white space, and white space is collapsed and trimmed, zero-width signs at
    the ends too.  Unusable: absent, empty, nothing but markup (a lone ``<span ...``), a page script
    (Amazon 2018 has titles that are JavaScript; they mention ``getTime``), or a word that tables
    have for no value, such as ``NULL``, ``N/A`` or ``nan``, spelt exactly so.
    """
    return None if raw is None else _tidy(_decode_entities(raw))


def _decode_entities(text: str) -> str:
    try:
        return html.unescape(text) if "&" in text else text
    except ValueError:  # the number of a character has more digits than Python reads
        return text


def _tidy(text: str) -> str | None:
    """``clean_title`` of a text whose entities are decoded."""
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    text = " ".join(text.split())
    if text and not text.isprintable():
        text = text.strip(_INVISIBLE)
    if not text or text in MISSING_WORDS or "getTime()" in text:
        return None
    if "<" in text and not _MARKUP.sub("", text).strip():
        return None
    return text


# Fields of an item, in whatever form a file has them.


_TAG: Final = re.compile(r"<[A-Za-z/!][^<>]*>")
_LONGEST_CATEGORY: Final = 60  # characters; Amazon 2018 has sentences about an item behind them
_DEAREST: Final = 1e15  # from here on float64 has no cents
_AMOUNT: Final = r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]{1,2})?)"
_PRICE: Final = re.compile(rf"([A-Za-z]{{0,3}}[$\u20ac\u00a3\u00a5\u20b9]?)\s?{_AMOUNT}")


def is_blank(raw: object) -> bool:
    """Whether a file has no value there, rather than one that cannot be used."""
    if isinstance(raw, list):
        return all(map(is_blank, raw))
    if isinstance(raw, float | Decimal):
        return math.isnan(raw)
    return raw is None or (isinstance(raw, str) and (not raw.strip() or raw in MISSING_WORDS))


def clean_category(raw: object) -> str | None:
    """The most specific category: the last name of a path, or a text as it is.

    Of several paths the longest counts, and the first of the longest.  A path ends before an entry
    that is no name: markup, a sentence, or more than 60 characters.

    Args:
        raw: a text, a list of names from general to specific, or a list of such lists.
    """
    if isinstance(raw, str):
        return clean_title(raw)
    if not isinstance(raw, list) or not raw:
        return None
    paths = [list(takewhile(bool, map(_clean_name, path))) for path in _list_paths(raw)]
    longest = max(paths, key=len)
    return longest[-1] if longest else None


def _list_paths(raw: list[object]) -> Iterator[list[object]]:
    """The paths of a list of paths, or the one that it is."""
    nested = [entry for entry in raw if isinstance(entry, list)]
    yield from nested or [raw]


def _clean_name(entry: object) -> str | None:
    """The name of a category; None: it is no name."""
    name = clean_title(entry) if isinstance(entry, str) else None
    if name is None or _TAG.search(name) or name.endswith(".") or len(name) > _LONGEST_CATEGORY:
        return None
    return name


def clean_price(raw: object) -> str | None:
    """A price with two decimals and without separators of thousands: ``"$1250.00"``.

    Args:
        raw: a number, or a text of an amount with a currency in front of it or without one.
    """
    if isinstance(raw, Decimal):  # of a parquet file
        raw = float(raw)
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return f"{raw:.2f}" if 0 <= raw < _DEAREST else None
    found = _PRICE.fullmatch(raw.strip()) if isinstance(raw, str) else None
    if found is None:
        return None
    currency, amount = found.groups()
    whole, _, cents = amount.replace(",", "").partition(".")
    return f"{currency}{whole}.{cents:0<2}"


def in_dollars(raw: object) -> object:
    """A price of Amazon's files, whose numbers are US dollars; texts name their currency."""
    number = isinstance(raw, int | float) and not isinstance(raw, bool)
    found = clean_price(raw) if number else None
    return raw if found is None else f"${found}"


def clean_description(raw: object) -> str | None:
    """A description on one line, without tags.

    Args:
        raw: a text, or a list of its paragraphs.
    """
    parts = raw if isinstance(raw, list) else [raw]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) + parts.count(None) < len(parts):
        return None
    text = _decode_entities(" ".join(texts))
    return _tidy(_TAG.sub(" ", text))


_CLEAN: Final[Mapping[str, Callable[[object], str | None]]] = {
    CATEGORY: clean_category,
    PRICE: clean_price,
    DESCRIPTION: clean_description,
}


def clean_field(name: str, raw: object) -> str | None:
    """A field as prompts can show it, or None where nothing usable is left.

    Args:
        name: of ``schema.ITEM_FIELDS``, but the brand, which is cleaned as a title.
    """
    return _CLEAN[name](raw)
