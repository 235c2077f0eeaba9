"""The formats of sources: one value each, with the keys of `[data]` that it uses.

Whoever needs to know asks a property of the value: no name of a format is compared.  No torch.

Ours stand in one table.  A further format is one file of ``data/formats``, with its value as
``FORMAT`` beside its reader; it is found by its file name, and imported by name as tasks are.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_EVERY: Final = (
    *("format", "split", "history", "min_history", "few_shot_users", "sample"),
    *("engine", "memory", "spark"),
)
_LINES: Final = ("on_bad_line", "bad_line_limit")
_NAMES: Final = ("metadata", "untitled", "identity", "fields")
_TIMES: Final = ("start", "end")
REVIEW_KEYS: Final = (*_NAMES, *_LINES, *_TIMES, "duplicates", "k_core", "min_rating")
"""Keys of ``[data]`` that a source of ratings with times uses."""
_PARTS: Final = ("splits.train", "splits.test")


@dataclass(frozen=True, slots=True)
class Format:
    """A format of the sources.

    Attributes:
        name: ``data.format``.
        needs: keys of ``[data]`` that must name files; dotted where a table holds them.
        uses: further keys that play a part, beside those that every format uses; the name of a
            table stands for all of its keys.
        pre_split: the source comes split already, and is not cleaned.
        has_clock: the source has times that compare across users.
        titles_alone: its metadata are titles, with nothing beside.
        names: what a title is taken from where no metadata file is named; empty: from nothing.
        pairs: every row has a liked and a disliked item, and a user is in one split only.
        folders: a folder of parquet files may stand for a file.
        reader: file in ``data/formats`` that reads it; by default the one of its name.
    """

    name: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    pre_split: bool = False
    has_clock: bool = True
    titles_alone: bool = False
    names: str = ""
    pairs: bool = False
    folders: bool = False
    reader: str = ""

    def __post_init__(self) -> None:
        if not self.reader:
            object.__setattr__(self, "reader", self.name.replace("-", "_"))

    def uses_key(self, key: str) -> bool:
        """Whether a (dotted) key of ``[data]`` plays a part in this format."""
        table = key.partition(".")[0]
        return bool({key, table} & {*self.needs, *self.uses, *_EVERY})

    @property
    def has_ratings(self) -> bool:
        """Whether the source may have a rating of each interaction."""
        return not self.pre_split and self.uses_key("min_rating")

    @property
    def items_are_tokens(self) -> bool:
        """Whether items are token sequences (semantic IDs), which need no titles."""
        return self.names == "tokens"

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


_OURS: Final = (
    Format("amazon2014", ("reviews",), REVIEW_KEYS, reader="amazon"),
    Format("amazon2018", ("reviews",), REVIEW_KEYS, reader="amazon"),
    Format("amazon2023", ("reviews",), REVIEW_KEYS, reader="amazon"),
    Format("ratings2014", ("reviews",), REVIEW_KEYS, reader="ratings"),
    Format("ratings2018", ("reviews",), REVIEW_KEYS, reader="ratings"),
    Format("ratings2023", ("reviews",), REVIEW_KEYS, reader="ratings"),
    Format("split2023", _PARTS, ("splits.valid", *_NAMES), pre_split=True),
    Format("interactions", ("reviews",), (*REVIEW_KEYS, "columns"), folders=True),
    Format(
        "msl-windows",
        (*_PARTS, "metadata"),
        ("splits.valid", *_NAMES),
        pre_split=True,
        titles_alone=True,
    ),
    Format(
        "semantic-ids",
        ("reviews", "index"),
        ("metadata", "duplicates", "k_core", "identity", "fields"),
        has_clock=False,
        names="tokens",
    ),
    Format(
        "rank-pairs",
        _PARTS,
        ("splits.preference", "splits.valid"),
        pre_split=True,
        has_clock=False,
        names="the prompts",
        pairs=True,
    ),
)

_FOLDER: Final = Path(__file__).parents[1] / "data" / "formats"
_SHARED: Final = {"base", "checks", "delimited", "parsing", "tables", "texts"}  # of all readers


def _find_others() -> Iterator[Format]:
    """The formats that files of ``data/formats`` declare beside their reader, sorted by name."""
    modules = {module.name for module in pkgutil.iter_modules([str(_FOLDER)])}
    for name in sorted(modules - {form.reader for form in _OURS} - _SHARED):
        module = importlib.import_module(f"llmrec_cli.data.formats.{name}")
        found = getattr(module, "FORMAT", None)
        if not isinstance(found, Format) or found.reader != name:
            raise TypeError(
                f"data/formats/{name}.py: FORMAT is {found!r}, expected a Format of the file's name"
            )
        yield found


FORMATS: Final[Mapping[str, Format]] = {form.name: form for form in (*_OURS, *_find_others())}


def list_users(key: str) -> list[str]:
    """Names of the formats in which a (dotted) key of ``[data]`` plays a part."""
    return [form.name for form in FORMATS.values() if form.uses_key(key)]


def list_splits(form: Format, *, clock: bool) -> tuple[str, ...]:
    """The values of ``data.split`` that a source can be split by.

    Args:
        clock: whether the source, as the recipe reads it, has times that compare across users.
    """
    if form.pre_split:
        return ("given",)
    return ("leave-one-out", *(("global-time",) if clock else ()), "few-shot")


def join_words(words: Sequence[str]) -> str:
    """``"a", "b" or "c"``."""
    quoted = [f'"{word}"' for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
