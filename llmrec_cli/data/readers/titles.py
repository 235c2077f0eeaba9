"""Titles as people read them: entities decoded once, white space collapsed, fragments refused."""

from __future__ import annotations

import html
import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# How tables write no value: what pandas reads as none by default, and the \N of databases.
_MISSING: Final = frozenset(r"nan NaN -nan -NaN None NULL null NA N/A n/a <NA> #N/A #NA \N".split())
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
    if raw is None:
        return None
    text = html.unescape(raw) if "&" in raw else raw
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    text = " ".join(text.split())
    if text and not text.isprintable():
        text = text.strip(_INVISIBLE)
    if not text or text in _MISSING or "getTime()" in text:
        return None
    if "<" in text and not _MARKUP.sub("", text).strip():
        return None
    return text
