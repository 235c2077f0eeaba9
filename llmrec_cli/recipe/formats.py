"""The formats of sources: one value each, which says what it uses of `[data]` and what it has.

Whoever needs to know asks a property of the value: no name of a format is compared.  No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_EVERY: Final = (
    *("format", "split", "history", "min_history", "few_shot_users", "sample"),
    *("engine", "memory", "spark"),
)
_LINES: Final = ("on_bad_line", "bad_line_limit")
_NAMES: Final = ("metadata", "untitled", "identity")
_TIMES: Final = ("start", "end")
_REVIEWS: Final = (*_NAMES, *_LINES, *_TIMES, "duplicates", "k_core", "min_rating")
_PARTS: Final = ("splits.train", "splits.test")


@dataclass(frozen=True, slots=True)
class Format:
    """A format of the sources.

    Attributes:
        name: ``data.format``.
        needs: keys of ``[data]`` that must name files; dotted where a table holds them.
        uses: further keys that play a part, beside those that every format uses; the name of a
            table stands for all of its keys.
        reader: the module of ``data/readers`` that reads it.
        pre_split: the source comes split already, and is not cleaned.
        has_clock: the source has times that compare across users.
        names: what a title is taken from where no metadata file is named; empty: from nothing.
        takes_folders: a source may be a folder of files.
        items_are_tokens: items are token sequences (semantic IDs), and need no titles.
        lists_catalogue: metadata files list the catalogue, rather than a whole shop.
        brings_rejected: rows come in pairs, each with its rejected answer, and are split by user.
    """

    name: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    reader: str
    pre_split: bool = False
    has_clock: bool = True
    names: str = ""
    takes_folders: bool = False
    items_are_tokens: bool = False
    lists_catalogue: bool = False
    brings_rejected: bool = False

    def uses_key(self, key: str) -> bool:
        """Whether a (dotted) key of ``[data]`` plays a part in this format."""
        table = key.partition(".")[0]
        return bool({key, table} & {*self.needs, *self.uses, *_EVERY})

    @property
    def names_columns(self) -> bool:
        """Whether a recipe says what the columns of the files are called."""
        return self.uses_key("columns")

    def compares_times(self, time_column: object) -> bool:
        """Whether a source has times that compare across users, rather than an order alone.

        Args:
            time_column: the column that the recipe names; false or None: there is none.
        """
        return self.has_clock and (bool(time_column) or not self.names_columns)


_FORMATS: Final = (
    Format("amazon2014", ("reviews",), _REVIEWS, "amazon2014"),
    Format("amazon2018", ("reviews",), _REVIEWS, "amazon2018"),
    Format("amazon2023", ("reviews",), _REVIEWS, "amazon2023"),
    Format("ratings2014", ("reviews",), _REVIEWS, "ratings"),
    Format("ratings2018", ("reviews",), _REVIEWS, "ratings"),
    Format("ratings2023", ("reviews",), _REVIEWS, "ratings"),
    Format("split2023", _PARTS, ("splits.valid", *_NAMES), "split2023", pre_split=True),
    Format(
        "interactions", ("reviews",), (*_REVIEWS, "columns"), "interactions", takes_folders=True
    ),
    Format(
        "msl-windows",
        (*_PARTS, "metadata"),
        ("splits.valid", *_NAMES),
        "windows",
        pre_split=True,
        lists_catalogue=True,
    ),
    Format(
        "semantic-ids",
        ("reviews", "index"),
        ("metadata", "duplicates", "k_core", "identity"),
        "semantic_ids",
        has_clock=False,
        names="tokens",
        items_are_tokens=True,
    ),
    Format(
        "rank-pairs",
        _PARTS,
        ("splits.preference", "splits.valid"),
        "rank_pairs",
        pre_split=True,
        has_clock=False,
        names="the prompts",
        brings_rejected=True,
    ),
)

FORMATS: Final[Mapping[str, Format]] = {form.name: form for form in _FORMATS}


def users_of(key: str) -> list[str]:
    """Names of the formats in which a (dotted) key of ``[data]`` plays a part."""
    return [form.name for form in _FORMATS if form.uses_key(key)]


def possible_splits(form: Format, *, clock: bool) -> tuple[str, ...]:
    """The values of ``data.split`` that a source can be split by.

    Args:
        clock: whether the source, as the recipe reads it, has times that compare across users.
    """
    if form.pre_split:
        return ("given",)
    return ("leave-one-out", *(("global-time",) if clock else ()), "few-shot")


def one_of(words: Sequence[str]) -> str:
    """``"a", "b" or "c"``."""
    quoted = [f'"{word}"' for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
